"""When a denoising job shows what it has so far."""

from __future__ import annotations


def preview_steps(steps: int, previews: int) -> tuple[int, ...]:
    """The steps (1-based) after which ``previews`` intermediate pictures are made: evenly spaced, never the last.

    Fewer than asked for where there are not so many steps.
    """
    wanted = (round(number * steps / (previews + 1)) for number in range(1, previews + 1))
    return tuple(dict.fromkeys(step for step in wanted if 0 < step < steps))
