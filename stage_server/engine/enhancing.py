"""A diffusion model's engine with one stage more: what comes before its encoder."""

from __future__ import annotations

from functools import partial

import torch

from stage_server.engine.base import JobControl, NamedValues, Outputs, Prepared
from stage_server.engine.diffusers_engine import DiffusersEngine
from stage_server.engine.enhancer import PromptEnhancer
from stage_server.engine.further import FurtherEngine
from stage_server.engine.translated import errors_translated
from wire.params import ImageParams
from wire.types import Role


class EnhancingEngine(FurtherEngine):
    """Its jobs leave no output: what becomes of the prompt is told with the job's end."""

    role = Role.ENHANCER

    def __init__(self, inner: DiffusersEngine | FurtherEngine, enhancer: PromptEnhancer) -> None:
        super().__init__(inner, enhancer)
        self._enhancer = enhancer

    def bound(self, params: ImageParams) -> int:  # noqa: ARG002 # it is the same for all
        return 0

    def prepared(self, params: ImageParams, inputs: NamedValues) -> Prepared:  # noqa: ARG002 # nobody's
        with errors_translated(self.device):
            read = self._enhancer.read(params.prompt)
        return partial(self._computed, params.prompt, read)

    def _computed(self, prompt: str, read: torch.Tensor, control: JobControl) -> Outputs:
        control.check()
        with errors_translated(self.device):
            rewritten = self._enhancer.rewritten(prompt, read, control.check)
        self.inner.note_peak()
        control.computed(1)
        control.rewritten(rewritten)
        control.device_done()
        return {}
