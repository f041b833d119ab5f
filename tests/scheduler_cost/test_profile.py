from __future__ import annotations

from pathlib import Path

import pytest

from scheduler.cost.profile import ProfileError, bundled, load, parse
from wire.types import Role


def flux_text() -> str:
    folder = Path(__file__).parents[2] / "scheduler" / "profiles"
    return (folder / "flux.1-dev-h100.toml").read_text()


def test_every_bundled_profile_reads_and_names_its_sources() -> None:
    profiles = bundled()
    assert len(profiles) == 9
    keys = {(p.model.name, p.device_class, p.precision) for p in profiles}
    assert len(keys) == len(profiles)
    assert all(len(p.source) > 50 for p in profiles)


def test_hand_off_sizes_are_those_of_the_models() -> None:
    flux = parse(flux_text(), "flux")
    encoder = flux.output_bytes(Role.ENCODER, 1024, 1024)
    dit = flux.output_bytes(Role.DIT, 1024, 1024)
    assert encoder == {Role.DIT: 512 * 4096 * 2 + 768 * 2}
    assert dit == {Role.DECODER: 16 * 128 * 128 * 2}
    assert flux.output_bytes(Role.DECODER, 1024, 1024) == {}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("schema = 1", "schema = 9", "schema is 9, this version reads 1"),
        ("weights_gb = 23.8", "", r"\[dit\]: weights_gb is missing"),
        ("weights_gb = 23.8", "weights_gb = -1", r"\[dit\]: weights_gb is -1; it must be a number, 0 or more"),
        ("weights_gb = 23.8", "weights_gb = 23.8\nwieghts = 1", r"\[dit\]: unknown wieghts"),
        ("default_steps = 50", "default_steps = 0", r"\[model\]: default_steps is 0; .* whole number of 1 or more"),
        ("guidance_passes = 1 #", "guidance_passes = 3 #", "from 1 to 2"),
        ("[[0, 0.7]]", "[[5, 0.7], [4, 0.7]]", "sorted by rising tokens"),
        ("[[0, 0.7]]", "[]", "a list of \\[tokens, marginal cost\\]"),
        ('"text_tokens", 4096', '"depth", 4096', r"\[encoder.outputs.0\]: shape"),
        ('dtype = "bfloat16", shape = [1, 768]', 'dtype = "float99", shape = [1, 768]', "one of bool, uint8"),
        ('precision = "bfloat16"', "precision = 16", r"\[device\]: precision is 16; it must be a text"),
        ("fixed_seconds = 0.0305", "fixed_seconds = 0.0\nseconds_per_image_pixel = 0.0", "not TOML"),
        ("[device]", "[device", "not TOML"),
    ],
)
def test_a_wrong_profile_is_named_with_file_key_and_remedy(old: str, new: str, message: str) -> None:
    text = flux_text()
    assert old in text
    with pytest.raises(ProfileError, match=f"profile my.toml.*{message}"):
        parse(text.replace(old, new, 1), "my.toml")


def test_a_stage_that_takes_no_time_is_refused() -> None:
    text = flux_text().replace("fixed_seconds = 0.002 #", "fixed_seconds = 0.0 #").replace("2.4414e-8", "0.0")
    with pytest.raises(ProfileError, match=r"\[decoder\]: all of fixed_seconds, seconds_per_pixel are 0"):
        parse(text, "my.toml")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match=r"nowhere\.toml cannot be read"):
        load(tmp_path / "nowhere.toml")
