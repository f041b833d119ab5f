"""What a request for pictures was, for its line in the log. Never the prompt."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.api.generation import Generation
from gateway.service.interfaces import Finished


@dataclass(slots=True)
class WorkDone:
    generation: Generation
    finished: Finished | None = None
    """None while it is not, and for what failed."""

    def __str__(self) -> str:
        """Stages by their computing time, as in ``tiny-shapes 256x256, 2 pictures of 8 steps; dit 812 ms on gpu-1``."""
        asked, pictures = self.generation, len(self.generation.images)
        steps = f" of {asked.steps} steps" if asked.steps else ""
        stages = self.finished.stages if self.finished is not None else ()
        took = (f"{each.role} {each.compute_seconds * 1e3:.0f} ms on {each.server}" for each in stages)
        return "; ".join((f"{asked.model} {asked.size}, {pictures} picture{'s' * (pictures > 1)}{steps}", *took))

    def fields(self) -> dict[str, object]:
        """The same for programs."""
        asked = self.generation
        stages = [
            {
                "stage": each.role,
                "server": each.server,
                "queue_seconds": each.queue_seconds,
                "fetch_seconds": each.fetch_seconds,
                "compute_seconds": each.compute_seconds,
                "publish_seconds": each.publish_seconds,
                "steps": each.steps,
            }
            for each in (self.finished.stages if self.finished is not None else ())
        ]
        return {
            "model": asked.model,
            "size": str(asked.size),
            "pictures": len(asked.images),
            "steps": asked.steps,
            "kind": asked.kind,
            **({"stages": stages} if stages else {}),
        }
