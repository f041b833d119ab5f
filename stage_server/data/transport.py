"""What moves tensors between stage servers, seen from outside: the form that an RDMA engine would have to take too.

A stage server still puts ``Holder`` and ``Consumer`` together by itself (``stage_server.startup``); tests of the data
plane use this form.
"""

from __future__ import annotations

from concurrent.futures import Future
from typing import Protocol

from stage_server.data.consumer import Allocate, Consumer
from stage_server.data.holder import Holder
from wire.bundle import LIMITS, Bundle, Limits
from wire.security import Allow, CurveKeys
from wire.to_stage import InputRef
from wire.transfer import Lookup


class TensorTransport(Protocol):
    """Serves the outputs of one process and fetches its inputs, both from threads of its own."""

    @property
    def endpoint(self) -> str:
        """The bound address that ``InputRef.endpoint`` names (or the address advertised in its place)."""

    def fetch(self, ref: InputRef, deadline_seconds: float) -> Future[Bundle]:
        """The bundle behind ``ref``; fails with ``wire.errors.InputLost``. Cancelling ends the transfer."""

    def close(self) -> None:
        """Stop serving, cancel what is being fetched."""


class ZmqTransport:
    """A ``Holder`` and a ``Consumer``; outputs of this very process are handed over without a transfer."""

    def __init__(
        self,
        bind: str,
        lookup: Lookup,
        *,
        keys: CurveKeys | None = None,
        allow: Allow | None = None,
        allow_plaintext: bool = False,
        allocate: Allocate | None = None,
        limits: Limits = LIMITS,
    ) -> None:
        """Serve ``lookup`` at ``bind``, such as ``tcp://127.0.0.1:*``. Raises ``BindError``."""
        self._holder = Holder(bind, lookup, keys=keys, allow=allow, allow_plaintext=allow_plaintext)
        self._consumer = Consumer(keys=keys, allocate=allocate, local=lookup, limits=limits)

    @property
    def endpoint(self) -> str:
        return self._holder.endpoint

    def fetch(self, ref: InputRef, deadline_seconds: float) -> Future[Bundle]:
        return self._consumer.fetch(ref, deadline_seconds)

    def close(self) -> None:
        self._consumer.close()
        self._holder.close()
