"""What a check has to say. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    OK = "ok"
    NOTE = "note"
    """Nothing is wrong; whoever expected more reads why."""
    FAULT = "fault"


@dataclass(frozen=True, slots=True)
class Finding:
    verdict: Verdict
    what: str
    cure: str = ""
    """What to do, for faults and notes."""

    def __post_init__(self) -> None:
        if self.verdict is Verdict.FAULT and not self.cure:
            raise ValueError(f"a fault needs its cure: {self.what}")


def ok(what: str) -> Finding:
    return Finding(Verdict.OK, what)


def note(what: str, cure: str = "") -> Finding:
    return Finding(Verdict.NOTE, what, cure)


def fault(what: str, cure: str) -> Finding:
    return Finding(Verdict.FAULT, what, cure)
