"""The engine that waits: true sizes, true times, and the faults of a real one."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from time import perf_counter, process_time

import msgspec
import pytest
from PIL import Image

from stage_server.engine.base import EngineError, JobCancelled, LoadError, OutOfMemory, Preview, StageJob
from stage_server.engine.emulated import EmulatedEngine, blank_png, prompt_digest
from stage_server.engine.profile import load_profile
from stage_server.settings import find_profile
from wire.bundle import pack
from wire.params import ImageParams
from wire.types import Role
from wire.values import Tensor

PROFILES = Path(__file__).parents[2] / "scheduler" / "profiles"
FLUX = PROFILES / "flux.1-dev-h100.toml"
LARGE = ImageParams(height=1024, width=1024, num_inference_steps=4)


class Steps:
    """A ``JobControl`` that counts, and cancels after so many."""

    def __init__(self, most: int = 1000) -> None:
        self.done: list[tuple[int, int]] = []
        self.previews: list[Preview] = []
        self.prompts: dict[int, tuple[int, int]] = {}
        self.most = most

    def preview(self, preview: Preview) -> None:
        self.previews.append(preview)

    def prompt_read(self, member: int, tokens: int, dropped: int) -> None:
        self.prompts[member] = tokens, dropped

    def step_done(self, step: int, steps: int) -> None:
        self.done.append((step, steps))
        if step == self.most:
            raise JobCancelled


@pytest.fixture
def engine() -> EmulatedEngine:
    made = EmulatedEngine(FLUX, time_scale=0.02)
    made.set_roles(frozenset(Role))
    return made


def encoded(engine: EmulatedEngine) -> dict[str, object]:
    (outputs,) = engine.run(StageJob(Role.ENCODER, (LARGE,)), ({},), Steps())
    return dict(outputs["dit"])


@pytest.mark.parametrize("path", sorted(PROFILES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_bundled_profile_can_be_emulated(path: Path) -> None:
    engine = EmulatedEngine(path, time_scale=1e-6)
    info = engine.describe()
    assert info.default_steps > 0
    assert {workflow.name for workflow in info.workflows} == {"text2image", "image2image"}
    assert set(engine.capable()) == set(Role)


def test_tensors_and_pictures_have_their_true_sizes(engine: EmulatedEngine) -> None:
    embeds = encoded(engine)["prompt_embeds"]
    assert isinstance(embeds, Tensor)
    assert (embeds.dtype, embeds.shape, embeds.data.nbytes) == ("bfloat16", (1, 512, 4096), 512 * 4096 * 2)
    job = StageJob(Role.DIT, (LARGE,))
    (outputs,) = engine.run(job, (encoded(engine),), Steps())
    latents = outputs["decoder"]["latents"]
    assert isinstance(latents, Tensor)
    assert latents.shape == (1, 16, 128, 128)
    assert pack(outputs["decoder"]).total_bytes <= engine.output_bound(job)
    (picture,) = engine.run(StageJob(Role.DECODER, (LARGE,)), (outputs["decoder"],), Steps())
    assert picture["image"]["width"] == 1024
    assert isinstance(picture["image"]["image"], bytes)
    assert Image.open(BytesIO(picture["image"]["image"])).size == (1024, 1024)


def test_words_stand_for_tokens(engine: EmulatedEngine) -> None:
    steps = Steps()
    members = (
        msgspec.structs.replace(LARGE, prompt="a red circle"),
        msgspec.structs.replace(LARGE, prompt="a red circle", max_sequence_length=2),
    )
    engine.run(StageJob(Role.ENCODER, members), ({}, {}), steps)
    assert steps.prompts == {0: (3, 0), 1: (3, 1)}


def test_takes_the_profiles_time_and_none_of_the_processors(engine: EmulatedEngine) -> None:
    inputs, steps = encoded(engine), Steps()
    wall, cpu = perf_counter(), process_time()
    engine.run(StageJob(Role.DIT, (LARGE,)), (inputs,), steps)
    wall, cpu = perf_counter() - wall, process_time() - cpu
    assert steps.done == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert wall >= 4 * 0.128 * 0.02 * 0.99
    assert cpu < 0.01


def test_costs_follow_size_guidance_strength_and_batch() -> None:
    profile = load_profile(find_profile("tiny-shapes-cpu", [PROFILES]))
    params = ImageParams(height=256, width=256, guidance_scale=3.0)
    single = profile.step_seconds(ImageParams(height=256, width=256, guidance_scale=1.0))
    assert single == pytest.approx(0.0218347 + 1.505645e-4 * 64 + 4.83379e-8 * 64**2)
    assert profile.step_seconds(params) == pytest.approx(2 * single)
    assert [profile.steps(ImageParams(strength=strength)) for strength in (None, 0.5, 0.01)] == [12, 6, 1]
    assert [profile.dit.batch_factor(tokens, 3) for tokens in (1, 64, 160, 256, 999)] == pytest.approx(
        [2.2, 2.2, 2.55, 2.9, 2.9]
    )


def test_a_cancelled_job_ends_at_the_step(engine: EmulatedEngine) -> None:
    with pytest.raises(JobCancelled):
        engine.run(StageJob(Role.DIT, (LARGE,)), (encoded(engine),), Steps(most=2))


def test_inputs_that_are_missing_are_an_error(engine: EmulatedEngine) -> None:
    with pytest.raises(
        EngineError, match="the dit job lacks the inputs pooled_prompt_embeds, prompt_digest, prompt_embeds"
    ):
        engine.run(StageJob(Role.DIT, (LARGE,)), ({},), Steps())


def test_roles_must_fit_the_memory() -> None:
    engine = EmulatedEngine(PROFILES / "qwen-image-4090-offload.toml", time_scale=1e-6)
    with pytest.raises(LoadError, match=r"dit \+ encoder need .* GB .* has 24.0 GB"):
        engine.set_roles(frozenset({Role.ENCODER, Role.DIT}))
    assert engine.roles == frozenset()


def test_a_job_must_fit_beside_the_weights(engine: EmulatedEngine) -> None:
    huge = ImageParams(height=8192, width=8192, num_inference_steps=1)
    with pytest.raises(OutOfMemory, match=r"1 x 8192x8192 need 64.0 GB, 46.2 GB are free"):
        engine.run(StageJob(Role.DIT, (huge,)), (encoded(engine),), Steps())


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
    """Only the encoder is told the prompt; the members of one batch keep apart."""
    steps, prompts, seeds = Steps(), ("a cat", "a dög"), (7, 2**63 - 1)
    plain = [msgspec.structs.replace(LARGE, previews=1, seed=seed) for seed in seeds]
    asked = [msgspec.structs.replace(LARGE, prompt=prompt) for prompt in prompts]
    encoded = engine.run(StageJob(Role.ENCODER, tuple(asked)), ({}, {}), steps)
    denoised = engine.run(StageJob(Role.DIT, tuple(plain)), tuple(values["dit"] for values in encoded), steps)
    decoder = StageJob(Role.DECODER, tuple(plain))
    pairs = zip(seeds, prompts, strict=True)
    wanted = [{"seed": str(seed), "prompt_digest": prompt_digest(prompt)} for seed, prompt in pairs]
    for latents in ([out["decoder"] for out in denoised], [preview.values for preview in steps.previews]):
        pictures = engine.run(decoder, tuple(latents), steps)
        assert [inscription(picture["image"]["image"]) for picture in pictures] == wanted
        assert all(pack(picture["image"]).total_bytes <= engine.output_bound(decoder) for picture in pictures)
