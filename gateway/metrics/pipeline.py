"""Counts what the scheduler is told and decides. Called for every event, so most of them must cost next to nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from gateway.metrics.instruments import Instruments
from scheduler import actions as act
from scheduler import events as ev
from wire.errors import Code
from wire.types import Role

CODES = frozenset(Code)
OTHER = "other"
"""What is not a word of ours: stage servers of other versions may use others."""


class PipelineCounts:
    def __init__(self, instruments: Instruments) -> None:
        self._to = instruments
        self._events: dict[type, Callable[[Any], None]] = {
            ev.RequestArrived: self._arrived,
            ev.ResultLost: lambda event: self._lost(1, int(event.unreached)),
            ev.ServerJoined: lambda _: self._to.servers("joined").inc(),
            ev.ServerLost: lambda _: self._to.servers("lost").inc(),
            ev.ServerLeaving: lambda _: self._to.servers("leaving").inc(),
            ev.RolesReady: self._moved,
            ev.RolesFailed: lambda _: self._to.role_moves("failed").inc(),
            ev.JobPaused: lambda _: self._to.preemptions.inc(),
            ev.JobHandedOver: lambda _: self._to.handovers.inc(),
            ev.JobFailed: self._failed,
        }
        self._actions: dict[type, Callable[[Any], None]] = {
            act.Admit: lambda _: self._to.admissions("admitted", "").inc(),
            act.Reject: lambda action: self._to.admissions("rejected", action.code or OTHER).inc(),
            act.Run: self._run,
            act.FetchResult: lambda action: self._transfer("gateway", action.source.nbytes),
        }

    def note(self, event: ev.Event, actions: Iterable[act.Action]) -> None:
        hear = self._events.get(type(event))
        if hear is not None:
            hear(event)
        for action in actions:
            count = self._actions.get(type(action))
            if count is not None:
                count(action)

    def _arrived(self, event: ev.RequestArrived) -> None:
        for job in event.request.jobs:
            if job.role is Role.ENCODER:
                self._to.encodings("miss" if job.made is None else "hit").inc()

    def _run(self, run: act.Run) -> None:
        for source in (*run.inputs, *(() if run.resume is None else (run.resume,))):
            if source.holder != run.server:
                self._transfer(run.role.value, source.nbytes)

    def _transfer(self, reader: str, nbytes: int) -> None:
        self._to.transfers(reader).inc()
        self._to.transfer_bytes(reader).inc(nbytes)

    def _moved(self, event: ev.RolesReady) -> None:
        self._to.role_moves("done").inc()
        self._to.role_move_seconds("host memory" if event.from_host else "files").observe(event.load_seconds)

    def _failed(self, event: ev.JobFailed) -> None:
        self._to.job_failures(event.code if event.code in CODES else OTHER).inc()
        self._lost(len(event.lost_inputs), len(event.unreached))

    def _lost(self, inputs: int, unreached: int) -> None:
        if unreached:
            self._to.transfer_failures("unreached").inc(unreached)
        if inputs > unreached:
            self._to.transfer_failures("lost").inc(inputs - unreached)
