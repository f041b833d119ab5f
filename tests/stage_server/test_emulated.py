"""The engine that waits: true sizes, true times, and the faults of a real one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from time import perf_counter, process_time

import msgspec
import pytest
from PIL import Image

from gateway.service.references import picture_work
from scheduler.cost.model import CostModel
from scheduler.cost.profile import ProfileError
from scheduler.cost.work import Target, Work
from stage_server.engine.base import EngineError, JobCancelled, LoadError, OutOfMemory, Preview, StageJob, Unwatched
from stage_server.engine.blank_pictures import blank_png
from stage_server.engine.emulated import EmulatedEngine
from stage_server.engine.emulated_values import prompt_digest
from stage_server.engine.profile import load_profile
from stage_server.profiling.together import run_together
from stage_server.settings import find_profile
from tests.chaos.pictures import Said, read
from wire.bundle import pack
from wire.params import ImageParams
from wire.types import MAX_PROMPT, REQUIRED, Role
from wire.values import Tensor

PROFILES = Path(__file__).parents[2] / "scheduler" / "profiles"
FLUX = PROFILES / "flux.1-dev-h100.toml"
LARGE = ImageParams(height=1024, width=1024, num_inference_steps=4)


class Steps(Unwatched):
    """A ``JobControl`` that counts, and cancels after so many."""

    def __init__(self, most: int = 1000) -> None:
        self.done: list[tuple[int, int]] = []
        self.previews: list[Preview] = []
        self.prompts: list[tuple[int, int]] = []
        self.rewrites: list[str] = []
        self.company: list[int] = []
        self.most = most

    def preview(self, preview: Preview) -> None:
        self.previews.append(preview)

    def device_done(self) -> None:
        pass

    def prompt_read(self, tokens: int, dropped: int) -> None:
        self.prompts.append((tokens, dropped))

    def rewritten(self, prompt: str) -> None:
        self.rewrites.append(prompt)

    def computed(self, company: int) -> None:
        self.company.append(company)

    def step_done(self, step: int, steps: int) -> None:
        self.done.append((step, steps))
        if step == self.most:
            raise JobCancelled


@pytest.fixture
def engine() -> EmulatedEngine:
    made = EmulatedEngine(FLUX, time_scale=0.02)
    made.set_roles(frozenset(REQUIRED))
    return made


def encoded(engine: EmulatedEngine) -> dict[str, object]:
    outputs = engine.run(StageJob(Role.ENCODER, LARGE), {}, Steps())
    return dict(outputs["dit"])


UPSCALER = """
[upscaler]
fixed_seconds = 0.05
seconds_per_pixel = 1e-7
factor = 2
weights_gb = 0.1
activation_gb = 1.0
load_seconds = 0.1
batch_marginal = [[0, 1.0]]
"""


@pytest.fixture
def upscaled(tmp_path: Path) -> EmulatedEngine:
    (tmp_path / "upscaled.toml").write_text(FLUX.read_text() + UPSCALER)
    made = EmulatedEngine(tmp_path / "upscaled.toml", time_scale=0.02)
    made.set_roles(frozenset((*REQUIRED, Role.UPSCALER)))
    return made


ENHANCER = """
[enhancer]
fixed_seconds = 0.05
seconds_per_token = 1e-3
weights_gb = 1.0
activation_gb = 1.0
load_seconds = 0.1
batch_marginal = [[0, 1.0]]
"""


def test_an_enhancer_tells_other_words_and_takes_what_the_scheduler_predicts(
    engine: EmulatedEngine, tmp_path: Path
) -> None:
    (tmp_path / "enhanced.toml").write_text(FLUX.read_text() + ENHANCER)
    enhanced = EmulatedEngine(tmp_path / "enhanced.toml", time_scale=0.02)
    enhanced.set_roles(frozenset({Role.ENHANCER}))
    info = enhanced.describe()
    assert (info.key, engine.describe().enhancer) == (engine.describe().key, None)
    assert info.enhancer is not None
    assert tuple(enhanced.capable()) == (Role.ENHANCER, *REQUIRED)
    control, job = Steps(), StageJob(Role.ENHANCER, ImageParams(prompt="a star"))
    assert enhanced.run(job, {}, control) == {}
    longest = "x" * MAX_PROMPT
    enhanced.run(StageJob(Role.ENHANCER, ImageParams(prompt=longest)), {}, control)
    assert control.rewrites == ["a star, rewritten", longest], "more does not go to the gateway"
    cost = CostModel()
    profile = cost.load_profile(tmp_path / "enhanced.toml")
    target = Target.of(profile.model.name, profile.device_class, profile.precision)
    tokens = 16 * 7
    predicted = cost.seconds(Work(Role.ENHANCER, text_tokens=tokens - 1), target)
    assert predicted == pytest.approx(load_profile(tmp_path / "enhanced.toml").enhance_seconds(tokens))


def test_a_picture_that_is_passed_on_keeps_its_code_and_has_the_size_of_its_pixels(upscaled: EmulatedEngine) -> None:
    params = ImageParams(prompt="a star", width=128, height=64, num_inference_steps=1, seed=9, upscale=2)
    values: dict[str, object] = {}
    for role in (*REQUIRED, Role.UPSCALER):
        job = StageJob(role, params)
        (port, given), *others = upscaled.run(job, values, Steps()).items()
        assert not others
        assert pack(given).total_bytes <= upscaled.output_bound(job)
        if role is Role.DECODER:
            assert (port, given["pixels"].shape, given["pixels"].dtype) == ("upscaler", (64, 128, 3), "uint8")
        values = dict(given)
    assert (port, values["width"], values["height"]) == ("image", 256, 128)
    assert read(bytes(values["image"])) == Said(9, prompt_digest("a star"), (256, 128))


def test_an_upscaler_is_no_part_of_the_model_and_takes_what_the_scheduler_predicts(
    engine: EmulatedEngine, upscaled: EmulatedEngine, tmp_path: Path
) -> None:
    info = upscaled.describe()
    assert (info.key, engine.describe().upscaler) == (engine.describe().key, None)
    assert info.upscaler is not None
    assert info.upscaler.factor == 2
    assert (tuple(engine.capable()), tuple(upscaled.capable())) == (REQUIRED, (*REQUIRED, Role.UPSCALER))
    cost = CostModel()
    profile = cost.load_profile(tmp_path / "upscaled.toml")
    target = Target.of(profile.model.name, profile.device_class, profile.precision)
    predicted = cost.seconds(Work(Role.UPSCALER, height=1024, width=1024), target)
    assert predicted == pytest.approx(load_profile(tmp_path / "upscaled.toml").upscale_seconds(LARGE))


def test_a_level_of_a_step_cache_takes_its_share_of_the_time_as_the_scheduler_predicts(
    engine: EmulatedEngine, tmp_path: Path
) -> None:
    path = tmp_path / "cached.toml"
    path.write_text(FLUX.read_text().replace("[dit]", '[dit]\nstep_caches = { low = 0.5, "very-high" = 0.25 }'))
    cached = EmulatedEngine(path)
    assert cached.describe().step_caches == {
        "low": "emulated, in 0.5 of the time",
        "very-high": "emulated, in 0.25 of the time",
    }
    assert cached.describe().key != engine.describe().key, "a server without the levels is of another model"
    params = msgspec.structs.replace(LARGE, num_inference_steps=8, step_cache="very-high")
    profile, cost = load_profile(path), CostModel()
    target = Target.of(profile.model.name, profile.device.device_class, profile.device.precision)
    cost.load_profile(path)
    work = Work(Role.DIT, height=params.height, width=params.width, steps=8, step_cache="very-high")
    assert 8 * profile.step_seconds(params) == pytest.approx(cost.seconds(work, target))
    assert profile.step_seconds(params) == pytest.approx(
        0.25 * profile.step_seconds(msgspec.structs.replace(params, step_cache=""))
    )


@pytest.mark.parametrize("share", ["0.0", "3.0", "'much'"])
def test_a_share_that_cannot_be_is_refused_by_both_readers(share: str, tmp_path: Path) -> None:
    path = tmp_path / "cached.toml"
    path.write_text(FLUX.read_text().replace("[dit]", f"[dit]\nstep_caches = {{ low = {share} }}"))
    with pytest.raises(LoadError, match="step_caches"):
        load_profile(path)
    with pytest.raises(ProfileError, match="a table of names and shares above 0, of 2 at most"):
        CostModel().load_profile(path)


def test_the_pictures_of_an_edit_take_the_time_that_the_scheduler_predicts(tmp_path: Path) -> None:
    """At the size at which they are encoded, in the sequence of the dit and in the prompt."""
    rule = "{ max_area = 65536, multiple = 16, in_sequence = true, prompt_area = 65536 }"
    text = FLUX.read_text().replace("[model]", f"[model]\nreferences = {rule}")
    (tmp_path / "edits.toml").write_text(text.replace("seconds_per_text_token = 0.0", "seconds_per_text_token = 1e-5"))
    engine = EmulatedEngine(tmp_path / "edits.toml", time_scale=1e-9)
    engine.set_roles(frozenset(REQUIRED))
    waited: list[float] = []
    profile = engine._profile
    model = CostModel([])
    model.load_profile(tmp_path / "edits.toml")
    (edits,) = (each for each in engine.describe().workflows if each.name == "image_conditioned")
    assert edits.references == profile.model.references
    params = ImageParams(height=512, width=512, num_inference_steps=1, workflow="image_conditioned")
    pictures = {"image": blank_png(512, 256), "image_1": blank_png(128, 128)}
    work = picture_work(edits, pictures.values(), (512, 512))
    target = Target.of(profile.model.name, profile.device.device_class, profile.device.precision)
    real = engine._compute

    def compute(job: StageJob, share: bool, seconds: float, *more: object) -> float:
        waited.append(seconds)
        return real(job, share, seconds, *more)  # type: ignore[arg-type]

    engine._compute = compute  # type: ignore[method-assign,assignment]
    outputs = engine.run(StageJob(Role.ENCODER, params, pictures), {}, Steps())
    predicted = Work(Role.ENCODER, image_pixels=work.encoded_pixels, picture_tokens=work.prompt_tokens)
    assert waited == pytest.approx([model.seconds(predicted, target)], rel=0.01)
    predicted = Work(
        Role.DIT, 512, 512, picture_tokens=work.prompt_tokens, reference_pixels=work.sequence_pixels, steps=1
    )
    engine.run(StageJob(Role.DIT, params), dict(outputs[Role.DIT]), Steps())
    (_, step) = waited
    assert step == pytest.approx(model.seconds(predicted, target), rel=0.01)
    assert step > 1.1 * profile.step_seconds(params)


@pytest.mark.parametrize("path", sorted(PROFILES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_bundled_profile_can_be_emulated(path: Path) -> None:
    engine = EmulatedEngine(path, time_scale=1e-6)
    info = engine.describe()
    assert info.default_steps > 0
    assert {workflow.name for workflow in info.workflows} == {"text2image", "image2image"}
    assert set(engine.capable()) == set(REQUIRED)


def test_tensors_and_pictures_have_their_true_sizes(engine: EmulatedEngine) -> None:
    embeds = encoded(engine)["prompt_embeds"]
    assert isinstance(embeds, Tensor)
    assert (embeds.dtype, embeds.shape, embeds.data.nbytes) == ("bfloat16", (1, 512, 4096), 512 * 4096 * 2)
    job = StageJob(Role.DIT, LARGE)
    outputs = engine.run(job, encoded(engine), Steps())
    latents = outputs["decoder"]["latents"]
    assert isinstance(latents, Tensor)
    assert latents.shape == (1, 16, 128, 128)
    assert pack(outputs["decoder"]).total_bytes <= engine.output_bound(job)
    picture = engine.run(StageJob(Role.DECODER, LARGE), outputs["decoder"], Steps())
    assert picture["image"]["width"] == 1024
    assert isinstance(picture["image"]["image"], bytes)
    assert Image.open(BytesIO(picture["image"]["image"])).size == (1024, 1024)


def test_words_stand_for_tokens(engine: EmulatedEngine) -> None:
    steps = Steps()
    for limit in (None, 2):
        params = msgspec.structs.replace(LARGE, prompt="a red circle", max_sequence_length=limit)
        engine.run(StageJob(Role.ENCODER, params), {}, steps)
    assert steps.prompts == [(3, 0), (3, 1)]


def test_takes_the_profiles_time_and_none_of_the_processors(engine: EmulatedEngine) -> None:
    inputs, steps = encoded(engine), Steps()
    wall, cpu = perf_counter(), process_time()
    engine.run(StageJob(Role.DIT, LARGE), inputs, steps)
    wall, cpu = perf_counter() - wall, process_time() - cpu
    assert steps.done == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert wall >= 4 * 0.128 * 0.02 * 0.99
    assert cpu < 0.01


def test_costs_follow_size_guidance_strength_and_company() -> None:
    profile = load_profile(find_profile("tiny-shapes-cpu", [PROFILES]))
    params = ImageParams(height=256, width=256, guidance_scale=3.0)
    single = profile.step_seconds(ImageParams(height=256, width=256, guidance_scale=1.0))
    assert single == pytest.approx(0.0218347 + 1.505645e-4 * 64 + 4.83379e-8 * 64**2)
    assert profile.step_seconds(params) == pytest.approx(2 * single)
    assert [profile.steps(ImageParams(strength=strength)) for strength in (None, 0.5, 0.01)] == [12, 6, 1]
    marginals = [profile.dit.marginal(tokens) for tokens in (1, 64, 160, 256, 999)]
    assert marginals == pytest.approx([0.4, 0.52, 0.66, 0.8, 0.8])


def test_jobs_that_compute_together_take_a_share_more_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stage_server.engine.emulated.perf_counter", lambda: 0.0)
    engine = EmulatedEngine(FLUX, time_scale=0.05, together={Role.DIT: 4})
    engine.set_roles(frozenset(REQUIRED))
    jobs = [(StageJob(Role.DIT, msgspec.structs.replace(LARGE, seed=n), share=True), encoded(engine)) for n in range(3)]
    waited: list[float] = []
    engine._closed.wait = waited.append  # type: ignore[method-assign, assignment]
    outputs, watches = run_together(engine, jobs)
    assert [out["decoder"]["latents"].shape for out in outputs] == [(1, 16, 128, 128)] * 3
    assert {len(watch.ticks) for watch in watches} == {6}
    profile = load_profile(FLUX)
    step = profile.step_seconds(LARGE) * 0.05 * (1 + 2 * profile.dit.marginal(4096))
    assert waited == pytest.approx([step * number for number in (1, 2, 3, 4)]), "once for all, until each step is due"


def test_a_job_of_its_own_keeps_nobody_company(engine: EmulatedEngine) -> None:
    steps = Steps()
    engine.run(StageJob(Role.DIT, LARGE, share=True), encoded(engine), steps)
    assert steps.company == [1, 1, 1, 1]


def test_a_cancelled_job_ends_at_the_step(engine: EmulatedEngine) -> None:
    with pytest.raises(JobCancelled):
        engine.run(StageJob(Role.DIT, LARGE), encoded(engine), Steps(most=2))


def test_inputs_that_are_missing_are_an_error(engine: EmulatedEngine) -> None:
    with pytest.raises(
        EngineError, match="the dit job lacks the inputs pooled_prompt_embeds, prompt_digest, prompt_embeds"
    ):
        engine.run(StageJob(Role.DIT, LARGE), {}, Steps())


def test_roles_must_fit_the_memory() -> None:
    engine = EmulatedEngine(PROFILES / "qwen-image-4090-offload.toml", time_scale=1e-6)
    with pytest.raises(LoadError, match=r"dit \+ encoder need .* GB .* has 24.0 GB"):
        engine.set_roles(frozenset({Role.ENCODER, Role.DIT}))
    assert engine.roles == frozenset()


def test_a_job_must_fit_beside_the_weights(engine: EmulatedEngine) -> None:
    huge = ImageParams(height=8192, width=8192, num_inference_steps=1)
    with pytest.raises(OutOfMemory, match=r"8192x8192 .* needs 64.0 GB, 46.2 GB are free"):
        engine.run(StageJob(Role.DIT, huge), encoded(engine), Steps())


def test_one_model_on_two_devices_can_be_mixed() -> None:
    keys = {EmulatedEngine(PROFILES / f"flux.1-dev-{device}.toml").describe().key for device in ("h100", "l20")}
    assert len(keys) == 1


def test_a_profile_with_a_stray_key_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text(FLUX.read_text() + "\nspeed = 3\n")
    with pytest.raises(LoadError, match=r"docs/profiles\.md.*speed"):
        EmulatedEngine(path)


def test_blank_pictures_are_small() -> None:
    assert len(blank_png(4096, 4096)) < 10_000


def inscription(picture: object) -> dict[str, str]:
    assert isinstance(picture, bytes)
    with Image.open(BytesIO(picture)) as opened:
        opened.load()  # what stands behind the pixels is read with them
        return dict(opened.info)


def test_a_picture_says_its_seed_and_the_digest_of_its_prompt(engine: EmulatedEngine) -> None:
    """Only the encoder is told the prompt."""
    plain, steps = msgspec.structs.replace(LARGE, previews=1, seed=2**63 - 1), Steps()
    encoded = engine.run(StageJob(Role.ENCODER, msgspec.structs.replace(LARGE, prompt="a dög")), {}, steps)
    denoised = engine.run(StageJob(Role.DIT, plain), encoded["dit"], steps)
    decoder = StageJob(Role.DECODER, plain)
    (preview,) = steps.previews
    for latents in (denoised["decoder"], preview.values):
        picture = engine.run(decoder, latents, steps)["image"]
        assert inscription(picture["image"]) == {"seed": str(2**63 - 1), "prompt_digest": prompt_digest("a dög")}
        assert read(picture["image"]) == Said.wanted("a dög", 2**63 - 1, (LARGE.width, LARGE.height))
        assert pack(picture).total_bytes <= engine.output_bound(decoder)


class Turns:
    """Turns at the device: what the engine holds at each."""

    def __init__(self, engine: EmulatedEngine) -> None:
        self._engine = engine
        self.held: list[frozenset[Role]] = []

    @contextmanager
    def __call__(self) -> Iterator[None]:
        self.held.append(self._engine.roles)
        yield


def test_roles_go_only_once_the_others_are_there_if_both_fit(engine: EmulatedEngine) -> None:
    turns, dit = Turns(engine), frozenset({Role.DIT})
    engine.set_roles(dit, turns)
    assert (turns.held, engine.roles) == ([frozenset(REQUIRED)], dit)
    assert engine.warm == frozenset(REQUIRED) - dit
    small = EmulatedEngine(PROFILES / "qwen-image-4090-offload.toml", time_scale=1e-6)
    turns = Turns(small)
    small.set_roles(dit, turns)
    small.set_roles(frozenset({Role.ENCODER}), turns)
    assert turns.held == [frozenset(), frozenset()]


def test_host_memory_keeps_the_roles_used_last() -> None:
    weights = sum(load_profile(FLUX).costs(role).weight_bytes for role in (Role.DIT, Role.DECODER))
    engine = EmulatedEngine(FLUX, time_scale=1e-6, weight_cache_bytes=weights)
    engine.preload(frozenset({Role.ENCODER}))
    assert engine.warm == {Role.ENCODER}
    engine.preload(frozenset({Role.DIT, Role.DECODER}))
    assert (engine.warm, engine.roles) == ({Role.DIT, Role.DECODER}, frozenset())
    assert EmulatedEngine(FLUX, weight_cache_bytes=0).warm == frozenset()


def test_a_role_in_host_memory_takes_the_time_of_a_copy() -> None:
    waited: list[float] = []
    engine = EmulatedEngine(FLUX)
    engine._wait = waited.append  # type: ignore[method-assign]
    info = engine.capable()[Role.DIT]
    engine.set_roles(frozenset({Role.DIT}))
    assert sum(waited) == pytest.approx(info.load_seconds)
    engine.set_roles(frozenset())
    waited.clear()
    engine.set_roles(frozenset({Role.DIT}))
    assert sum(waited) == pytest.approx(info.warm_seconds)
    assert 0 < info.warm_seconds < info.load_seconds
