"""The scheduler's actions as messages to stage servers: what it names by ids gets parameters, addresses and a trace."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Mapping
from hashlib import blake2b

import msgspec

from gateway.service.attempts import Attempts, Record
from gateway.service.embeddings import Embeddings, real
from scheduler import actions as act
from scheduler.spec import Input
from wire import to_stage
from wire.bounded import MAX_SECONDS
from wire.to_gateway import Hello
from wire.to_stage import Half, InputRef, ToStage, TryPeer
from wire.types import Epoch, Handle, JobId, Role, ServerId

log = logging.getLogger(__name__)


class Instructions:
    """Reads ``servers`` (as they introduced themselves) and ``record`` (of the request that owns a job), which the
    dispatcher keeps; each ``Run`` opens its attempts in ``attempts``. What ``embeddings`` keeps is not released.
    """

    def __init__(
        self,
        send: Callable[[ServerId, ToStage], None],
        servers: Mapping[ServerId, Hello],
        record: Callable[[JobId], Record],
        attempts: Attempts,
        embeddings: Embeddings,
    ) -> None:
        self._send = send
        self._servers = servers
        self._record = record
        self._attempts = attempts
        self._embeddings = embeddings
        self._secret = secrets.token_bytes(32)

    def carry_out(self, action: act.Action, now: float) -> None:
        """Actions that are messages to stage servers."""
        match action:
            case act.Run(server=server):
                self._send(server, self._run(action, now))
            case act.Help(server=server):
                self._send(server, self._help(action, now))
            case act.Cancel(server=server, epochs=epochs):
                self._send(server, to_stage.Cancel(epochs=epochs))
            case act.HandOver(server=server, epochs=epochs):
                log.info("%s hands attempt %s over: %s", server, epochs[0].counter, action.reason)
                self._send(server, to_stage.HandOver(epochs=epochs))
            case act.Release(server=server, handles=handles):
                if dropped := self._embeddings.released(server, handles):
                    self._send(server, to_stage.Release(handles=dropped))
            case act.AssignRoles(server=server, epoch=epoch, roles=roles):
                ordered = tuple(role for role in Role if role in roles)
                log.info("%s shall hold %s: %s", server, ", ".join(ordered), action.reason)
                self._send(server, to_stage.AssignRoles(epoch=epoch, roles=ordered))
            case act.Preload(server=server, roles=roles):
                self._send(server, to_stage.Preload(roles=tuple(role for role in Role if role in roles)))
            case _:
                raise AssertionError(f"an action that nobody carries out: {action}")

    def reference(self, source: Input) -> InputRef:
        """Where an output can be fetched."""
        holder = self._servers[source.holder]
        return InputRef(
            handle=real(source.handle),
            endpoint=holder.data_endpoint,
            nbytes=source.nbytes,
            public_key=holder.public_key,
            relays=holder.relays,
            server=source.holder if holder.relays else ServerId(""),
        )

    def peer(self, holder: ServerId) -> TryPeer:
        """The order to try whether ``holder`` can be reached."""
        hello = self._servers[holder]
        return TryPeer(server=holder, endpoint=hello.data_endpoint, public_key=hello.public_key, relays=hello.relays)

    def _half(self, leader: Epoch, partner: ServerId, *, leads: bool) -> Half:
        """The halves of the attempt ``leader``, as one of the two sees them; nobody else knows the handles."""
        name = f"{leader.gateway}/{leader.counter}".encode()
        of_leader, of_other = (
            Handle(blake2b(name, key=self._secret, person=person, digest_size=16).hexdigest())
            for person in (b"leader", b"other")
        )
        mine, theirs = (of_leader, of_other) if leads else (of_other, of_leader)
        return Half(handle=mine, partner=self.reference(Input(theirs, partner, 0)), leads=leads)

    def _help(self, action: act.Help, now: float) -> to_stage.Run:
        """No attempt of its own in the records: what comes of it, and what it takes, is part of the one it helps."""
        self._attempts.help(action.epoch, action.server, action.leader)
        graph = self._record(action.job).graph
        job = graph.jobs[action.job]
        member = to_stage.Member(
            epoch=action.epoch,
            params=msgspec.structs.replace(job.params, previews=0),
            inputs=tuple(self.reference(source) for source in action.inputs),
            images=dict(job.uploads),
            request=graph.spec.id,
            half=self._half(action.leader, action.partner, leads=False),
        )
        return to_stage.Run(
            role=Role.DIT,
            members=(member,),
            remaining_seconds=max(0.0, action.deadline - now),
            fast=not graph.spec.exact,
            predicted_seconds=min(action.predicted_seconds, MAX_SECONDS),
        )

    def _run(self, action: act.Run, now: float) -> to_stage.Run:
        record = self._record(action.job)
        job = record.graph.jobs[action.job]
        resume = self.reference(action.resume) if action.resume is not None else None
        traceparent = self._attempts.begin(
            action.epoch, record, job, action.server, now, share=action.share, resumes=resume is not None
        )
        member = to_stage.Member(
            epoch=action.epoch,
            params=job.params,
            inputs=tuple(self.reference(source) for source in action.inputs),
            traceparent=traceparent,
            images=dict(job.uploads),
            request=record.graph.spec.id,
            resume=resume,
            half=self._half(action.epoch, action.partner, leads=True) if action.partner else None,
        )
        return to_stage.Run(
            role=action.role,
            members=(member,),
            remaining_seconds=max(0.0, action.deadline - now),
            preempt=action.preempt,
            preview=job.spec.optional,
            keep_seconds=action.keep_seconds,
            share=action.share,
            predicted_seconds=min(action.predicted_seconds, MAX_SECONDS),
            fast=not record.graph.spec.exact,
        )
