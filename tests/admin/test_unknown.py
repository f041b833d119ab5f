"""What nothing was measured of is admitted, so that something is."""

from __future__ import annotations

from typing import Any

from scheduler import actions as act
from scheduler import events as ev
from scheduler.cost.work import Target, Work
from scheduler.elastic.unknown import MOST
from wire.types import REQUIRED, Role

TARGET = Target.of("m", "cpu-1", "float32")
WORKS = (Work(Role.ENCODER), Work(Role.DIT, height=64, width=64, steps=4), Work(Role.DECODER, height=64, width=64))


def test_a_guess_turns_nobody_away_until_the_first_times_are_known(desk: Any) -> None:
    desk.join("a", *REQUIRED)
    desk.ask("req_1", deadline=0.15)  # 0.1 s from its arrival; the guess is longer
    verdicts = [one.action for one in desk.decisions._log if isinstance(one.action, act.Admit | act.Reject)]
    assert isinstance(verdicts[-1], act.Admit)
    assert "nothing was measured yet, or else: done in" in verdicts[-1].reason
    for work in WORKS:
        desk.scheduler.policies.cost.observe(work, TARGET, "a", 5.0)
    desk.ask("req_2", deadline=0.15)
    assert isinstance(desk.decisions._log[-1].action, act.Reject)


def test_not_without_bound_nor_past_the_deadline(desk: Any) -> None:
    desk.join("a", *REQUIRED)
    desk.ask("late", deadline=0.0)
    assert isinstance(desk.decisions._log[-1].action, act.Reject)
    for number in range(MOST + 1):
        desk.ask(f"req_{number}", deadline=0.15 + 1e-3 * number)
        desk.now -= 0.1
    assert isinstance(desk.decisions._log[-1].action, act.Reject)
    desk.tell(ev.Tick())
