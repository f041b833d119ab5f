"""The graph of every request: what each job needs, what it left where, and what must run again after a loss.

It knows requests, jobs and outputs. Which server runs what is the matcher's affair.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Protocol

from scheduler.outbox import Outbox
from scheduler.policy import Policies
from scheduler.spec import IMAGE_PORT, Input, JobSpec, Output, RequestSpec
from scheduler.state import Attempt, HandedOver, Job, Request, Server
from scheduler.transitions import JobState
from scheduler.view import View
from wire.types import Epoch, Handle, JobId, ServerId


class Waiting(Protocol):
    """Where runnable jobs go."""

    def enqueue(self, job: Job, now: float) -> None: ...

    def dequeue(self, job: Job) -> None: ...


class Ledger:
    def __init__(self, view: View, outbox: Outbox, waiting: Waiting, policies: Policies):
        self._view = view
        self._outbox = outbox
        self._waiting = waiting
        self._policies = policies
        self._arrivals = 0

    # --- requests -----------------------------------------------------------------------------------------------------

    def draft(self, spec: RequestSpec, now: float) -> Request:
        """Records of a request that is not yet admitted. Raises ``ValueError`` on a name that is in use."""
        if spec.id in self._view.live:
            raise ValueError(f"request {spec.id} is already under way")
        request = Request(spec, now, self._arrivals)
        for job_spec in spec.jobs:
            if job_spec.id in self._view.jobs:
                raise ValueError(f"job {job_spec.id} is already under way")
            job = Job(job_spec, request)
            made = job_spec.made
            holder = self._view.servers.get(made.holder) if made is not None else None
            if made is not None and holder is not None and job_spec.role not in holder.unread:
                job.state, job.outputs, job.holder = JobState.DONE, made.outputs, made.holder
            request.jobs[job_spec.id] = job
            for need in job_spec.needs:
                request.jobs[need].readers.append(job)
        return request

    def open(self, request: Request, now: float) -> None:
        self._arrivals += 1
        self._view.live[request.spec.id] = request
        self._view.jobs |= request.jobs
        for job in request.jobs.values():
            if job.holder is None:
                self._require(job, now)
                continue
            for output in job.outputs:
                self._view.servers[job.holder].holds[output.handle] = job

    def end(self, request: Request, reason: str) -> None:
        """Cancel and release all that is left of a request."""
        request.is_over = True
        for observer in self._policies.observers:
            observer.over(request, finished=request.untaken == 0)
        del self._view.live[request.spec.id]
        cancels: defaultdict[ServerId, list[Epoch]] = defaultdict(list)
        releases: defaultdict[ServerId, list[Handle]] = defaultdict(list)
        for job in request.jobs.values():
            del self._view.jobs[job.spec.id]
            self._waiting.dequeue(job)
            for holder, handles in self._left_behind(job):
                releases[holder] += handles
            if job.attempt is not None:
                cancels[job.attempt.server.id].append(job.attempt.epoch)
                job.become(JobState.CANCELLING)
            elif job.state is not JobState.FAILED:
                job.become(JobState.CANCELLED)
        here = self._view.servers  # not all are while the loss of one is being worked off
        for server in [server for server in cancels if server in here]:
            self._outbox.cancel(server, cancels[server], reason)
        for server in [server for server in releases if server in here]:
            self._outbox.release(server, releases[server], reason)
        request.dissolve()

    def _left_behind(self, job: Job) -> Iterator[tuple[ServerId, list[Handle]]]:
        """Outputs of it, and of what it reads besides, which are forgotten here."""
        if job.shown is not None:
            yield job.shown.holder, self._forget_shown(job)
        if job.handed_over is not None:
            yield job.handed_over.source.holder, self._forget_handed_over(job)
        if job.holder is not None and job.outputs:
            yield job.holder, self._forget_outputs(job)

    def give_up(self, job: Job, code: str, message: str) -> None:
        """No further attempt of a committed job: its request fails."""
        job.attempt = None
        job.become(JobState.FAILED)
        self.fail(job.request, code, message)

    def fail(self, request: Request, code: str, message: str) -> None:
        self._outbox.fail(request.spec.id, code, message)
        self.end(request, code)

    # --- outputs ------------------------------------------------------------------------------------------------------

    def done(self, attempt: Attempt, outputs: tuple[Output, ...], now: float) -> None:
        job, server = attempt.job, attempt.server
        self.forget_handed_over(job)
        job.become(JobState.DONE)
        job.attempt = None
        job.outputs, job.holder = outputs, server.id
        for output in outputs:
            server.holds[output.handle] = job
        for reader in job.readers:
            self._supplied(reader, job, now)
        if job.shown is not None:
            shown_by = job.shown.holder
            self._outbox.release(shown_by, self._forget_shown(job), "it was decoded")
        if job.spec.is_final or job.spec.optional:
            self._offer(job, now)

    def taken(self, job: Job, now: float) -> None:
        """The gateway has the picture: nothing that only led to it is kept."""
        job.taken = True
        request = job.request
        if job.spec.optional:
            self.drop(job, "it was taken", now)
            return
        if request.untaken == 0:
            self._outbox.finish(request.spec.id)
            self.end(request, "finished")
            return
        for each in request.jobs.values():
            if each.holder is not None and each.outputs and each.is_settled:
                holder = each.holder
                self._outbox.release(holder, self._forget_outputs(each), "every picture made of it was taken")

    def inputs(self, job: Job) -> tuple[Input, ...]:
        """What a runnable job reads, and where it lies. A port that an upstream job left empty has no input."""
        found = []
        for need in job.spec.needs:
            source = job.request.jobs[need]
            output = source.output(job.spec.role)
            if output is not None and source.holder is not None:
                found.append(Input(output.handle, source.holder, output.nbytes))
        return tuple(found) if job.shown is None else (*found, job.shown)

    def lost(self, jobs: Iterable[Job], now: float) -> None:
        """The outputs of these jobs are gone: run again those that somebody still needs, and nothing else.

        A holder that lives may still have what could not be fetched from it, and is told to drop it.
        """
        gone = list(dict.fromkeys(jobs))
        for job in gone:
            if job.holder is not None:
                holder = job.holder
                self._outbox.release(holder, self._forget_outputs(job), "it could not be fetched")
        for job in gone:
            if not job.request.is_over and job.state is JobState.DONE:
                if job.spec.optional:
                    self.drop(job, "its picture was lost", now)
                elif self._is_wanted(job):
                    self._run_again(job, now)
                else:
                    self._drop_unread(job, now)

    def relieve(self, server: Server, now: float) -> None:
        """One that leaves need not stay for outputs that all have fetched who were to read them: should one of these
        fail, they are made again.
        """
        for job in dict.fromkeys(server.holds.values()):
            if not self._is_wanted(job):
                self._outbox.release(server.id, self._forget_outputs(job), "its server leaves, and all have read it")
                self._drop_unread(job, now)

    def _drop_unread(self, source: Job, now: float) -> None:
        """Nothing is run again for the sake of previews."""
        for reader in list(source.readers):
            if reader.spec.optional and reader.state in (JobState.WAITING, JobState.FETCHING):
                self.drop(reader, "an input was lost", now)

    def requeue(self, job: Job, now: float) -> None:
        """Its attempt is over without a result, and with it what it has shown, unless it can go on from a step."""
        if job.handed_over is None:
            self._begin_anew(job, now)
        job.attempt = None
        job.become(JobState.WAITING)
        self._require(job, now)

    def abandon(self, job: Job, reason: str, now: float) -> None:
        """Give up a committed attempt on a server that lives; a late result of it is released when it comes."""
        attempt = job.attempt
        if attempt is not None and attempt.epoch in attempt.server.attempts and attempt.server.id in self._view.servers:
            self._outbox.cancel(attempt.server.id, (attempt.epoch,), reason)
        self.requeue(job, now)

    # --- jobs that go on elsewhere ------------------------------------------------------------------------------------

    def handed_over(self, attempt: Attempt, step: int, output: Output, now: float) -> None:
        """Its attempt is over after ``step``. What it has shown stays."""
        job, server = attempt.job, attempt.server
        self.forget_handed_over(job)
        job.handed_over = HandedOver(step, Input(output.handle, server.id, output.nbytes), server.spec)
        server.handed_over[output.handle] = job
        job.moves += 1
        job.goes_on_after(step)
        if job.request.spec.exact:
            others = self._view.serving(job.request.spec.model, job.spec.role).values()
            job.avoid |= {other.id for other in others if not other.spec.computes_as(server.spec)}
        self.requeue(job, now)

    def settle(self, job: Job, server: Server, now: float) -> None:
        """Before it is committed: one that must be exact begins anew where the steps would not be the same."""
        done = job.handed_over
        able = done is not None and server.spec.software
        if done is not None and (not able or (job.request.spec.exact and not server.spec.computes_as(done.by))):
            self.forget_handed_over(job)
            self._begin_anew(job, now)

    def forget_handed_over(self, job: Job) -> None:
        """It was fetched, or is of no use. Its holder may drop it."""
        if job.handed_over is not None:
            holder = job.handed_over.source.holder
            self._outbox.release(holder, self._forget_handed_over(job), "nobody goes on from it any more")

    def lost_handed_over(self, jobs: Iterable[Job], now: float) -> None:
        """Their holder is gone. Who fetches from it just now will tell how that went."""
        for job in jobs:
            job.handed_over = None
            if job.state is JobState.WAITING:
                self._waiting.dequeue(job)
                self._begin_anew(job, now)
                self._require(job, now)

    def _begin_anew(self, job: Job, now: float) -> None:
        job.goes_on_after(0)
        for preview in [other for other in job.request.jobs.values() if other.preview_of is job]:
            self.drop(preview, "the denoising starts over", now)

    def _forget_handed_over(self, job: Job) -> list[Handle]:
        done, job.handed_over = job.handed_over, None
        if done is None:
            return []
        server = self._view.servers.get(done.source.holder)
        if server is not None:
            server.handed_over.pop(done.source.handle, None)
        return [done.source.handle]

    # --- previews -----------------------------------------------------------------------------------------------------

    def add_preview(self, spec: JobSpec, source: Job, shown: Input, now: float) -> None:
        """A job that decodes what ``source`` has shown on its way: it comes into being with its input, and goes at the
        first obstacle (``drop``)."""
        request = source.request
        needs = [request.jobs[need] for need in spec.needs]
        if any(need.holder is None for need in needs):
            self._outbox.release(shown.holder, (shown.handle,), "what its decoding needs besides is lost")
            return
        job = Job(spec, request, preview_of=source, shown=shown)
        policy = self._policies.previews
        job.is_kept = policy is not None and policy.keeps(job, self._view, now)
        request.jobs[spec.id] = self._view.jobs[spec.id] = job
        for reader in source.readers if job.is_kept else ():
            reader.missing.add(spec.id)
        self._view.servers[shown.holder].shown[shown.handle] = job
        for need in needs:
            need.readers.append(job)
        self._waiting.enqueue(job, now)

    def drop(self, job: Job, reason: str, now: float) -> None:
        """Leave nothing of a preview. The finished picture need not wait for it any more."""
        self._waiting.dequeue(job)
        for need in job.spec.needs:
            job.request.jobs[need].readers.remove(job)
        for holder, handles in self._left_behind(job):
            if holder in self._view.servers:
                self._outbox.release(holder, handles, reason)
        attempt = job.attempt
        if attempt is not None and attempt.epoch in attempt.server.attempts:
            self._outbox.cancel(attempt.server.id, (attempt.epoch,), reason)
            job.become(JobState.CANCELLING)
        else:
            job.become(JobState.CANCELLED)
            job.attempt = None
        del job.request.jobs[job.spec.id], self._view.jobs[job.spec.id]
        for reader in job.preview_of.readers if job.is_kept and job.preview_of is not None else ():
            self._supplied(reader, job, now)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _require(self, job: Job, now: float) -> None:
        """Queue a waiting job, or note what it waits for; what was lost of that is run again."""
        self._waiting.dequeue(job)
        sources = [job.request.jobs[need] for need in job.spec.needs]
        job.missing = {source.spec.id for source in sources if source.holder is None} | kept_before(job)
        for source in sources:
            if source.holder is None and source.state is JobState.DONE:
                self._run_again(source, now)
        if job.is_runnable:
            self._waiting.enqueue(job, now)

    def _run_again(self, job: Job, now: float) -> None:
        job.become(JobState.WAITING)
        job.goes_on_after(0)
        for reader in [reader for reader in job.readers if reader.spec.optional]:
            self.drop(reader, "an input was lost", now)
        for reader in job.readers:
            if reader.state is JobState.WAITING:
                self._waiting.dequeue(reader)
                reader.missing.add(job.spec.id)
        self._require(job, now)
        for reader in job.readers:
            if reader.state is JobState.FETCHING:
                self.abandon(reader, "an input was lost while it was fetched", now)

    def _is_wanted(self, job: Job) -> bool:
        if job.spec.is_final:
            return not job.taken
        promised = (reader for reader in job.readers if not reader.spec.optional)
        return any(reader.state in (JobState.WAITING, JobState.FETCHING) for reader in promised)

    def _supplied(self, reader: Job, source: Job, now: float) -> None:
        reader.missing.discard(source.spec.id)
        if reader.is_runnable and reader.queued_key is None:
            self._waiting.enqueue(reader, now)

    def _offer(self, job: Job, now: float) -> None:
        picture = job.output(IMAGE_PORT)
        if picture is None or job.holder is None:
            without = f"the {job.spec.role} finished without a picture"
            if job.spec.optional:
                self.drop(job, without, now)
                return
            self.fail(job.request, "engine_error", without)
            return
        self._outbox.fetch_result(job.request.spec.id, job.spec.id, Input(picture.handle, job.holder, picture.nbytes))

    def _forget_shown(self, job: Job) -> list[Handle]:
        shown, job.shown = job.shown, None
        if shown is None:
            return []
        server = self._view.servers.get(shown.holder)
        if server is not None:
            server.shown.pop(shown.handle, None)
        return [shown.handle]

    def _forget_outputs(self, job: Job) -> list[Handle]:
        handles = [output.handle for output in job.outputs]
        server = self._view.servers.get(job.holder) if job.holder is not None else None
        if server is not None:
            for handle in handles:
                server.holds.pop(handle, None)
        job.outputs, job.holder = (), None
        return handles


def kept_before(final: Job) -> set[JobId]:
    """Previews for which this finished picture waits."""
    kept = (job for job in final.request.jobs.values() if job.is_kept)
    return {job.spec.id for job in kept if job.preview_of is not None and final in job.preview_of.readers}
