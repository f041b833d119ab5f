"""``python -m stage_server profile``: real jobs timed, forms fitted, and a file that all of its readers accept."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from torch.utils.flop_counter import FlopCounterMode

from scheduler.cost.profile import Profile, load
from stage_server.__main__ import main
from stage_server.engine.diffusers_engine import DiffusersEngine
from stage_server.engine.emulated import EmulatedEngine
from stage_server.profiling import measure, together
from stage_server.profiling.command import default_sizes
from stage_server.profiling.fit import errors, fit
from tests.engine.enhancer_folder import save_enhancer
from tests.engine.upscaler_folder import FACTOR, save_upscaler
from wire.params import ModelInfo
from wire.types import REQUIRED, Role


def test_exact_times_give_exact_coefficients() -> None:
    rows = [(1.0, n, n * n) for n in (16.0, 256.0, 4096.0)]
    truth = (0.01, 2e-5, 3e-9)
    seconds = [sum(c * x for c, x in zip(truth, row, strict=True)) for row in rows]
    assert fit(rows, seconds) == pytest.approx(truth, rel=1e-6)
    assert errors(rows, seconds, truth) == pytest.approx((0.0, 0.0), abs=1e-9)


def test_no_coefficient_is_negative_and_small_jobs_count_as_much_as_large_ones() -> None:
    rows = [(1.0, n) for n in (1.0, 2.0, 1000.0)]
    assert fit(rows, [1.0, 0.5, 0.25]) == (pytest.approx(0.333, abs=0.01), 0.0)
    fixed, slope = fit(rows, [1.0, 1.0, 10.0])
    assert (fixed, slope) == (pytest.approx(1.0, rel=0.05), pytest.approx(0.009, rel=0.05))


def test_sizes_reach_from_the_smallest_to_the_largest_served() -> None:
    info = ModelInfo(name="m", key="m@1", family="f", dtype="float32", size_multiple=16, max_pixels=1 << 20,
                     default_size=(256, 256))  # fmt: skip
    assert default_sizes(info) == ((64, 64), (128, 128), (256, 256), (640, 640), (1024, 1024))


def measured(model: str, path: Path, *sizes: str, further: Sequence[str] = ()) -> Profile:
    options = ("--device", "cpu", "--repeats", "1", "--sizes", ",".join(sizes), "--output", str(path))
    assert main(["profile", "--model", model, *options, *further]) == 0
    return load(path)


def test_the_bundled_model_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tiny.toml"
    with FlopCounterMode(display=False) as flops:
        # So many operations take so long, and each look at the clock something: no busy machine misleads the fit.
        looks = itertools.count(1)
        for module in (measure, together):
            monkeypatch.setattr(module, "perf_counter", lambda: next(looks) / 1e6 + flops.get_total_flops() / 1e9)
        profile = measured("tiny-shapes", path, "64x64", "128x96", "192x192")
    shape = profile.model
    assert (shape.name, shape.default_steps) == ("tiny-shapes", 12)
    assert shape.guidance_passes == 2
    assert (shape.pixels_per_token, shape.latent_pixels, shape.size_multiple) == (32, 16, 32)
    assert (profile.device_class, profile.precision) == ("cpu-1", "float32")
    assert {role: part.weights_bytes > 1e6 for role, part in profile.roles.items()} == dict.fromkeys(REQUIRED, True)
    assert all(part.load_seconds > 0 for part in profile.roles.values())
    names = {(spec.port, spec.name, spec.shape) for role in REQUIRED for spec in profile.roles[role].outputs}
    assert (Role.DIT, "prompt_embeds", ("text_tokens", 128)) in names
    assert (Role.DECODER, "latents", (1, 16, "latent_height", "latent_width")) in names
    assert profile.roles[Role.ENCODER].coefficients[2] > 0  # uploaded pictures were encoded
    engine = EmulatedEngine(path)
    assert engine.capable()[Role.DIT].weight_bytes == profile.roles[Role.DIT].weights_bytes


def test_stages_beside_the_model_are_measured_like_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upscaler, enhancer = save_upscaler(tmp_path / "upscaler"), save_enhancer(tmp_path / "enhancer", eos_token_id=None)
    path = tmp_path / "tiny.toml"
    options = ("--upscaler", str(upscaler), "--enhancer", str(enhancer), "--enhancer-tokens", "32")
    with FlopCounterMode(display=False) as flops:
        looks = itertools.count(1)
        for module in (measure, together):
            monkeypatch.setattr(module, "perf_counter", lambda: next(looks) / 1e6 + flops.get_total_flops() / 1e9)
        profile = measured("tiny-shapes", path, "64x64", "128x96", further=options)
    assert set(profile.roles) == set(Role)
    enlarging, writing = profile.roles[Role.UPSCALER], profile.roles[Role.ENHANCER]
    assert enlarging.factor == FACTOR
    assert enlarging.coefficients[1] > 0, "twice as many pixels take longer"
    assert writing.coefficients[1] > 0, "twice as many tokens take longer"
    for part in (enlarging, writing):
        assert part.weights_bytes > 1e3
        assert part.load_seconds > 0
        assert part.batch_marginal == ((0.0, 1.0),)
    emulated = EmulatedEngine(path).describe()
    assert emulated.upscaler is not None
    assert emulated.upscaler.factor == FACTOR
    assert "upscaler" in profile.source


def test_tokens_of_no_enhancer(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "--model", "tiny-shapes", "--enhancer-tokens", "32"]) == 2
    assert "add --enhancer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("family", "latents", "lengthens"),
    [
        ("flux2-klein", (1, 16, "latent_height", "latent_width"), True),
        ("stable-diffusion-xl", (1, 4, "latent_height", "latent_width"), False),
        ("qwen-image", (1, 4, 1, "latent_height", "latent_width"), False),
    ],
)
def test_other_families(
    family: str, latents: tuple[object, ...], lengthens: bool, model_folder: Callable[[str], str], tmp_path: Path
) -> None:
    profile = measured(model_folder(family), tmp_path / "profile.toml", "64x64", "128x128")
    (spec,) = (spec for spec in profile.roles[Role.DIT].outputs if spec.name == "latents")
    assert spec.shape == latents
    rule = profile.model.references
    assert (rule is not None and rule.in_sequence and rule.max_area == 1 << 20) is lengthens


def test_pictures_are_timed_at_the_size_at_which_they_are_encoded(model_folder: Callable[[str], str]) -> None:
    """FLUX.1 Kontext encodes each at a megapixel."""
    engine = DiffusersEngine(model_folder("flux-kontext"))
    engine.set_roles(frozenset({Role.ENCODER}))
    times = measure.Bench(engine, ((64, 64), (128, 96)), 1)._image_encoding()
    assert set(times) == {(1024, 1024), (1184, 880)}


@pytest.mark.parametrize(
    ("sizes", "complaint"),
    [
        ("64x64", "is no list of at least two sizes"),
        ("64x64,big", "is no list of at least two sizes"),
        ("64x64,100x100", "100x100: tiny-shapes takes multiples of 32"),
        ("64x64,4096x4096", "4096x4096: tiny-shapes serves 1572864 pixels at most"),
    ],
)
def test_sizes_that_cannot_be_timed(sizes: str, complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "--model", "tiny-shapes", "--device", "cpu", "--sizes", sizes]) == 2
    told = capsys.readouterr().err
    assert complaint in told
    assert "Traceback" not in told


def test_a_file_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--device", "cpu", "--sizes", "64x64,96x96", "--repeats", "1", "--output", str(tmp_path / "no" / "such"))
    assert main(["profile", "--model", "tiny-shapes", *options]) == 2
    assert "cannot be written: No such file or directory" in capsys.readouterr().err
