"""Numbers and texts with bounds, checked when a message is read: a confused process must not confuse others."""

from __future__ import annotations

from typing import Annotated

import msgspec

from wire.types import MAX_PROMPT, Handle

MAX_SECONDS = 1e9
Seconds = Annotated[float, msgspec.Meta(ge=0, le=MAX_SECONDS)]
MAX_KEEP_SECONDS = 1.0
"""No device stands idle longer than this for a job that may not come."""

KeepSeconds = Annotated[float, msgspec.Meta(ge=0, le=MAX_KEEP_SECONDS)]
Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
Positive = Annotated[int, msgspec.Meta(ge=1, le=1 << 53)]
Celsius = Annotated[float, msgspec.Meta(ge=-274, le=1000)]
Watts = Annotated[float, msgspec.Meta(ge=0, le=1e6)]
Guidance = Annotated[float, msgspec.Meta(ge=0, le=1e6)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f]*$")]
"""One line: names appear in logs."""

Detail = Annotated[str, msgspec.Meta(max_length=1024, pattern=r"^[^\x00-\x1f\x7f]*$")]
Prompt = Annotated[str, msgspec.Meta(max_length=MAX_PROMPT)]
Address = Annotated[str, msgspec.Meta(max_length=256)]
BoundedHandle = Annotated[Handle, msgspec.Meta(min_length=1, max_length=64)]

MAX_FORM_BYTES = 32 << 10
Form = Annotated[bytes, msgspec.Meta(max_length=MAX_FORM_BYTES)]
"""Names, shapes and dtypes of what a role makes, as stage servers write it; nobody else looks into it."""

MAX_RELAYS = 4
"""Of one stage server."""
