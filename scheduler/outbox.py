"""Collects the actions of one event, each stamped with its cause."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from scheduler import actions
from scheduler.actions import Action
from scheduler.roles.problem import Problem
from scheduler.spec import Input
from scheduler.state import Attempt, Help
from wire.types import Epoch, Handle, JobId, RequestId, Role, ServerId

if TYPE_CHECKING:
    from scheduler.policy import Verdict


class Outbox:
    """``cause`` is the number of the event in hand."""

    def __init__(self) -> None:
        self.cause = 0
        self._actions: list[Action] = []

    def drain(self) -> list[Action]:
        done, self._actions = self._actions, []
        return done

    def admit(self, request: RequestId, predicted_seconds: float, reason: str) -> None:
        self._add(actions.Admit(cause=self.cause, reason=reason, request=request, predicted_seconds=predicted_seconds))

    def reject(self, request: RequestId, verdict: Verdict) -> None:
        self._add(
            actions.Reject(
                cause=self.cause,
                reason=verdict.reason,
                request=request,
                retry_after_seconds=verdict.retry_after_seconds,
                predicted_seconds=verdict.predicted_seconds,
                code=verdict.code,
            )
        )

    def run(
        self,
        attempt: Attempt,
        inputs: tuple[Input, ...],
        reason: str,
        *,
        preempt: bool = False,
        keep_seconds: float = 0.0,
    ) -> None:
        job = attempt.job
        self._add(
            actions.Run(
                cause=self.cause,
                reason=reason,
                server=attempt.server.id,
                role=job.spec.role,
                job=job.spec.id,
                epoch=attempt.epoch,
                inputs=inputs,
                deadline=job.request.spec.deadline,
                preempt=preempt,
                keep_seconds=keep_seconds,
                share=attempt.share,
                predicted_seconds=attempt.predicted_seconds,
                resume=None if job.handed_over is None else job.handed_over.source,
                partner=ServerId("") if attempt.help is None else attempt.help.server.id,
            )
        )

    def help(self, help_: Help, inputs: tuple[Input, ...]) -> None:
        """The attempt was sent just before."""
        attempt, job = help_.attempt, help_.attempt.job
        alone = attempt.predicted_seconds
        self._add(
            actions.Help(
                cause=self.cause,
                reason=f"it has nothing to do, and {alone:.1f} s become {help_.share * alone:.1f} s",
                server=help_.server.id,
                epoch=help_.epoch,
                partner=attempt.server.id,
                leader=attempt.epoch,
                job=job.spec.id,
                inputs=inputs,
                deadline=job.request.spec.deadline,
                predicted_seconds=alone,
            )
        )

    def cancel(self, server: ServerId, epochs: Sequence[Epoch], reason: str) -> None:
        self._add(actions.Cancel(cause=self.cause, reason=reason, server=server, epochs=tuple(epochs)))

    def hand_over(self, server: ServerId, epochs: Sequence[Epoch], reason: str) -> None:
        self._add(actions.HandOver(cause=self.cause, reason=reason, server=server, epochs=tuple(epochs)))

    def release(self, server: ServerId, handles: Sequence[Handle], reason: str) -> None:
        self._add(actions.Release(cause=self.cause, reason=reason, server=server, handles=tuple(handles)))

    def fetch_result(self, request: RequestId, job: JobId, source: Input) -> None:
        self._add(
            actions.FetchResult(
                cause=self.cause, reason="the picture is ready", request=request, job=job, source=source
            )
        )

    def finish(self, request: RequestId) -> None:
        self._add(actions.Finish(cause=self.cause, reason="every picture was taken", request=request))

    def fail(self, request: RequestId, code: str, message: str) -> None:
        self._add(actions.Fail(cause=self.cause, reason=code, request=request, code=code, message=message))

    def assign_roles(self, server: ServerId, epoch: Epoch, roles: frozenset[Role], reason: str) -> None:
        self._add(actions.AssignRoles(cause=self.cause, reason=reason, server=server, epoch=epoch, roles=roles))

    def preload(self, server: ServerId, roles: frozenset[Role], reason: str) -> None:
        self._add(actions.Preload(cause=self.cause, reason=reason, server=server, roles=roles))

    def try_peer(self, fetcher: ServerId, holder: ServerId, reason: str) -> None:
        self._add(actions.TryPeer(cause=self.cause, reason=reason, fetcher=fetcher, holder=holder))

    def set_aside(self, server: ServerId, roles: frozenset[Role], reason: str) -> None:
        self._add(actions.SetAside(cause=self.cause, reason=reason, server=server, roles=roles))

    def solve_plan(self, problem: Problem, reason: str) -> None:
        self._add(actions.SolvePlan(cause=self.cause, reason=reason, problem=problem))

    def _add(self, action: Action) -> None:
        self._actions.append(action)
