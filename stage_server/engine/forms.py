"""What crosses between stages looks like: names, shapes and dtypes of what each role made in its warm-up.

A role's warm-up reads what the roles before it made in theirs. Where those are on another server, its reads zeros in
the form that they had there, which servers tell each other by way of the gateway. Knows no torch.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

import msgspec
import numpy as np

from stage_server.engine.base import NamedValues, Outputs
from wire.bounded import MAX_FORM_BYTES
from wire.bundle import Bundle, Limits, pack, unpack
from wire.errors import MalformedFrame, WireError
from wire.types import Role
from wire.values import DTYPE_BYTES, Tensor, Value

_SMALL = 4 << 10
"""Bytes of a tensor of whole numbers that is told as it is: masks, lengths and sizes are no good as zeros."""

_MOST = 1 << 30
"""Bytes of zeros that a form may ask for, in all its tensors."""

_SHAPE, _DTYPE = "shape of zeros", "dtype of zeros"
"""Keys of the dict that stands for a tensor."""

_LIMITS = Limits(header_bytes=MAX_FORM_BYTES, payload_bytes=MAX_FORM_BYTES)

_log = logging.getLogger(__name__)


class Forms:
    """Of one model: by the role that made the values. From any thread."""

    def __init__(self) -> None:
        self._own: dict[Role, bytes] = {}
        self._told: dict[Role, bytes] = {}

    def note(self, role: Role, made: Outputs) -> None:
        """``made``: the outputs of the role's warm-up on this server."""
        form = form_of(made)
        if form is None:
            _log.info("what the warm-up of the %s made is too much to be told to other servers", role)
        else:
            self._own[role] = form

    def learn(self, forms: Mapping[Role, bytes]) -> None:
        """What other servers of the same model key have seen."""
        self._told.update(forms)

    def seen(self) -> dict[Role, bytes]:
        """What was seen on this server, for others."""
        return dict(self._own)

    def stand_ins(self, maker: Role, reader: Role) -> NamedValues | None:
        """What ``maker`` leaves for ``reader``, in zeros; None where nobody has told, or nothing that can be read."""
        form = self._told.get(maker)
        if form is None:
            return None
        try:
            return zeros(form).get(reader, {})
        except WireError as error:
            _log.warning("the form of what the %s makes cannot be read: %s", maker, error)
            return None


def form_of(made: Outputs) -> bytes | None:
    """Without the numbers; None where even that takes more than ``MAX_FORM_BYTES``."""
    try:
        bundle = pack({port: {name: _bare(value) for name, value in values.items()} for port, values in made.items()})
    except WireError:
        return None
    form = msgspec.msgpack.encode((bundle.header, bytes(bundle.view(0, bundle.nbytes))))
    return form if len(form) <= MAX_FORM_BYTES else None


def zeros(form: bytes) -> dict[str, NamedValues]:
    """Port → values. Raises ``WireError``."""
    try:
        header, payload = msgspec.msgpack.decode(form, type=tuple[bytes, bytes])
    except msgspec.DecodeError as error:
        raise MalformedFrame(f"a form: {error}") from error
    pieces = ((0, memoryview(payload)),) if payload else ()
    ports = unpack(Bundle(header, len(payload), pieces), _LIMITS)
    found: dict[str, NamedValues] = {}
    filler = _Filler()
    for port, values in ports.items():
        if not isinstance(values, dict):
            raise MalformedFrame(f"a form: {port} holds a {type(values).__name__}, not named values")
        found[port] = {name: filler.filled(value) for name, value in values.items()}
    return found


def _bare(value: Value) -> Value:
    if isinstance(value, Tensor):
        is_told = "float" not in value.dtype and "complex" not in value.dtype and value.data.nbytes <= _SMALL
        return value if is_told else {_SHAPE: value.shape, _DTYPE: value.dtype}
    if isinstance(value, list):
        return [_bare(item) for item in value]
    if isinstance(value, tuple):
        return tuple(_bare(item) for item in value)
    if isinstance(value, dict):
        return {key: _bare(item) for key, item in value.items()}
    return value


class _Filler:
    """Of one form: a few bytes of it may ask for any number of zeros."""

    def __init__(self) -> None:
        self._nbytes = 0

    def filled(self, value: Value) -> Value:
        if isinstance(value, dict) and value.keys() == {_SHAPE, _DTYPE}:
            return self._zeros(value[_SHAPE], value[_DTYPE])
        if isinstance(value, list):
            return [self.filled(item) for item in value]
        if isinstance(value, tuple):
            return tuple(self.filled(item) for item in value)
        if isinstance(value, dict):
            return {key: self.filled(item) for key, item in value.items()}
        return value

    def _zeros(self, shape: Value, dtype: Value) -> Tensor:
        sides = [side for side in shape if type(side) is int and side >= 0] if isinstance(shape, tuple) else []
        is_shape = isinstance(shape, tuple) and len(sides) == len(shape)
        if not is_shape or not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
            raise MalformedFrame(f"a form: {shape!r} of {dtype!r} is no tensor")
        nbytes = math.prod(sides) * DTYPE_BYTES[dtype]
        self._nbytes += nbytes
        if self._nbytes > _MOST:
            raise MalformedFrame(f"a form: tensors of {self._nbytes} bytes, at most {_MOST} are made")
        return Tensor(dtype, tuple(sides), np.zeros(nbytes, np.uint8).data)
