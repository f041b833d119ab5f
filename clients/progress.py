"""How far a request is, in one line."""

from __future__ import annotations

from dataclasses import dataclass, field

from clients.events import Admitted, Completed, News, Step, Waiting

BAR = 24


@dataclass
class Progress:
    pictures: int
    predicted_seconds: float | None = None
    """At admission."""
    expected_seconds: float | None = None
    """In all, by the latest prediction."""
    ahead: int | None = None
    completed: int = 0
    steps: dict[int, Step] = field(default_factory=dict)
    """The latest of each picture."""

    def hear(self, news: News, elapsed_seconds: float) -> None:
        match news:
            case Admitted(seconds):
                self.predicted_seconds = self.expected_seconds = seconds
            case Waiting(ahead, seconds_left):
                self.ahead = ahead
                self.expected_seconds = elapsed_seconds + seconds_left
            case Step(image=image):
                self.steps[image] = news
            case Completed(image):
                self.completed += 1
                if last := self.steps.get(image):  # servers skip steps when they come fast, the last one too
                    self.steps[image] = Step(image, last.steps, last.steps)

    def line(self, elapsed_seconds: float) -> str:
        took = f"{elapsed_seconds:.1f} s"
        if self.expected_seconds is not None:
            took += f" of about {self.expected_seconds:.1f} s"
        return "  ".join(part for part in (self._doing(), self._count(), took) if part)

    def _doing(self) -> str:
        if not self.steps and self.ahead is not None:
            return f"waiting, {self.ahead} ahead" if self.ahead else "waiting, next in line"
        if not self.steps:
            return "sent" if self.predicted_seconds is None else "admitted"
        done = sum(step.step for step in self.steps.values())
        # Pictures that have not begun will take as many steps as those that have.
        whole = self.pictures * max(step.steps for step in self.steps.values())
        filled = BAR * done // whole
        bar = f"[{'#' * filled}{'-' * (BAR - filled)}] step {done}/{whole}"
        return f"{bar}, decoding" if done == whole and self.completed < self.pictures else bar

    def _count(self) -> str:
        return f"{self.completed} of {self.pictures} pictures" if self.pictures > 1 else ""
