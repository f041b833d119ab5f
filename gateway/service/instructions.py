"""The scheduler's actions as messages to stage servers: what it names by ids gets parameters, addresses and a trace."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from gateway.service.attempts import Attempts, Record
from scheduler import actions as act
from scheduler.spec import Input
from wire import to_stage
from wire.to_gateway import Hello
from wire.to_stage import InputRef, ToStage, TryPeer
from wire.types import JobId, Role, ServerId

log = logging.getLogger(__name__)


class Instructions:
    """Reads ``servers`` (as they introduced themselves) and ``record`` (of the request that owns a job), which the
    dispatcher keeps; each ``Run`` opens its attempts in ``attempts``.
    """

    def __init__(
        self,
        send: Callable[[ServerId, ToStage], None],
        servers: Mapping[ServerId, Hello],
        record: Callable[[JobId], Record],
        attempts: Attempts,
    ) -> None:
        self._send = send
        self._servers = servers
        self._record = record
        self._attempts = attempts

    def carry_out(self, action: act.Action, now: float) -> None:
        """Actions that are messages to stage servers."""
        match action:
            case act.Run(server=server):
                self._send(server, self._run(action, now))
            case act.Cancel(server=server, epochs=epochs):
                self._send(server, to_stage.Cancel(epochs=epochs))
            case act.Release(server=server, handles=handles):
                self._send(server, to_stage.Release(handles=handles))
            case act.AssignRoles(server=server, epoch=epoch, roles=roles):
                ordered = tuple(role for role in Role if role in roles)
                log.info("%s shall hold %s: %s", server, ", ".join(ordered), action.reason)
                self._send(server, to_stage.AssignRoles(epoch=epoch, roles=ordered))
            case _:
                raise AssertionError(f"an action that nobody carries out: {action}")

    def reference(self, source: Input) -> InputRef:
        """Where an output can be fetched."""
        holder = self._servers[source.holder]
        return InputRef(
            handle=source.handle, endpoint=holder.data_endpoint, nbytes=source.nbytes, public_key=holder.public_key
        )

    def peer(self, holder: ServerId) -> TryPeer:
        """The order to try whether ``holder`` can be reached."""
        hello = self._servers[holder]
        return TryPeer(server=holder, endpoint=hello.data_endpoint, public_key=hello.public_key)

    def _run(self, action: act.Run, now: float) -> to_stage.Run:
        jobs = [self._record(member.job).graph.jobs[member.job] for member in action.members]
        return to_stage.Run(
            role=action.role,
            members=tuple(self._member(action, member, now) for member in action.members),
            remaining_seconds=max(0.0, action.deadline - now),
            preempt=action.preempt,
            preview=all(job.spec.optional for job in jobs),
            keep_seconds=action.keep_seconds,
        )

    def _member(self, action: act.Run, member: act.Member, now: float) -> to_stage.Member:
        record = self._record(member.job)
        job = record.graph.jobs[member.job]
        traceparent = self._attempts.begin(member.epoch, record, job, action.server, now)
        return to_stage.Member(
            epoch=member.epoch,
            params=job.params,
            inputs=tuple(self.reference(source) for source in member.inputs),
            traceparent=traceparent,
            images=dict(job.uploads),
            request=record.graph.spec.id,
        )
