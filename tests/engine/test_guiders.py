"""Guiders that requests name: bit-equal to the whole pipeline with that guider, and nobody else's layers change."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import diffusers
import pytest
from diffusers import ModularPipeline
from diffusers.guiders import MagnitudeAwareGuidance
from diffusers.hooks import LayerSkipConfig
from PIL import Image

from stage_server.engine.base import BadJob, EngineError, HandOver, JobCancelled, StageJob, Unfinished, Unwatched
from stage_server.engine.diffusers_engine import DiffusersEngine
from tests.engine.both_ways import PROMPT, made_by_whole
from wire.guiders import GuiderUse, fault, more_passes
from wire.params import ImageParams
from wire.types import Role

ALL_STEPS = {"start": 0.0, "stop": 1.0}
PLAIN = {"cfg", "cfg_zero_star", "apg", "tcfg"}
TAKEN = {
    "tiny-shapes": PLAIN | {"pag"},
    "stable-diffusion-xl": PLAIN | {"pag", "slg", "auto"},
    "stable-diffusion-3": PLAIN,
    "krea-2": PLAIN,
    "qwen-image": {"cfg", "apg", "tcfg", "mambo_g", "pag"},
}
STACKS = {"tiny-shapes": "layers", "stable-diffusion-xl": "mid_block.attentions.0.transformer_blocks"}


def of_diffusers(name: str, stack: str, layer: int, **own: Any) -> Any:
    """The guider as diffusers' documentation makes it."""
    skip = LayerSkipConfig(indices=[layer], fqn=stack)
    scores = LayerSkipConfig([layer], stack, skip_attention=False, skip_attention_scores=True, skip_ff=False)
    worse = {"perturbed_guidance_start": 0.0, "perturbed_guidance_stop": 1.0}
    skipped = {"skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 1.0}
    makers: Mapping[str, Callable[[], Any]] = {
        "cfg": lambda: diffusers.ClassifierFreeGuidance(guidance_rescale=0.5, stop=0.7, **own),
        "cfg_zero_star": lambda: diffusers.ClassifierFreeZeroStarGuidance(**own),
        "apg": lambda: diffusers.AdaptiveProjectedGuidance(adaptive_projected_guidance_momentum=-0.5, eta=0.5, **own),
        "tcfg": lambda: diffusers.TangentialClassifierFreeGuidance(**own),
        "mambo_g": lambda: MagnitudeAwareGuidance(alpha=4.0, **own),
        "pag": lambda: diffusers.PerturbedAttentionGuidance(perturbed_guidance_config=scores, **worse, **own),
        "slg": lambda: diffusers.SkipLayerGuidance(skip_layer_config=skip, **skipped, **own),
        "auto": lambda: diffusers.AutoGuidance(auto_guidance_config=skip, **own),
    }
    return makers[name]()


USES = {
    "cfg": {"rescale": 0.5, "stop": 0.7},
    "apg": {"momentum": -0.5, "eta": 0.5},
    "mambo_g": {"alpha": 4.0},
    "pag": ALL_STEPS,
    "slg": ALL_STEPS,
}


def use(name: str, **options: Any) -> GuiderUse:
    return GuiderUse(name=name, **{**USES.get(name, {}), **options})


def params(guider: GuiderUse | None, **options: Any) -> ImageParams:
    given = {"width": 96, "height": 64, "num_inference_steps": 3, "guidance_scale": 3.0, "seed": 11}
    given |= {"negative_prompt": "a blue star", **options}
    return ImageParams(prompt=PROMPT, guider=guider, **given)


QUICK = ("tiny-shapes", "stable-diffusion-xl")
CASES = [pytest.param(family, marks=() if family in QUICK else pytest.mark.services, id=family) for family in TAKEN]


@pytest.mark.parametrize("family", CASES)
def test_each_that_is_offered_is_that_of_diffusers_to_the_bit(
    family: str,
    split_engines: Callable[[str], Mapping[Role, DiffusersEngine]],
    monolith: Callable[[str], ModularPipeline],
    generate: Callable[..., Image.Image],
) -> None:
    engines, pipeline = split_engines(family), monolith(family)
    info = engines[Role.DIT].describe()
    formulation = {"use_original_formulation": pipeline.guider.config.use_original_formulation}
    plain = generate(engines, params(None)).tobytes()
    assert set(info.guiders) == TAKEN[family]
    for name in info.guiders:
        named = of_diffusers(name, STACKS.get(family, "transformer_blocks"), info.guided_layers // 2, **formulation)
        ours = generate(engines, params(use(name))).tobytes()
        assert ours == made_by_whole(pipeline, params(None), {}, named).tobytes(), name
        assert ours != plain, name
    assert generate(engines, params(None)).tobytes() == plain


@pytest.fixture
def dit(
    split_engines: Callable[[str], Mapping[Role, DiffusersEngine]],
) -> tuple[DiffusersEngine, Mapping[str, Any]]:
    """Of the bundled model, and what its encoder made for it."""
    engines = split_engines("tiny-shapes")
    return engines[Role.DIT], engines[Role.ENCODER].run(StageJob(Role.ENCODER, params(None)), {}, Unwatched())[Role.DIT]


CHANGED_CALL = 5
"""The first that PAG makes with other layers: two calls in the first step, then three in each."""


class _FailsAtThird(Unwatched):
    """Told to stop when the layers are changed: the third call of a step."""

    def __init__(self) -> None:
        self.calls = 0

    def computed(self, company: int) -> None:
        self.calls += 1

    def check(self) -> None:
        if self.calls == CHANGED_CALL - 1:
            raise JobCancelled


def test_a_job_that_ends_while_layers_are_changed_leaves_them_as_they_were(
    dit: tuple[DiffusersEngine, Mapping[str, Any]], payload: Callable[[Any], bytes]
) -> None:
    engine, inputs = dit
    plain = payload(engine.run(StageJob(Role.DIT, params(None)), inputs, Unwatched()))
    layer = engine._pipeline.transformer.layers[engine.describe().guided_layers // 2]
    original = layer.feed_forward.forward  # which PAG leaves alone

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("the third call of a step")

    with pytest.raises(JobCancelled):
        engine.run(StageJob(Role.DIT, params(use("pag"))), inputs, _FailsAtThird())
    with pytest.MonkeyPatch.context() as patch:
        seen: list[int] = []

        def counted(*args: Any, **options: Any) -> Any:
            seen.append(1)
            return broken() if len(seen) == CHANGED_CALL else original(*args, **options)

        patch.setattr(layer.feed_forward, "forward", counted)
        with pytest.raises(EngineError, match="the third call of a step"):
            engine.run(StageJob(Role.DIT, params(use("pag"))), inputs, Unwatched())
    assert payload(engine.run(StageJob(Role.DIT, params(None)), inputs, Unwatched())) == plain


def test_momentum_goes_along_with_denoising_that_moves(
    dit: tuple[DiffusersEngine, Mapping[str, Any]], payload: Callable[[Any], bytes]
) -> None:
    engine, inputs = dit
    job = StageJob(Role.DIT, params(use("apg"), num_inference_steps=4))
    whole_run = payload(engine.run(job, inputs, Unwatched()))

    class Leaving(Unwatched):
        def step_done(self, step: int, steps: int) -> None:
            if step == 2:
                raise HandOver

    with pytest.raises(Unfinished) as left:
        engine.run(job, inputs, Leaving())
    resumed = StageJob(Role.DIT, job.params, resume=left.value.values)
    assert payload(engine.run(resumed, inputs, Unwatched())) == whole_run


@pytest.mark.parametrize(
    ("guider", "options", "words"),
    [
        (use("slg"), {}, "takes no guider 'slg'; it takes cfg, "),
        (use("pag", layers=(0, 99)), {}, "has the layers 0 to 5, not 99"),
        (use("apg"), {"guidance_scale": 1.0}, "needs a guidance_scale above 1, not 1.0"),
    ],
)
def test_what_the_model_does_not_take_is_refused(
    dit: tuple[DiffusersEngine, Mapping[str, Any]], guider: GuiderUse, options: Mapping[str, Any], words: str
) -> None:
    with pytest.raises(BadJob, match=words):
        dit[0].output_bound(StageJob(Role.DIT, params(guider, **options)))


@pytest.mark.parametrize(
    ("guider", "parameter", "words"),
    [
        (GuiderUse(name="pga"), "name", "there are cfg, cfg_zero_star, "),
        (GuiderUse(name="cfg", scale=2.0), "scale", "takes no 'scale'; it takes start, stop, rescale"),
        (GuiderUse(name="tcfg", layers=(1,)), "layers", "takes no 'layers'"),
        (GuiderUse(name="pag", scale=101.0), "scale", "from 0 to 100, not 101"),
        (GuiderUse(name="slg", start=0.5), "stop", "stop at 0.2 of the steps and start at 0.5"),
    ],
)
def test_what_no_model_takes_is_named(guider: GuiderUse, parameter: str, words: str) -> None:
    found = fault(guider)
    assert found is not None
    assert found[0] == parameter
    assert words in found[1]


def test_the_passes_that_a_guider_adds_or_spares() -> None:
    assert more_passes(None) == more_passes(use("apg")) == 0
    assert more_passes(GuiderUse(name="cfg", stop=0.5)) == -0.5
    assert more_passes(use("pag")) == 1
