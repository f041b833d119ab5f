"""One job from its inputs to its outputs, as straight code in a thread of its own.

While it waits for inputs, room or the device, others compute. It tells its server of every turn by events, and the
last of them is always ``Published``, ``Broke`` or ``Stopped``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_EXCEPTION, CancelledError, Future, wait
from contextlib import ExitStack
from dataclasses import dataclass, field
from threading import Condition, Thread
from time import monotonic

from stage_server.data.consumer import Consumer, TooManyFetches
from stage_server.data.store import OutputStore, OutputTooLarge, Reservation
from stage_server.engine.base import (
    BadJob,
    Engine,
    EngineError,
    JobCancelled,
    NamedValues,
    NonFinite,
    OutOfMemory,
    Outputs,
    Preview,
    StageJob,
    WrongSize,
)
from stage_server.runtime.baton import Baton, Ticket, Urgency
from stage_server.runtime.events import (
    Begin,
    Broke,
    Computed,
    DeviceTaken,
    DeviceYielded,
    InputsHere,
    JobEvent,
    Previewed,
    Published,
    Stepped,
    Stopped,
)
from stage_server.runtime.phases import Phase, Phases, StepMeter
from stage_server.runtime.spans import record_spans
from wire.bundle import Bundle, pack, unpack
from wire.errors import UNREACHED, Code, InputLost, Loss, MalformedFrame, WireError
from wire.to_gateway import Output
from wire.to_stage import InputRef, Run
from wire.types import Handle, Role
from wire.values import Value


@dataclass(frozen=True, slots=True)
class Plant:
    """What the jobs of one server share."""

    engine: Engine
    baton: Baton
    store: OutputStore
    consumer: Consumer
    post: Callable[[JobEvent], None]
    """Thread-safe; does not block."""
    room: Condition = field(default_factory=Condition)
    """Notified whenever space in the store was freed."""


class Worker:
    """Also the ``JobControl`` of its job."""

    def __init__(self, begin: Begin, plant: Plant) -> None:
        self.name = _name(begin)
        self.phases = Phases()
        self._key = begin.job
        self._run: Run = begin.run
        self._deadline = begin.deadline
        self._plant = plant
        self._ticket = Ticket(begin.job, _urgency(begin.run))
        self._fetches: dict[Handle, Future[Bundle]] = {}
        self._stopped = False
        self._meter = StepMeter()
        self._prompts: dict[int, tuple[int, int]] = {}
        self._thread = Thread(target=self._live, name=self.name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End at the next opportunity; at the end of a step at the latest, or of an encoding or decoding."""
        self._stopped = True  # before anybody is woken: they look at it
        for fetch in tuple(self._fetches.values()):
            fetch.cancel()
        self._plant.baton.cancel(self._ticket)
        with self._plant.room:
            self._plant.room.notify_all()

    def step_done(self, step: int, steps: int) -> None:
        self._check()
        report = self._meter.step(monotonic())
        if report is not None:
            self._plant.post(Stepped(self._key, step, steps, report))
        self.phases.steps = step
        if step < steps and self._plant.baton.wanted(self._ticket):
            self._pause(step)

    def prompt_read(self, member: int, tokens: int, dropped: int) -> None:
        self._prompts[member] = tokens, dropped

    def preview(self, preview: Preview) -> None:
        """Where the store has no room it is left out: nobody was promised one."""
        self._check()
        bundle = pack(preview.values)
        try:
            reservation = self._plant.store.reserve(self._run.role, bundle.total_bytes)
        except OutputTooLarge:
            return
        if reservation is None:
            return
        handle = self._plant.store.publish(reservation, bundle)
        self._plant.store.close(reservation)
        output = Output(port=Role.DECODER, handle=handle, nbytes=bundle.total_bytes)
        self._plant.post(Previewed(self._key, preview.member, preview.index, preview.step, preview.steps, output))

    # --- the thread ---

    def _live(self) -> None:
        outcome = self._outcome()
        if not isinstance(outcome, Published):
            self._plant.baton.cancel(self._ticket)  # nothing of the request follows
        self._plant.post(outcome)  # before the spans: nobody should wait for tracing
        record_spans(self._run, self.phases, outcome)

    def _outcome(self) -> JobEvent:
        try:
            return self._work()
        except (JobCancelled, CancelledError):
            return Stopped(self._key)
        except _InputsLost as lost:
            return self._lost(lost)
        except OutputTooLarge as error:
            return Broke(self._key, Code.OUTPUT_TOO_LARGE, str(error), retryable=False)
        except BadJob as error:
            return Broke(self._key, Code.BAD_REQUEST, str(error), retryable=False)
        except OutOfMemory as error:
            return Broke(self._key, Code.OUT_OF_MEMORY, str(error), retryable=True)
        except NonFinite as error:
            return Broke(self._key, Code.NON_FINITE, str(error), retryable=True)
        except WrongSize as error:
            return Broke(self._key, Code.WRONG_SIZE, str(error), retryable=False)
        except (EngineError, TooManyFetches) as error:
            return Broke(self._key, Code.ENGINE, str(error), retryable=True)
        except WireError as error:
            return Broke(self._key, Code.ENGINE, f"the outputs cannot cross: {error}", retryable=False)

    def _work(self) -> Published:
        with self.phases.during(Phase.FETCH):
            self._begin_fetches()
            images = tuple(self._take_images(member.images) for member in self._run.members)
            job = StageJob(self._run.role, tuple(member.params for member in self._run.members), images)
            reservation = self._reserve(self._plant.engine.output_bound(job) * len(job.members))
        try:
            with self.phases.during(Phase.FETCH):
                inputs = tuple(self._take(member.inputs) for member in self._run.members)
            results = self._compute(job, inputs)
            with self.phases.during(Phase.PUBLISH):
                outputs = self._publish(results, reservation)
        finally:
            self._plant.store.close(reservation)
        timings = self.phases.timings(len(job.members), self._plant.engine.peak_bytes())
        return Published(self._key, outputs, timings, self._prompts)

    def _begin_fetches(self) -> None:
        for member in self._run.members:
            for ref in (*member.images.values(), *member.inputs):
                if ref.handle not in self._fetches:  # members of a batch may share one
                    remaining = self._deadline - monotonic()
                    self._fetches[ref.handle] = self._plant.consumer.fetch(ref, remaining)
        self._check()

    def _take_images(self, refs: Mapping[str, InputRef]) -> Mapping[str, bytes]:
        values = {name: self._take((ref,)).get("image") for name, ref in refs.items()}
        for name, value in values.items():
            if not isinstance(value, bytes):
                raise _InputsLost([InputLost(refs[name].handle, Loss.MALFORMED, f"no picture in the bundle of {name}")])
        return {name: value for name, value in values.items() if isinstance(value, bytes)}

    def _take(self, refs: tuple[InputRef, ...]) -> dict[str, Value]:
        """Wait for these and merge their values. Raises ``_InputsLost`` or ``CancelledError``."""
        fetches = {ref.handle: self._fetches[ref.handle] for ref in refs}
        done = wait(fetches.values(), return_when=FIRST_EXCEPTION).done
        failures = [fetch.exception() for fetch in done]
        if lost := [failure for failure in failures if isinstance(failure, InputLost)]:
            raise _InputsLost(lost)
        merged: dict[str, Value] = {}
        for handle, fetch in fetches.items():
            merged.update(_unpacked(handle, fetch.result()))
        return merged

    def _reserve(self, nbytes: int) -> Reservation:
        with self._plant.room:
            while (reservation := self._plant.store.reserve(self._run.role, nbytes)) is None:
                self._check()
                self._plant.room.wait()
        return reservation

    def _compute(self, job: StageJob, inputs: tuple[NamedValues, ...]) -> tuple[Outputs, ...]:
        keep_seconds = 0.0  # until it is computed: of a job that fails nothing follows for which to keep the device
        self._plant.baton.line_up(self._ticket)
        try:
            self._plant.post(InputsHere(self._key))
            with self.phases.during(Phase.WAIT):
                self._plant.baton.take(self._ticket)
            self._plant.post(DeviceTaken(self._key))
            self._check()
            self._meter.start(monotonic())
            with self.phases.during(Phase.COMPUTE):
                results = self._plant.engine.run(job, inputs, self)
            keep_seconds = self._run.keep_seconds
        finally:
            self._plant.baton.leave(self._ticket, keep_seconds)
        self._plant.post(Computed(self._key))
        self._check()
        return results

    def _publish(self, results: tuple[Outputs, ...], reservation: Reservation) -> tuple[tuple[Output, ...], ...]:
        with ExitStack() as undo:
            published = tuple(
                tuple(self._publish_port(port, values, reservation, undo) for port, values in outputs.items())
                for outputs in results
            )
            self._check()
            undo.pop_all()
        return published

    def _publish_port(self, port: str, values: NamedValues, reservation: Reservation, undo: ExitStack) -> Output:
        bundle = pack(values)
        handle = self._plant.store.publish(reservation, bundle)
        undo.callback(self._plant.store.release, (handle,))
        return Output(port=port, handle=handle, nbytes=bundle.total_bytes)

    def _pause(self, step: int) -> None:
        self._plant.post(DeviceYielded(self._key, step))
        seconds = self._plant.baton.pass_on(self._ticket)
        self.phases.paused += seconds
        self._meter.paused(seconds)
        self._plant.post(DeviceTaken(self._key))
        self._check()

    def _check(self) -> None:
        if self._stopped:
            raise JobCancelled

    def _lost(self, error: _InputsLost) -> Broke:
        message = "; ".join(map(str, error.losses))
        reasons = {loss.reason for loss in error.losses}
        if Loss.DEADLINE in reasons:
            return Broke(self._key, Code.DEADLINE, f"the deadline passed while fetching: {message}", retryable=False)
        if Loss.TOO_LARGE in reasons:
            return Broke(self._key, Code.INPUT_LOST, message, retryable=False)
        handles = tuple(loss.handle for loss in error.losses)
        unreached = tuple(loss.handle for loss in error.losses if loss.reason in UNREACHED)
        return Broke(self._key, Code.INPUT_LOST, message, retryable=True, lost=handles, unreached=unreached)


class _InputsLost(Exception):
    def __init__(self, losses: list[InputLost]) -> None:
        super().__init__()
        self.losses = losses


def _unpacked(handle: Handle, bundle: Bundle) -> dict[str, Value]:
    try:
        return unpack(bundle)
    except MalformedFrame as error:
        raise _InputsLost([InputLost(handle, Loss.MALFORMED, str(error))]) from error
    except WireError as error:
        raise _InputsLost([InputLost(handle, Loss.TOO_LARGE, str(error))]) from error


def _name(begin: Begin) -> str:
    """As the log shows it: the ids of the requests are those in the gateway's log."""
    requests = (member.request for member in begin.run.members if member.request)
    return " ".join((*dict.fromkeys(requests), f"{begin.run.role}-{begin.job}"))


def _urgency(run: Run) -> Urgency:
    if run.preempt:
        return Urgency.PREEMPTING
    return Urgency.PREVIEW if run.preview else Urgency.NORMAL
