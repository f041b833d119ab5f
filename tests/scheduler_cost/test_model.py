from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from scheduler.cost.model import CostModel
from scheduler.cost.profile import Profile, bundled
from scheduler.cost.speed import MAX_SERVERS, SpeedFactors
from scheduler.cost.work import Target, Work
from wire.types import Role

PROFILES = bundled()
MIX = (512, 768, 1024, 1536)
H100 = Target.of("black-forest-labs/FLUX.1-dev", "NVIDIA H100 80GB HBM3", "bfloat16")
UNSEEN = Target.of("FLUX.1-dev", "Some New GPU", "bfloat16")
TrueCost = Callable[[int], float]


def find(model: str, device: str) -> Profile:
    return next(p for p in PROFILES if (p.model.name, p.device_class) == (model, device))


def dit(side: int, steps: int = 1, **fields: float) -> Work:
    return Work(Role.DIT, height=side, width=side, steps=steps, **fields)  # type: ignore[arg-type]


def l20(side: int) -> float:
    tokens = (side / 16) ** 2
    c, a, b = find("FLUX.1-dev", "NVIDIA L20").roles[Role.DIT].coefficients
    return c + a * tokens + b * tokens**2


def teach(model: CostModel, seed: int, sides: tuple[int, ...], true: TrueCost = l20, count: int = 20) -> None:
    """``count`` observations with 1 % noise, on four servers."""
    draw = random.Random(seed)
    for _ in range(count):
        side = draw.choice(sides)
        model.observe(dit(side), UNSEEN, f"server-{draw.randrange(4)}", true(side) * draw.gauss(1, 0.01))


def mape(model: CostModel, sides: tuple[int, ...], true: TrueCost = l20) -> float:
    return sum(abs(model.seconds(dit(side), UNSEEN) / true(side) - 1) for side in sides) / len(sides)


@pytest.mark.parametrize("prior", [("FLUX.1-dev", "NVIDIA H100"), ("Qwen-Image-2512", "NVIDIA H100")])
@pytest.mark.parametrize("seed", range(10))
def test_twenty_observations_suffice_on_an_unseen_device(prior: tuple[str, str], seed: int) -> None:
    model = CostModel([find(*prior)])
    assert mape(model, MIX) > 0.3
    teach(model, seed, MIX)
    assert mape(model, MIX) < 0.02


@pytest.mark.parametrize("seed", range(10))
def test_an_unseen_resolution_inside_the_range(seed: int) -> None:
    model = CostModel([find("FLUX.1-dev", "NVIDIA H100")])
    teach(model, seed, (512, 1024, 1536))
    assert mape(model, (640, 768, 896, 1280)) < 0.05


def test_without_any_profile_it_still_learns() -> None:
    model = CostModel()
    assert "generic guess" in model.predict(dit(1024), UNSEEN).source
    teach(model, 1, MIX)
    assert mape(model, MIX) < 0.02


@pytest.mark.parametrize("wrong", [0.7, 1.3])
def test_a_profile_wrong_by_thirty_per_cent_is_corrected(wrong: float) -> None:
    model = CostModel(PROFILES)
    truth = {side: model.seconds(dit(side), H100) * wrong for side in MIX}
    for side in MIX * 3:
        model.observe(dit(side), H100, "server", truth[side])
    assert all(model.seconds(dit(side), H100) == pytest.approx(truth[side], rel=0.02) for side in MIX)


def test_the_profile_gives_the_published_times() -> None:
    model = CostModel(PROFILES)
    prediction = model.predict(dit(1024, steps=50), H100)
    assert prediction.seconds == pytest.approx(6.4, rel=0.001)
    assert prediction.low < prediction.seconds < prediction.high
    assert prediction.source == "profile FLUX.1-dev on NVIDIA H100 in bfloat16, 0 observations"
    assert model.seconds(Work(Role.ENCODER), H100) == pytest.approx(0.0305)
    assert model.seconds(Work(Role.DECODER, 1024, 1024), H100) == pytest.approx(0.0276, rel=0.001)
    assert model.profile(H100) is not None
    assert model.profile(UNSEEN) is None


def test_guidance_and_steps_multiply() -> None:
    model = CostModel(PROFILES)
    one = model.seconds(dit(512), H100)
    guided = Work(Role.DIT, 512, 512, steps=10, cfg=True)
    assert model.seconds(guided, H100) == pytest.approx(20 * one)
    assert model.step_seconds(guided, H100) == pytest.approx(2 * one)


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("NVIDIA A10-PCIE", "on NVIDIA A10 "),
        ("NVIDIA A10 monolithic", "NVIDIA A10 monolithic"),
        ("NVIDIA A100", "borrowed"),
    ],
)
def test_the_most_particular_device_class_is_taken(device: str, expected: str) -> None:
    prediction = CostModel(PROFILES).predict(dit(480), Target.of("Wan2.2-I2V-A14B", device, "int8"))
    assert expected in prediction.source


def test_a_slow_server_is_told_from_its_class() -> None:
    model = CostModel(PROFILES)
    true = model.seconds(dit(1024), H100)
    for i in range(40):
        model.observe(dit(1024), H100, f"server-{i % 4}", true)
    for i in range(60):
        model.observe(dit(1024), H100, f"server-{i % 4}", true * (3 if i % 4 == 0 else 1))
    assert model.speed("server-0") == pytest.approx(3, rel=0.1)
    assert model.speed("server-1") == pytest.approx(1, rel=0.03)
    assert model.seconds(dit(1024), H100) == pytest.approx(true, rel=0.03)
    assert model.seconds(dit(1024), H100, "server-0") == pytest.approx(3 * true, rel=0.1)


def test_one_stalled_job_hardly_moves_anything() -> None:
    model = CostModel(PROFILES)
    true = model.seconds(dit(1024), H100)
    for _ in range(20):
        model.observe(dit(1024), H100, "server", true)
    model.observe(dit(1024), H100, "server", 1000 * true)
    assert model.seconds(dit(1024), H100) == pytest.approx(true, rel=0.02)
    assert model.speed("server") < 1.5


def test_a_device_slow_at_one_stage_is_taken_to_be_slow_at_the_others() -> None:
    model = CostModel([find("FLUX.1-dev", "NVIDIA H100")])
    decode = Work(Role.DECODER, 1024, 1024)
    before = model.seconds(decode, UNSEEN)
    for _ in range(20):
        model.observe(dit(1024), UNSEEN, "server", 5 * 0.128)
    assert model.seconds(decode, UNSEEN) == pytest.approx(5 * before, rel=0.1)


def test_impossible_times_are_ignored() -> None:
    model = CostModel(PROFILES)
    for seconds in (0.0, -1.0, 1e-310, float("nan"), float("inf")):
        model.observe(dit(1024), H100, "server", seconds)
    assert model.predict(dit(1024), H100).source.endswith("0 observations")


def test_the_band_covers_what_is_observed() -> None:
    model = CostModel(PROFILES)
    draw = random.Random(5)
    inside = 0
    for i in range(1200):
        prediction = model.predict(dit(1024), H100)
        seconds = 0.128 * draw.lognormvariate(0, 0.1)
        inside += i >= 200 and seconds <= prediction.high
        model.observe(dit(1024), H100, f"server-{i % 8}", seconds)
    assert 0.96 <= inside / 1000 <= 0.995


def test_a_batch_costs_its_marginal_and_the_marginal_is_learned() -> None:
    model = CostModel(PROFILES)
    qwen = Target.of("Qwen/Qwen-Image-2512", "NVIDIA H100", "bfloat16")
    assert model.batch_marginal(dit(512), qwen) == pytest.approx(0.22)
    assert model.batch_marginal(dit(1024), qwen) == pytest.approx(0.96)
    assert model.seconds(dit(512, batch=4), qwen) == pytest.approx(1.66 * model.seconds(dit(512), qwen))
    single = model.seconds(dit(512), qwen)
    for _ in range(20):
        model.observe(dit(512, batch=4), qwen, "server", single * 2.5)
    assert model.batch_marginal(dit(512), qwen) == pytest.approx(0.5, abs=0.05)
    assert model.batch_marginal(dit(1024), qwen) == pytest.approx(0.96)


def test_equal_histories_give_equal_predictions() -> None:
    first, second = CostModel(PROFILES), CostModel(PROFILES)
    for model in (first, second):
        teach(model, 3, MIX)
    assert [first.predict(dit(s), UNSEEN) for s in MIX] == [second.predict(dit(s), UNSEEN) for s in MIX]


@pytest.mark.parametrize(
    "fields",
    [{"height": -1}, {"steps": 0, "height": 64, "width": 64}, {"height": 64}, {"batch": 0, "height": 64, "width": 64}],
)
def test_impossible_work_is_refused(fields: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"0 or more|1 or more|needs a height and a width"):
        Work(Role.DIT, **fields)  # type: ignore[arg-type]


def test_names_of_servers_that_say_nothing_any_more_are_forgotten_in_the_end() -> None:
    factors = SpeedFactors()
    factors.observe("old", 1.0, 0.5)
    for number in range(MAX_SERVERS):
        factors.observe(f"pod-{number}", 1.0, 0.5)
    assert factors.factor("old") == 1.0
    assert factors.factor("pod-0") > 1.0


def test_short_company_tells_what_a_job_costs_alone_and_long_company_what_one_more_costs() -> None:
    model = CostModel(PROFILES)
    before = model.seconds(dit(512), H100)
    for _ in range(8):
        model.observe(dit(512, batch=1.1), H100, "server", 1.2 * 1.055 * before)
    assert model.batch_marginal(dit(512), H100) == pytest.approx(0.55)
    assert model.seconds(dit(512), H100, "server") == pytest.approx(1.2 * before, rel=0.05)
    for _ in range(8):
        model.observe(dit(512, batch=2.5), H100, "server", 1.2 * before * (1 + 0.2 * 1.5))
    assert model.batch_marginal(dit(512), H100) == pytest.approx(0.2, abs=0.1)
    assert model.seconds(dit(512), H100, "server") == pytest.approx(1.2 * before, rel=0.05)


def test_a_device_that_is_slower_than_its_profile_is_not_taken_for_one_where_company_does_not_pay() -> None:
    """Although all of the first jobs there are in company."""
    model = CostModel(PROFILES)
    single = model.seconds(dit(512), H100)
    for _ in range(6):
        model.observe(dit(512, batch=3), H100, "server", 4 * single * 2.1)
    assert model.batch_marginal(dit(512), H100) == pytest.approx(0.55, abs=0.2)
    assert model.seconds(dit(512), H100, "server") == pytest.approx(4 * single, rel=0.25)


def test_company_that_did_not_pay_is_tried_again_one_day() -> None:
    model = CostModel(PROFILES)
    single = model.seconds(dit(512), H100)
    for _ in range(6):
        model.observe(dit(512), H100, "server", single)
    for _ in range(6):
        model.observe(dit(512, batch=3), H100, "server", single * 4)
    assert model.batch_marginal(dit(512), H100) > 1
    jobs = 0
    while model.batch_marginal(dit(512), H100) >= 1:
        model.observe(dit(512), H100, "server", single)
        jobs += 1
    assert 10 < jobs < 200


def test_a_server_that_got_slow_is_found_out_in_company_too() -> None:
    """What one more costs is well known: it is the server."""
    model = CostModel(PROFILES)
    single = model.seconds(dit(512), H100)
    for _ in range(5):
        model.observe(dit(512, batch=4), H100, "well", single * 2.65)
    for _ in range(12):
        model.observe(dit(512, batch=4), H100, "ill", 3 * single * 2.65)
    assert model.speed("ill") > 2
    assert model.batch_marginal(dit(512), H100) == pytest.approx(0.55, abs=0.1)


@pytest.mark.parametrize("seed", range(3))
def test_predictions_hold_as_long_as_the_version_does(seed: int) -> None:
    """What was asked for once need not be asked for again, and the version does not change for nothing."""
    chance, model = random.Random(seed), CostModel(PROFILES)
    works = [dit(512), dit(1024, steps=20), dit(768, batch=2.0), Work(Role.ENCODER), Work(Role.DECODER, 512, 512)]
    held = 0
    for _ in range(300):
        work = chance.choice(works)
        before, known = model.version, [model.seconds(each, UNSEEN) for each in works]
        model.observe(
            work, UNSEEN, f"server {chance.randrange(3)}", model.seconds(work, UNSEEN) * chance.uniform(0.7, 1.6)
        )
        if model.version == before:
            held += 1
            assert [model.seconds(each, UNSEEN) for each in works] == known
    assert held > 100


def test_a_profile_tells_what_a_level_saves_until_it_is_observed() -> None:
    profile = find("FLUX.1-dev", "NVIDIA H100")
    part = replace(profile.roles[Role.DIT], step_caches={"low": 0.7})
    model = CostModel([replace(profile, roles={**profile.roles, Role.DIT: part})])
    exact = dit(1024, steps=20)
    cached, whole = replace(exact, step_cache="low"), model.seconds(exact, H100)
    assert model.seconds(cached, H100) == pytest.approx(0.7 * whole)
    for _ in range(10):
        model.observe(replace(cached, steps=10), H100, "a", 0.4 * whole / 2)
    assert model.seconds(cached, H100) == pytest.approx(0.4 * whole, rel=0.05)
    assert model.seconds(exact, H100) == whole


def test_steps_that_reuse_others_cost_what_was_observed_of_their_level_and_tell_nothing_else() -> None:
    model, target, exact = CostModel(PROFILES), H100, dit(1024, steps=20)
    cached, other = replace(exact, step_cache="low"), replace(exact, step_cache="high")
    before = model.predict(exact, target)
    assert model.seconds(cached, target) == before.seconds
    for steps, share in ((5, 1.0), (5, 0.2), (5, 0.2), (5, 0.2)) * 5:
        model.observe(replace(cached, steps=steps), target, "a", share * before.seconds * steps / 20)
    assert model.seconds(cached, target) == pytest.approx(0.4 * before.seconds, rel=0.05)
    assert model.seconds(other, target) == before.seconds
    assert model.predict(exact, target) == before
    assert model.speed("a") == 1.0
