"""When requests leave, and which: the same for the same seed."""

from __future__ import annotations

import itertools
import json
import statistics
from pathlib import Path
from random import Random

import pytest

from clients.api import Call, Upload
from clients.load.arrivals import Limits, Planned, gamma, plan, read_trace
from clients.load.kinds import Kind, parse_kind, read_kinds

KINDS = [Kind("small", Call({"size": "64x64"}), 3.0), Kind("large", Call({"size": "128x128", "seed": 9}), 1.0)]


def planned(seed: int, rate: float = 10.0, requests: int = 2000, seeded_share: float = 0.5) -> list[Planned]:
    times = gamma(rate, 1.0, Random(f"{seed}/arrivals"))
    return list(plan(times, KINDS, Limits(requests), seed, seeded_share))


@pytest.mark.parametrize("cv", [0.5, 1.0, 3.0])
def test_gaps_have_the_rate_and_the_burstiness_that_were_asked_for(cv: float) -> None:
    times = list(itertools.islice(gamma(5.0, cv, Random(1)), 40_000))
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert statistics.mean(gaps) == pytest.approx(0.2, rel=0.05)
    assert statistics.stdev(gaps) / statistics.mean(gaps) == pytest.approx(cv, rel=0.05)


def test_a_seed_fixes_the_load_and_another_rate_keeps_its_requests() -> None:
    first, slower = planned(3), planned(3, rate=1.0)
    assert first == planned(3)
    assert first != planned(4)
    assert [(p.kind, p.seed) for p in first] == [(p.kind, p.seed) for p in slower]
    assert first[0].at * 10 == pytest.approx(slower[0].at)


def test_weights_and_the_share_of_seeds_are_kept() -> None:
    found = planned(3)
    small = [p for p in found if p.kind.name == "small"]
    assert len(small) / len(found) == pytest.approx(0.75, abs=0.03)
    assert sum(p.seed is not None for p in small) / len(small) == pytest.approx(0.5, abs=0.05)
    assert {p.call.fields["seed"] for p in found if p.kind.name == "large"} == {9}, "a kind's own seed stays"
    seeded = planned(3, seeded_share=1.0)
    assert all(p.call.fields["seed"] == (9 if p.kind.name == "large" else i) for i, p in enumerate(seeded))


def test_a_duration_ends_it() -> None:
    times = [0.5, 1.5, 2.5]
    assert [p.at for p in plan(times, KINDS, Limits(seconds=2.0), 0, 0.0)] == [0.5, 1.5]


def test_a_mix_in_one_line() -> None:
    kinds = read_kinds("0.25:512x512/20, 0.75:768x768+stream", {"prompt": "x"})
    assert [(kind.name, kind.weight, kind.call.fields) for kind in kinds] == [
        ("512x512/20", 0.25, {"prompt": "x", "size": "512x512", "num_inference_steps": 20}),
        ("768x768+stream", 0.75, {"prompt": "x", "size": "768x768", "stream": True, "partial_images": 1}),
    ]
    with pytest.raises(ValueError, match="'512x512' is not WEIGHT:WIDTHxHEIGHT/STEPS"):
        read_kinds("512x512", {})
    with pytest.raises(ValueError, match="a weight must be above 0"):
        read_kinds("0:512x512", {})


@pytest.mark.parametrize("suffix", ["toml", "json"])
def test_a_file_of_kinds_has_edits_and_objectives(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "photo.png").write_bytes(b"photo")
    toml = '[[kind]]\nweight = 2\nslo = 8\nimage = "photo.png"\nprompt = "y"\n[[kind]]\nsize = "64x64"\nn = 2\n'
    entries = [{"weight": 2, "slo": 8, "image": "photo.png", "prompt": "y"}, {"size": "64x64", "n": 2}]
    path = tmp_path / f"kinds.{suffix}"
    path.write_text(toml if suffix == "toml" else json.dumps(entries))
    photo = Upload("photo.png", b"photo")
    assert read_kinds(str(path), {"prompt": "x"}) == [
        Kind("auto+edit", Call({"prompt": "y"}, (photo,)), 2.0, 8.0),
        Kind("64x64", Call({"prompt": "x", "size": "64x64", "n": 2})),
    ]


@pytest.mark.parametrize("text", ["", "kind = 3", '[[kind]]\nmask = "m.png"', "[[kind]]\nweight = 'x'"])
def test_a_bad_file_of_kinds_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "kinds.toml"
    path.write_text(text)
    (tmp_path / "m.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"kinds\.toml: no kinds of requests"):
        read_kinds(str(path), {})


def test_a_trace_is_read_in_order_and_a_bad_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text('{"at": 2, "size": "64x64"}\n{"at": 1, "prompt": "y"}\n')
    base: dict[str, object] = {"prompt": "x"}
    early, late = parse_kind({"prompt": "y"}, base, tmp_path), parse_kind({"size": "64x64"}, base, tmp_path)
    assert read_trace(path, base) == [Planned(1.0, early), Planned(2.0, late)]
    path.write_text('{"at": 0}\n{"prompt": "y"}\n')
    with pytest.raises(ValueError, match=r"trace\.jsonl:2: not"):
        read_trace(path, base)
