"""What encoders made, kept for requests that ask for the same: where it lies, who uses it, when it goes. Pure.

The outputs stay in the store of the server that made them; what is kept here is their handles. The scheduler knows
nothing of it: a request whose encoding is kept has an encoder job that is done from the start, whose outputs have names
of the request's own (``alias``). Where they cannot be fetched the job runs like any other, and nothing else does.

The owner of an output is the request that made it. An output is released once it is not kept, its owner is done with
it, and no user is left.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import msgspec

from gateway.service.graph import CONTROL, Graph, StageJob, steers
from gateway.service.interfaces import UNCOUNTED, ImageRequest, PromptRead
from scheduler.spec import Made, Output
from wire.params import ImageParams, ModelInfo
from wire.record import record
from wire.to_gateway import StageDone, StageFailed
from wire.types import Handle, JobId, RequestId, Role, ServerId

STORE_SHARE = 0.25
"""Of a server's output store, that may be taken by what is kept. Encoders may fill half of it."""

MOST_DIGESTED = 8 << 20
"""Bytes of uploads; the digest of more would hold up everybody else, so such requests are encoded anew."""

_ALIAS = "@"

Releases = list[tuple[ServerId, tuple[Handle, ...]]]
"""What stage servers are to be told."""


def alias(handle: Handle, request: RequestId) -> Handle:
    """The name under which the scheduler knows a kept output in this request."""
    return Handle(f"{handle}{_ALIAS}{request}")


def real(handle: Handle) -> Handle:
    return Handle(handle.partition(_ALIAS)[0])


@record(frozen=True, slots=True)
class Kept:
    made: Made
    prompt: PromptRead
    traceparent: str = ""
    """Of the attempt that made it; empty without tracing."""


@dataclass(slots=True, eq=False)
class _Entry:
    key: str
    server: ServerId
    outputs: tuple[Output, ...]
    prompt: PromptRead
    exact: bool
    """Computed alone: good for requests that must be exact."""
    nbytes: int
    traceparent: str
    is_owned: bool = True
    is_kept: bool = True
    users: set[RequestId] = field(default_factory=set)


class Embeddings:
    """Bounded by ``most_bytes`` in all, and by ``STORE_SHARE`` of each server's store; used longest ago goes first."""

    def __init__(self, most_bytes: int, *, shared: bool = False) -> None:
        """0 keeps nothing. ``shared``: tenants use each other's."""
        self._most = most_bytes
        self._shared = shared
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        """Those that are kept, the one used last at the end."""
        self._of_handle: dict[Handle, _Entry] = {}
        """Those that are not released, too."""
        self._users: dict[RequestId, set[Handle]] = {}
        self._stores: dict[ServerId, int] = {}
        self._nbytes: dict[ServerId, int] = {}
        self._leaving: set[ServerId] = set()

    @property
    def keeps(self) -> bool:
        return self._most > 0

    def owner(self, request: ImageRequest) -> str:
        """Whose requests may use what is kept for this one."""
        return "" if self._shared else request.tenant

    def keys(self, graph: Graph, request: ImageRequest, model: ModelInfo) -> dict[JobId, str]:
        """Of its encoder jobs, which equal jobs share; none where not everything that they read is known."""
        workflow = model.workflow(request.images[0].workflow)
        if not self._most or workflow is None or not workflow.encoder_inputs:
            return {}
        if sum(map(len, request.uploads.values())) > MOST_DIGESTED:
            return {}
        reads_controls = CONTROL in workflow.encoder_inputs
        read = {name: data for name, data in request.uploads.items() if reads_controls or not steers(name)}
        uploads = {name: hashlib.sha256(data).hexdigest() for name, data in sorted(read.items())}
        tenant = self.owner(request)
        jobs = [job for job in graph.jobs.values() if job.spec.role is Role.ENCODER]
        return {job.spec.id: _key(job, model, workflow.encoder_inputs, uploads, tenant) for job in jobs}

    def find(self, key: str, request: RequestId, *, exact: bool) -> Kept | None:
        """What is kept under ``key``, which this request uses until it is over."""
        entry = self._entries.get(key)
        if entry is None or (exact and not entry.exact):
            return None
        self._entries.move_to_end(key)
        entry.users.add(request)
        self._users.setdefault(request, set()).update(output.handle for output in entry.outputs)
        named = tuple(Output(each.port, alias(each.handle, request), each.nbytes) for each in entry.outputs)
        return Kept(Made(entry.server, named), entry.prompt, entry.traceparent)

    def made(self, key: str, server: ServerId, done: StageDone, traceparent: str = "") -> Releases:
        """An encoder job's outputs, which its request owns. What has to go for them is returned.

        ``traceparent``: of the attempt, for whoever is served by it.
        """
        outputs = tuple(Output(each.port, each.handle, each.nbytes) for each in done.outputs)
        entry = _Entry(
            key,
            server,
            outputs,
            PromptRead(done.prompt_tokens, done.prompt_dropped) if done.prompt_tokens else UNCOUNTED,
            done.timings.batch <= 1.0,
            sum(output.nbytes for output in outputs),
            traceparent,
        )
        former = self._entries.get(key)
        if not outputs or entry.nbytes > self._room(server) or (former is not None and former.exact >= entry.exact):
            return []
        releases = self._drop([former] if former is not None else [])
        self._entries[key] = entry
        self._of_handle |= dict.fromkeys((output.handle for output in outputs), entry)
        self._nbytes[server] = self._nbytes.get(server, 0) + entry.nbytes
        while self._nbytes[server] > self._room(server):
            releases += self._drop([next(each for each in self._entries.values() if each.server == server)])
        while sum(self._nbytes.values()) > self._most:
            releases += self._drop([next(iter(self._entries.values()))])
        return releases

    # --- what others say ----------------------------------------------------------------------------------------------

    def store(self, server: ServerId, capacity: int, *, is_full: bool) -> Releases:
        """The size of its output store; where that is so full that it takes no work, nothing is kept there."""
        self._stores[server] = 0 if is_full or server in self._leaving else capacity
        return self._drop(self._at(server)) if is_full else []

    def released(self, server: ServerId, handles: Iterable[Handle]) -> tuple[Handle, ...]:
        """Of handles that the scheduler releases: those that the server is to drop."""
        dropped: list[Handle] = []
        for handle in handles:
            name, is_alias, request = handle.partition(_ALIAS)
            entry = self._of_handle.get(Handle(name))
            if entry is None or entry.server != server:
                dropped += [] if is_alias else [handle]
                continue
            if is_alias:
                entry.users.discard(RequestId(request))
            else:
                entry.is_owned = False
            dropped += self._gone(entry)
        return tuple(dropped)

    def over(self, request: RequestId) -> Releases:
        """The request uses nothing any more."""
        entries = {self._of_handle[each] for each in self._users.pop(request, ()) if each in self._of_handle}
        for entry in entries:
            entry.users.discard(request)
        return [(entry.server, gone) for entry in entries if (gone := self._gone(entry))]

    def failed(self, request: RequestId, message: StageFailed) -> tuple[StageFailed, Releases]:
        """Inputs that were lost are kept no more; as the scheduler knows them in this request, and what has to go."""
        lost = {self._of_handle[each] for each in message.lost_inputs if each in self._of_handle}
        used = self._users.get(request, set())

        def named(handles: tuple[Handle, ...]) -> tuple[Handle, ...]:
            return tuple(alias(each, request) if each in used else each for each in handles)

        told = msgspec.structs.replace(
            message, lost_inputs=named(message.lost_inputs), unreached=named(message.unreached)
        )
        return told, self._drop([entry for entry in lost if entry.is_kept])

    def unread(self, server: ServerId) -> Releases:
        """Nobody can fetch from it."""
        return self._drop(self._at(server))

    def leaves(self, server: ServerId) -> Releases:
        """It stays only until its outputs are gone."""
        self._leaving.add(server)
        self._stores.pop(server, None)
        return self._drop(self._at(server))

    def forget(self, server: ServerId) -> None:
        """It is gone, and all that it held."""
        self._drop(self._at(server))
        self._leaving.discard(server)
        self._stores.pop(server, None)
        self._nbytes.pop(server, None)
        self._of_handle = {handle: entry for handle, entry in self._of_handle.items() if entry.server != server}

    # --- inside -------------------------------------------------------------------------------------------------------

    def _at(self, server: ServerId) -> list[_Entry]:
        return [entry for entry in self._entries.values() if entry.server == server]

    def _room(self, server: ServerId) -> int:
        return min(self._most, int(self._stores.get(server, 0) * STORE_SHARE))

    def _drop(self, entries: Iterable[_Entry]) -> Releases:
        """They are kept no more."""
        releases: Releases = []
        for entry in entries:
            entry.is_kept = False
            del self._entries[entry.key]
            self._nbytes[entry.server] -= entry.nbytes
            if gone := self._gone(entry):
                releases.append((entry.server, gone))
        return releases

    def _gone(self, entry: _Entry) -> tuple[Handle, ...]:
        """Its handles, once nobody needs them."""
        if entry.is_kept or entry.is_owned or entry.users:
            return ()
        handles = tuple(output.handle for output in entry.outputs)
        return tuple(handle for handle in handles if self._of_handle.pop(handle, None) is not None)


def _key(job: StageJob, model: ModelInfo, inputs: tuple[str, ...], uploads: Mapping[str, str], tenant: str) -> str:
    """Everything that the encoder's outputs depend on. The model's key has its revisions, dtype and defaults.

    Guidance decides whether a negative prompt is encoded, whoever asks for it; pictures are sampled with the seed.
    """
    params = job.params
    scale = model.default_guidance if params.guidance_scale is None else params.guidance_scale
    read = [name for name in inputs if name in ImageParams.__struct_fields__]
    sampled = ["seed", "height", "width", "strength"] if uploads else []
    values = {name: getattr(params, name) for name in sorted({*read, *sampled})}
    adapters = [(use.name, use.digest, use.scale) for use in params.adapters]
    reader = "" if params.ip_adapter is None else params.ip_adapter.name
    parts = (reader, tenant, model.key, params.workflow, (scale or 0.0) > 1.0, values, adapters, dict(uploads))
    return hashlib.sha256(msgspec.msgpack.encode(parts)).hexdigest()
