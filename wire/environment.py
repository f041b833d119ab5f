"""Variables that look like settings of ours and are none: a slip in a name would be ignored in silence. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches

_KUBERNETES = re.compile(r".*_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_PROTO|_PORT|_ADDR)?)")
"""What Kubernetes tells every pod about services; ours are named ``disagfusion…``, and so are these variables."""

_SERVICE_PORT = re.compile(r"(tcp|udp|sctp)://")
"""Value of the one form, ``…_PORT``, that a setting could have as well."""


def complaints(
    environment: Mapping[str, str], prefix: str, settings: Iterable[str], other: str | None = None
) -> Iterator[str]:
    """A line for each variable under ``prefix`` that is none of ``settings``, nor under the ``other`` process's prefix.

    Never more than a warning: who else sets variables there, we cannot know.
    """
    known = [name.upper() for name in settings]
    for variable, value in sorted(environment.items()):
        full = variable.upper()  # as pydantic-settings reads them
        if not full.startswith(prefix) or (other and full.startswith(other)) or full.removeprefix(prefix) in known:
            continue
        if _KUBERNETES.fullmatch(full) or (full.endswith("_PORT") and _SERVICE_PORT.match(value)):
            continue
        nearest = get_close_matches(full.removeprefix(prefix), known, n=1)
        yield f"{variable} is no setting and is ignored" + (f"; did you mean {prefix}{nearest[0]}?" if nearest else "")
