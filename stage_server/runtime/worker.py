"""One job from its inputs to its outputs, as straight code in a thread of its own.

While it waits for inputs, room or the device, others compute. It tells its server of every turn by events, and the
last of them is always ``Published``, ``Broke`` or ``Stopped``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_EXCEPTION, CancelledError, Future, wait
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from threading import Condition
from time import monotonic

from stage_server.data.consumer import Consumer, TooManyFetches
from stage_server.data.exchange import Exchange
from stage_server.data.mailbox import Mailbox
from stage_server.data.store import OutputStore, OutputTooLarge, Reservation
from stage_server.engine.base import (
    STEP,
    BadJob,
    Engine,
    EngineError,
    HandOver,
    JobCancelled,
    NamedValues,
    NonFinite,
    OutOfMemory,
    Outputs,
    PartnerLeft,
    Prepared,
    Preview,
    StageJob,
    Unfinished,
    WrongSize,
)
from stage_server.runtime.baton import Baton, Ticket, Urgency, Work
from stage_server.runtime.events import (
    Begin,
    Broke,
    Computed,
    DeviceTaken,
    DeviceYielded,
    InputsFetched,
    InputsHere,
    JobEvent,
    Previewed,
    Published,
    Stepped,
    Stopped,
    Surrendered,
)
from stage_server.runtime.phases import Phase, Phases, StepMeter
from stage_server.runtime.spans import Transfers, record_spans
from stage_server.runtime.threads import Threads
from wire.bundle import Bundle, pack, unpack
from wire.errors import UNREACHED, Code, InputLost, Loss, MalformedFrame, WireError
from wire.guiders import GUIDERS
from wire.logs import note_about
from wire.to_gateway import Output
from wire.to_stage import InputRef, Member, Run
from wire.trace import named_by
from wire.types import Handle, Role
from wire.values import Value

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Plant:
    """What the jobs of one server have in common."""

    engine: Engine
    baton: Baton
    store: OutputStore
    consumer: Consumer
    post: Callable[[JobEvent], None]
    """Thread-safe; does not block."""
    room: Condition = field(default_factory=Condition)
    """Notified whenever space in the store was freed."""
    together: Mapping[Role, int] = field(default_factory=dict)
    """How many jobs of a role may share the device; one where it is not named."""
    default_guidance: float | None = None
    """The model's guidance scale where a job names none."""
    model: str = ""
    """Its key: jobs of several models that share the device take turns."""
    threads: Threads = field(default_factory=Threads)
    mailbox: Mailbox = field(default_factory=Mailbox)
    """Through which jobs share guided steps with other servers."""


class Worker:
    """Also the ``JobControl`` of its job."""

    def __init__(self, begin: Begin, plant: Plant) -> None:
        self.name = f"{begin.member.request} {begin.run.role}-{begin.job}".lstrip()
        """As the log shows it: the id of the request is that in the gateway's log."""
        self.about = _about(begin.member, begin.run.role)
        """For lines of the log as JSON."""
        self.phases = Phases()
        self._transfers = Transfers()
        self._key = begin.job
        self._run: Run = begin.run
        self._member = begin.member
        self._deadline = begin.deadline
        self._plant = plant
        self._ticket = Ticket(plant.baton.arrive(), _urgency(begin.run), *_company(begin, plant))
        self._fetches: dict[Handle, Future[Bundle]] = {}
        half = begin.member.half
        self._partner = None if half is None else Exchange(half, plant.mailbox, plant.consumer)
        self._helps = half is not None and not half.leads
        """It computes for an attempt of another server, and has no outputs."""
        self._stopped = False
        self._hands_over = False
        self._resumed: NamedValues | None = None
        """What another server handed over, once it is here."""
        self._meter = StepMeter()
        self._is_computed = False
        self._refused: TooManyFetches | None = None
        self._prompt: tuple[int, int] = (0, 0)
        self._rewritten = ""

    def start(self) -> None:
        """Does not wait. Inputs are asked for at once: they are on their way while the thread comes to life."""
        try:
            self._begin_fetches()
        except TooManyFetches as error:
            self._refused = error
        if self._partner is not None:
            self._partner.begin()
        self._plant.threads.run(self.name, self._live)

    def stop(self) -> None:
        """End at the next opportunity; at the end of a step at the latest, or of an encoding or decoding."""
        self._stopped = True  # before anybody is woken: they look at it
        self._wake()

    def hand_over(self) -> None:
        """End at the end of a step, or at once while it waits, and leave what another server needs to go on."""
        self._hands_over = True
        self._wake()

    def _wake(self) -> None:
        for fetch in tuple(self._fetches.values()):
            fetch.cancel()
        if self._partner is not None:
            self._partner.leave()
        self._plant.baton.cancel(self._ticket)
        with self._plant.room:
            self._plant.room.notify_all()

    def check(self) -> None:
        if self._stopped:
            raise JobCancelled

    def computed(self, company: int) -> None:
        self.phases.computed(company)

    def device_done(self) -> None:
        self._is_computed = True
        self.phases.begin(Phase.PUBLISH)
        self._plant.baton.leave(self._ticket, self._run.keep_seconds)
        self._plant.post(Computed(self._key))
        self.check()

    def step_done(self, step: int, steps: int) -> None:
        self.check()
        report = self._meter.step(monotonic())
        if report is not None:
            self._plant.post(Stepped(self._key, step, steps, report))
        self.phases.steps += 1
        if self._hands_over and step < steps:
            raise HandOver

    def wanted(self) -> bool:
        return self._plant.baton.wanted(self._ticket)

    def pause(self, step: int, back: Callable[[], None] = lambda: None) -> None:
        self._plant.post(DeviceYielded(self._key, step))
        try:
            seconds = self._plant.baton.pass_on(self._ticket, back)
        except JobCancelled:
            self.check()
            raise HandOver from None  # nothing else wakes it
        self.phases.paused += seconds
        self._meter.paused(seconds)
        self._plant.post(DeviceTaken(self._key))
        self.check()

    def prompt_read(self, tokens: int, dropped: int) -> None:
        self._prompt = tokens, dropped

    def rewritten(self, prompt: str) -> None:
        self._rewritten = prompt

    def preview(self, preview: Preview) -> None:
        """Where the store has no room it is left out: nobody was promised one."""
        self.check()
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
        self._plant.post(Previewed(self._key, preview.index, preview.step, preview.steps, output))

    # --- the thread ---

    def _live(self) -> None:
        note_about(self.about)  # of this thread
        outcome = self._outcome()
        if self._partner is not None:
            self._partner.leave()  # of a job that has ended before its first step, too: the other need not wait for it
        if not isinstance(outcome, Published):
            self._plant.baton.cancel(self._ticket)  # nothing of the request follows
        self._plant.post(outcome)  # before the spans: nobody should wait for tracing
        record_spans(self._run.role, self._member, self.phases, self._transfers, outcome)

    def _outcome(self) -> JobEvent:
        try:
            return self._attempted()
        except (JobCancelled, CancelledError):
            values = self._resumed  # it was not begun here
        except Unfinished as left:
            values = left.values
        return Stopped(self._key) if self._stopped else self._surrendered(values)

    def _attempted(self) -> JobEvent:
        try:
            return self._work()
        except _InputsLost as lost:
            return self._lost(lost)
        except OutputTooLarge as error:
            return Broke(self._key, Code.OUTPUT_TOO_LARGE, str(error), retryable=False)
        except BadJob as error:
            return Broke(self._key, Code.BAD_REQUEST, str(error), retryable=False)
        except (OutOfMemory, MemoryError) as error:  # the latter of what is done around the engine
            message = str(error) or "the host has not enough memory for the job"
            return Broke(self._key, Code.OUT_OF_MEMORY, message, retryable=True)
        except NonFinite as error:
            return Broke(self._key, Code.NON_FINITE, str(error), retryable=True)
        except WrongSize as error:
            return Broke(self._key, Code.WRONG_SIZE, str(error), retryable=False)
        except (EngineError, TooManyFetches) as error:
            return Broke(self._key, Code.ENGINE, str(error), retryable=True)
        except WireError as error:
            return Broke(self._key, Code.ENGINE, f"the outputs cannot cross: {error}", retryable=False)

    def _work(self) -> Published:
        self.phases.begin(Phase.FETCH)
        try:
            if self._refused is not None:
                raise self._refused
            self.check()
            images = self._take_images(self._member.images)
            share, fast = self._ticket.share is not None, self._run.fast
            job = StageJob(self._run.role, self._member.params, images, share=share, fast=fast, partner=self._partner)
            reservation = self._reserve(0 if self._helps else self._plant.engine.output_bound(job))
            try:
                inputs = self._take(self._member.inputs)
                if self._member.resume is not None:
                    self._resumed = self._take((self._member.resume,))
                    job = replace(job, resume=self._resumed)
                self._plant.post(InputsFetched(self._key))
                result = self._compute(self._plant.engine.prepare(job, inputs))
                outputs = self._publish(result, reservation)
            finally:
                self._plant.store.close(reservation)
        finally:
            self.phases.end()
        timings = self.phases.timings(self._plant.engine.peak_bytes())
        return Published(self._key, outputs, timings, *self._prompt, self._rewritten)

    def _surrendered(self, values: NamedValues | None) -> Surrendered:
        """Where the store has no room for it, all steps are lost, as they are where it cannot cross."""
        step, output = None if values is None else values.get(STEP), None
        try:
            bundle = pack(values) if values is not None else None
            reservation = None if bundle is None else self._plant.store.reserve(self._run.role, bundle.total_bytes)
        except (OutputTooLarge, WireError) as error:
            log.warning("%s: its steps are lost, as they cannot be handed over: %s", self.name, error)
            bundle = reservation = None
        if bundle is not None and reservation is not None:
            handle = self._plant.store.publish(reservation, bundle)
            self._plant.store.close(reservation)
            output = Output(port=Role.DIT, handle=handle, nbytes=bundle.total_bytes)
        timings = self.phases.timings(self._plant.engine.peak_bytes())
        return Surrendered(self._key, step if output is not None and isinstance(step, int) else 0, output, timings)

    def _begin_fetches(self) -> None:
        resumed = [] if self._member.resume is None else [self._member.resume]
        for ref in (*self._member.images.values(), *self._member.inputs, *resumed):
            fetch = self._fetches[ref.handle] = self._plant.consumer.fetch(ref, self._deadline - monotonic())
            if self._member.traceparent and not self._plant.consumer.holds(ref.handle):
                self._transfers.watch(ref, fetch)

    def _take_images(self, refs: Mapping[str, InputRef]) -> Mapping[str, bytes]:
        values = {name: self._take((ref,)).get("image") for name, ref in refs.items()}
        for name, value in values.items():
            if not isinstance(value, bytes):
                raise _InputsLost([InputLost(refs[name].handle, Loss.MALFORMED, f"no picture in the bundle of {name}")])
        return {name: value for name, value in values.items() if isinstance(value, bytes)}

    def _take(self, refs: tuple[InputRef, ...]) -> dict[str, Value]:
        """Wait for these and merge their values. Raises ``_InputsLost`` or ``CancelledError``."""
        fetches = {ref.handle: self._fetches[ref.handle] for ref in refs}
        waited = list(fetches.values())
        if len(waited) > 1 and not all(fetch.done() for fetch in waited):  # to wait for several costs ten times as much
            waited = list(wait(waited, return_when=FIRST_EXCEPTION).done)
        failures = [fetch.exception() for fetch in waited]
        if lost := [failure for failure in failures if isinstance(failure, InputLost)]:
            raise _InputsLost(lost)
        merged: dict[str, Value] = {}
        for handle, fetch in fetches.items():
            merged.update(_unpacked(handle, fetch.result()))
        return merged

    def _reserve(self, nbytes: int) -> Reservation:
        with self._plant.room:
            while (reservation := self._plant.store.reserve(self._run.role, nbytes)) is None:
                if self._stopped or self._hands_over:
                    raise JobCancelled
                self._plant.room.wait()
        return reservation

    def _compute(self, prepared: Prepared) -> Outputs:
        self._plant.baton.line_up(self._ticket)
        try:
            self._plant.post(InputsHere(self._key))
            self.phases.begin(Phase.WAIT)
            self._plant.baton.take(self._ticket)
            self._plant.post(DeviceTaken(self._key))
            self.check()
            self._meter.start(monotonic())
            self.phases.begin(Phase.COMPUTE)
            result = self._result(prepared)
            if not self._is_computed:
                self.device_done()
        finally:
            if not self._is_computed:  # of a job that fails nothing follows for which to keep the device
                self._plant.baton.leave(self._ticket)
        self.check()
        return result

    def _result(self, prepared: Prepared) -> Outputs:
        try:
            return prepared(self)
        except PartnerLeft as left:
            if left.steps < 2:
                raise EngineError("the server that was to be helped with its guided steps gave no answer") from None
            return {}  # as when the last step is done: nobody needs more of it

    def _publish(self, outputs: Outputs, reservation: Reservation) -> tuple[Output, ...]:
        with ExitStack() as undo:
            published = tuple(self._publish_port(port, values, reservation, undo) for port, values in outputs.items())
            self.check()
            undo.pop_all()
        return published

    def _publish_port(self, port: str, values: NamedValues, reservation: Reservation, undo: ExitStack) -> Output:
        bundle = pack(values)
        handle = self._plant.store.publish(reservation, bundle)
        undo.callback(self._plant.store.release, (handle,))
        return Output(port=port, handle=handle, nbytes=bundle.total_bytes)

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


def _about(member: Member, role: Role) -> Mapping[str, str]:
    span = named_by(member.traceparent)
    traced = {"trace_id": f"{span.trace_id:032x}", "span_id": f"{span.span_id:016x}"} if span.is_valid else {}
    return {"request_id": member.request, "stage": role.value} | traced


def _company(begin: Begin, plant: Plant) -> tuple[Work | None, int]:
    """With whom the job may share the device, and how many may at most. What preempts others wants it for itself."""
    most, params = plant.together.get(begin.run.role, 1), begin.member.params
    guider = params.guider
    changes_layers = guider is not None and GUIDERS[guider.name].changes_layers
    if not begin.run.share or begin.run.preempt or most == 1 or changes_layers:
        return None, 1
    scale = plant.default_guidance if params.guidance_scale is None else params.guidance_scale
    is_guided = (scale or 0.0) > 1.0  # its steps have twice the calls
    asked = params.workflow, params.width, params.height, is_guided, params.adapters, guider
    return (plant.model, begin.run.role, *asked), most


def _urgency(run: Run) -> Urgency:
    if run.preempt:
        return Urgency.PREEMPTING
    return Urgency.PREVIEW if run.preview else Urgency.NORMAL
