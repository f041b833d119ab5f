"""The attempts on this server, from ``Run`` to the last word on each. Pure: no thread, socket or clock."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from stage_server.runtime.events import (
    Begin,
    Broke,
    Computed,
    DeviceTaken,
    DeviceYielded,
    Drop,
    Effect,
    InputsFetched,
    InputsHere,
    JobEvent,
    JobKey,
    Previewed,
    Published,
    Send,
    Stepped,
    Stop,
    Stopped,
    Surrender,
    Surrendered,
)
from wire.errors import Code
from wire.to_gateway import (
    Fetched,
    HandedOver,
    Paused,
    PreviewMade,
    Progress,
    StageCancelled,
    StageDone,
    StageFailed,
    Started,
)
from wire.to_stage import Run
from wire.types import Epoch, Handle, Role


class State(StrEnum):
    FETCHING = "fetching"
    READY = "ready"
    RUNNING = "running"
    PAUSED = "paused"
    PUBLISHING = "publishing"
    STOPPING = "cancelling"
    """Its thread was told to end and has not yet."""
    GONE = "gone"


TRANSITIONS: dict[State, dict[type[JobEvent], State]] = {
    State.FETCHING: {
        InputsFetched: State.FETCHING,
        InputsHere: State.READY,
        Broke: State.GONE,
        Surrendered: State.GONE,
    },
    State.READY: {DeviceTaken: State.RUNNING, Broke: State.GONE, Surrendered: State.GONE},
    State.RUNNING: {
        Stepped: State.RUNNING,
        Previewed: State.RUNNING,
        DeviceYielded: State.PAUSED,
        Computed: State.PUBLISHING,
        Broke: State.GONE,
        Surrendered: State.GONE,
    },
    State.PAUSED: {DeviceTaken: State.RUNNING, Broke: State.GONE, Surrendered: State.GONE},
    State.PUBLISHING: {Published: State.GONE, Broke: State.GONE},
    State.STOPPING: {
        InputsFetched: State.STOPPING,
        InputsHere: State.STOPPING,
        DeviceTaken: State.STOPPING,
        DeviceYielded: State.STOPPING,
        Stepped: State.STOPPING,
        Previewed: State.STOPPING,
        Computed: State.STOPPING,
        Published: State.GONE,
        Broke: State.GONE,
        Stopped: State.GONE,
        Surrendered: State.GONE,
    },
}
"""A job in any state but ``STOPPING`` and ``GONE`` can be stopped."""


class LastWord(StrEnum):
    """What the gateway hears when a job that was told to stop has stopped."""

    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    ABANDONED = "abandoned"
    """Nothing: the gateway that asked for it is no more."""


@dataclass(slots=True)
class Job:
    key: JobKey
    role: Role
    epoch: Epoch
    deadline: float
    state: State = State.FETCHING
    last_word: LastWord | None = None
    stopped_in: State | None = None


class Jobs:
    """Accepted attempts that have not had their last word, and the outputs of those that had."""

    def __init__(self) -> None:
        self._jobs: dict[JobKey, Job] = {}
        self._arrivals = 0
        self._outputs: dict[Epoch, tuple[Handle, ...]] = {}

    # --- what is here ---

    def under_way(self, state: State | None = None) -> Mapping[Role, int]:
        """Attempts per role that has some, or those of them in one state."""
        found: dict[Role, int] = {}  # a Counter takes ten times as long, and this is asked after every event
        for job in self._jobs.values():
            if state is None or job.state is state:
                found[job.role] = found.get(job.role, 0) + 1
        return found

    def epochs(self) -> tuple[Epoch, ...]:
        return tuple(job.epoch for job in self._jobs.values() if job.last_word in (None, LastWord.DEADLINE))

    def handles(self) -> tuple[Handle, ...]:
        return tuple(handle for handles in self._outputs.values() for handle in handles)

    def states(self) -> dict[JobKey, State]:
        return {key: job.state for key, job in self._jobs.items()}

    def next_deadline(self) -> float | None:
        return min([job.deadline for job in self._jobs.values() if job.last_word is None], default=None)

    # --- what the gateway asks ---

    def begin(self, run: Run, now: float) -> list[Effect]:
        self._arrivals += 1
        key = JobKey(self._arrivals)
        deadline = now + run.remaining_seconds
        (member,) = run.members
        self._jobs[key] = Job(key, run.role, member.epoch, deadline)
        return [Begin(key, run, deadline)]

    def cancel(self, epochs: tuple[Epoch, ...]) -> list[Effect]:
        """An epoch of which nothing is here is confirmed as well: the gateway may have missed our word on it."""
        return [effect for epoch in epochs for effect in self._cancel_one(epoch)]

    def hand_over(self, epochs: tuple[Epoch, ...]) -> list[Effect]:
        """Of dit jobs. One that has been computed, or is over, needs no other server: its last word is the answer."""
        left = [job for job in self._jobs.values() if job.epoch in epochs and job.role is Role.DIT]
        return [Surrender(job.key) for job in left if job.state not in (State.PUBLISHING, State.STOPPING)]

    def release(self, handles: tuple[Handle, ...]) -> list[Effect]:
        gone = set(handles)
        for epoch, held in list(self._outputs.items()):
            self._keep(epoch, tuple(handle for handle in held if handle not in gone))
        return [Drop(handles)]

    def abandon(self) -> list[Effect]:
        """The gateway that wanted all this is no more."""
        effects: list[Effect] = [Drop(self.handles())] if self._outputs else []
        self._outputs.clear()
        for job in self._jobs.values():
            effects += self._stop(job, LastWord.ABANDONED)
            job.last_word = LastWord.ABANDONED
        return effects

    def expire(self, now: float) -> list[Effect]:
        late = [job for job in self._jobs.values() if job.deadline <= now]
        return [effect for job in late for effect in self._stop(job, LastWord.DEADLINE)]

    def give_up(self, key: JobKey, message: str) -> list[Effect]:
        """Its thread will not end: whoever waits for it need not wait on. This server has to end now."""
        job = self._jobs.pop(key)
        return list(self._last_word(job, Broke(key, Code.STUCK, message, retryable=True)))

    def name(self, key: JobKey) -> str:
        """As people know it."""
        job = self._jobs[key]
        return f"the {job.role} job that was {job.stopped_in or job.state}"

    # --- what its threads report ---

    def on(self, event: JobEvent) -> list[Effect]:
        job = self._jobs[event.job]
        following = TRANSITIONS[job.state].get(type(event))
        if following is None:
            raise AssertionError(f"job {job.key} is {job.state}: {type(event).__name__} cannot happen")
        job.state = following
        if following is State.GONE:
            del self._jobs[job.key]
            return list(self._last_word(job, event))
        if isinstance(event, Previewed):
            return self._previewed(job, event)
        return [] if following is State.STOPPING else list(_news(job, event))

    # --- inside ---

    def _previewed(self, job: Job, event: Previewed) -> list[Effect]:
        epoch, output = job.epoch, event.output
        if job.state is State.STOPPING:
            return [Drop((output.handle,))]
        self._keep(epoch, (*self._outputs.get(epoch, ()), output.handle))
        return [Send(PreviewMade(epoch=epoch, index=event.index, step=event.step, steps=event.steps, output=output))]

    def _cancel_one(self, epoch: Epoch) -> list[Effect]:
        job = next((job for job in self._jobs.values() if job.epoch == epoch), None)
        if job is None:
            return [*self._drop_outputs(epoch), Send(StageCancelled(epoch=epoch))]
        effects = self._stop(job, LastWord.CANCELLED)
        if job.last_word is LastWord.DEADLINE:
            job.last_word = LastWord.CANCELLED
        return effects

    def _stop(self, job: Job, last_word: LastWord) -> list[Effect]:
        if job.state is State.STOPPING:
            return []  # the first reason stands: its last word has been decided
        job.stopped_in, job.state, job.last_word = job.state, State.STOPPING, last_word
        return [*self._drop_outputs(job.epoch), Stop(job.key)]

    def _drop_outputs(self, epoch: Epoch) -> list[Effect]:
        """All that an attempt has left so far, previews and results."""
        handles = self._outputs.pop(epoch, ())
        return [Drop(handles)] if handles else []

    def _keep(self, epoch: Epoch, handles: tuple[Handle, ...]) -> None:
        self._outputs[epoch] = handles
        if not handles:
            del self._outputs[epoch]

    def _last_word(self, job: Job, event: JobEvent) -> Iterator[Effect]:
        epoch = job.epoch
        match event:
            case Published(outputs=outputs) if job.last_word is None:
                self._keep(epoch, (*self._outputs.get(epoch, ()), *(output.handle for output in outputs)))
                yield Send(
                    StageDone(
                        epoch=epoch,
                        outputs=outputs,
                        timings=event.timings,
                        prompt_tokens=event.prompt_tokens,
                        prompt_dropped=event.prompt_dropped,
                        prompt=event.prompt,
                    )
                )
            case Published(outputs=outputs):
                yield Drop(tuple(output.handle for output in outputs))
                yield from _unfinished(job)
            case Surrendered(step=step, output=output, timings=timings) if job.last_word is None:
                if output is not None:
                    self._keep(epoch, (*self._outputs.get(epoch, ()), output.handle))
                yield Send(HandedOver(epoch=epoch, step=step, output=output, timings=timings))
            case Surrendered(output=output):
                if output is not None:
                    yield Drop((output.handle,))
                yield from _unfinished(job)
            case Broke() if job.last_word is None:
                yield from self._drop_outputs(epoch)
                yield Send(_failure(epoch, event.code, event.message, event.retryable, event.lost, event.unreached))
            case _:
                yield from _unfinished(job)


def _news(job: Job, event: JobEvent) -> Iterator[Effect]:
    epoch = job.epoch
    match event:
        case InputsHere():
            yield Send(Fetched(epoch=epoch))
        case DeviceTaken():
            yield Send(Started(epoch=epoch))
        case DeviceYielded():
            yield Send(Paused(epoch=epoch, step=event.step))
        case Stepped():
            yield Send(Progress(epoch=epoch, step=event.step, steps=event.steps, step_seconds=event.step_seconds))
        case _:
            pass


def _unfinished(job: Job) -> Iterator[Effect]:
    """The last word on a job whose result is not wanted any more."""
    match job.last_word:
        case LastWord.ABANDONED:
            pass
        case LastWord.DEADLINE:
            message = f"the deadline passed while the {job.role} job was {job.stopped_in}"
            yield Send(_failure(job.epoch, Code.DEADLINE, message, retryable=False))
        case _:
            yield Send(StageCancelled(epoch=job.epoch))


def _failure(
    epoch: Epoch,
    code: Code,
    message: str,
    retryable: bool,
    lost: tuple[Handle, ...] = (),
    unreached: tuple[Handle, ...] = (),
) -> StageFailed:
    return StageFailed(
        epoch=epoch, code=code, message=message, retryable=retryable, lost_inputs=lost, unreached=unreached
    )
