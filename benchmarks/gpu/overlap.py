"""A stage server's own threads, without a gateway: what is won by fetching inputs while the device computes."""

from __future__ import annotations

import queue
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Condition
from time import monotonic, perf_counter

from stage_server.data.consumer import Consumer
from stage_server.data.holder import Holder
from stage_server.data.store import OutputStore
from stage_server.engine.base import Engine, EngineError, NamedValues, StageJob
from stage_server.runtime.baton import Baton
from stage_server.runtime.events import Begin, Broke, DeviceTaken, JobEvent, JobKey, Published, Stopped
from stage_server.runtime.worker import Plant, Worker
from wire.bundle import pack
from wire.params import ImageParams
from wire.to_gateway import Timings
from wire.to_stage import InputRef, Member, Run
from wire.types import Epoch, Role

STORE_BYTES = 1 << 30
TIMEOUT = 120.0


@dataclass(frozen=True, slots=True)
class Sequenced:
    """So many jobs of one role in a row; seconds, of all together."""

    seconds: float
    timings: tuple[Timings, ...]


def in_sequence(
    engine: Engine, role: Role, params: ImageParams, inputs: NamedValues, *, jobs: int, prefetch: bool
) -> Sequenced:
    """Run ``jobs`` jobs whose inputs another holder keeps, behind TCP on this machine.

    With ``prefetch`` a job begins when the one before has got the device, else when it has ended. Raises
    ``EngineError``.
    """
    events: queue.SimpleQueue[JobEvent] = queue.SimpleQueue()
    follow = DeviceTaken if prefetch else Published
    ended: list[Timings] = []
    with _plant(engine, role, params, events) as plant, _held(role, inputs, jobs) as references:
        began = perf_counter()
        left = iter(references)
        _begin(next(left), role, params, plant)
        while len(ended) < jobs:
            event = events.get(timeout=TIMEOUT)
            if isinstance(event, follow) and (reference := next(left, None)) is not None:
                _begin(reference, role, params, plant)
            if isinstance(event, Published):
                plant.store.release(output.handle for output in event.outputs)
                ended.append(event.timings)
            elif isinstance(event, Broke | Stopped):
                raise EngineError(str(event))
        return Sequenced(perf_counter() - began, tuple(ended))


def _begin(reference: InputRef, role: Role, params: ImageParams, plant: Plant) -> None:
    member = Member(epoch=Epoch("benchmark", 0), params=params, inputs=(reference,))
    run = Run(role=role, members=(member,), remaining_seconds=TIMEOUT)
    Worker(Begin(JobKey(0), run, monotonic() + TIMEOUT), plant).start()


@contextmanager
def _plant(engine: Engine, role: Role, params: ImageParams, events: queue.SimpleQueue[JobEvent]) -> Iterator[Plant]:
    room = Condition()

    def room_freed() -> None:
        with room:
            room.notify_all()

    store = OutputStore(STORE_BYTES, on_room=room_freed)
    store.set_roles({role: engine.output_bound(StageJob(role, params))})
    consumer = Consumer()
    try:
        yield Plant(engine, Baton(), store, consumer, events.put, room)
    finally:
        consumer.close()


@contextmanager
def _held(role: Role, inputs: NamedValues, copies: int) -> Iterator[Sequence[InputRef]]:
    """Outputs of an earlier stage in another store, one for each job: what was fetched once could be kept."""
    bundle = pack(inputs)
    store = OutputStore(STORE_BYTES)
    store.set_roles({role: bundle.total_bytes})
    holder = Holder("tcp://127.0.0.1:*", store.get)
    try:
        references = []
        for _ in range(copies):
            reservation = store.reserve(role, bundle.total_bytes)
            if reservation is None:
                raise EngineError(f"{copies} inputs of {bundle.total_bytes} bytes do not fit {STORE_BYTES} bytes")
            handle = store.publish(reservation, bundle)
            references.append(InputRef(handle=handle, endpoint=holder.endpoint, nbytes=bundle.total_bytes))
        yield references
    finally:
        holder.close()
