"""Requests between ``generate`` and their end, with the pictures that clients sent for them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from gateway.service import graph
from gateway.service.attempts import Record, note_kept
from gateway.service.embeddings import Embeddings
from gateway.service.interfaces import (
    Admitted,
    Finished,
    ImageRequest,
    Listener,
    NoCapacity,
    PromptRead,
    Rewritten,
)
from gateway.service.rewrites import Rewrites
from gateway.storage.room import RoomTaken
from scheduler.spec import Made
from wire.params import ModelInfo
from wire.to_stage import InputRef
from wire.types import Handle, JobId, ModelKey, RequestId

UPLOADS_RETRY_SECONDS = 5.0


@dataclass(slots=True)
class Open:
    record: Record
    outcome: asyncio.Future[Finished]
    uploads: tuple[InputRef, ...]
    listener: Listener
    predicted_seconds: float = 0.0
    pictures: dict[int, bytes] = field(default_factory=dict)
    """By image."""
    encodings: Mapping[JobId, str] = field(default_factory=dict)
    """Of encoder jobs, what they make; see ``gateway.service.embeddings``."""
    exact: bool = False
    asked: tuple[ImageRequest, ModelInfo] | None = None
    """While an enhancer has not said yet what it makes of the prompt."""

    def finished(self) -> Finished:
        pictures = tuple(self.pictures[index] for index in sorted(self.pictures))
        return Finished(pictures, self.record.stages(), self.predicted_seconds, self.record.prompt)


class OpenRequests:
    def __init__(
        self, hold: Callable[[bytes], InputRef], drop: Callable[[Handle], None], embeddings: Embeddings
    ) -> None:
        self._hold = hold
        self._drop = drop
        self._embeddings = embeddings
        self._rewrites = Rewrites(embeddings)
        self._requests: dict[RequestId, Open] = {}
        self._owners: dict[JobId, Open] = {}

    def __getitem__(self, request: RequestId) -> Open:
        return self._requests[request]

    def owner(self, job: JobId) -> Open:
        return self._owners[job]

    def owner_of(self, job: JobId) -> Open | None:
        """None once the request is over."""
        return self._owners.get(job)

    def of_model(self, model: ModelKey) -> list[Open]:
        return [entry for entry in self._requests.values() if entry.record.graph.spec.model == model]

    def open(self, request: ImageRequest, model: ModelInfo, listener: Listener, now: float) -> Open:
        """Raises ``ServiceError``, and ``ValueError`` for a name that is in use."""
        if request.request_id in self._requests:
            raise ValueError(f"a request {request.request_id} is under way already")
        uploads = self._held(request.uploads)
        try:
            known = self._rewrites.find(request, model) if request.enhance else None
            work = graph.build(request, model, now + request.deadline_seconds, uploads, known)
            is_open = request.enhance and known is None  # what the encoder is to read
            encodings = {} if is_open else self._embeddings.keys(work, request, model)
        except BaseException:  # defects too: nobody else would ever give up what the pictures take
            self._let_go(uploads.values())
            raise
        record = Record(work, request.traceparent, now)
        outcome: asyncio.Future[Finished] = asyncio.get_running_loop().create_future()
        entry = Open(record, outcome, tuple(uploads.values()), listener, encodings=encodings, exact=request.exact)
        entry.asked = (request, model) if is_open else None
        record.prompt = PromptRead(revised=known or "")
        self._requests[work.spec.id] = entry
        for job in work.jobs:
            self._owners[job] = entry
        return entry

    def admitted(self, request: RequestId, seconds: float) -> None:
        entry = self._requests[request]
        entry.predicted_seconds = seconds
        entry.listener(Admitted(seconds))
        if entry.record.prompt.revised:
            entry.listener(Rewritten(entry.record.prompt.revised))

    def rewritten(self, entry: Open, text: str) -> None:
        """What an enhancer made of the prompt, empty if nothing: from now on its encoder jobs have it in place of the
        prompt, and what they make is kept under it."""
        if entry.asked is None:
            return
        (request, model), entry.asked = entry.asked, None
        revised, record = text or request.images[0].prompt, entry.record
        record.prompt = replace(record.prompt, revised=revised)
        record.graph = graph.enhanced(record.graph, revised)
        entry.encodings = self._embeddings.keys(record.graph, request, model)
        self._rewrites.made(request, model, revised)
        entry.listener(Rewritten(revised))

    def supply(self, entry: Open) -> dict[JobId, str]:
        """Encoder jobs whose outputs are kept are done from the start; the keys of the others."""
        record = entry.record
        request, missing, made = record.graph.spec.id, dict(entry.encodings), dict[JobId, Made]()
        for job, key in entry.encodings.items():
            kept = self._embeddings.find(key, request, exact=entry.exact)
            if kept is not None:
                del missing[job]
                made[job] = kept.made
                record.prompt = replace(kept.prompt, revised=record.prompt.revised)
                note_kept(record, kept.made.holder, kept.traceparent)
        record.graph = graph.supplied(record.graph, made)
        return missing

    def close(self, request: RequestId) -> Open | None:
        """Forget it and what was sent for it; None if that was done before."""
        entry = self._requests.pop(request, None)
        if entry is not None:
            for job in entry.record.graph.jobs:
                del self._owners[job]
            self._let_go(entry.uploads)
        return entry

    def _held(self, pictures: Mapping[str, bytes]) -> dict[str, InputRef]:
        held: dict[str, InputRef] = {}
        try:
            for name, picture in pictures.items():
                held[name] = self._hold(picture)
        except RoomTaken as error:
            self._let_go(held.values())
            raise NoCapacity(str(error), retry_after_seconds=UPLOADS_RETRY_SECONDS) from error
        return held

    def _let_go(self, uploads: Iterable[InputRef]) -> None:
        for ref in uploads:
            self._drop(ref.handle)
