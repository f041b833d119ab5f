"""Guidance on two servers: each computes half of the calls, and the picture is that of one server, to the bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Condition
from typing import Any

import pytest
from PIL import Image

from stage_server.engine import pictures
from stage_server.engine.base import JobCancelled, NamedValues, Outputs, PartnerLeft, StageJob, Unwatched
from stage_server.engine.diffusers_engine import DiffusersEngine
from wire.bundle import Bundle, pack, unpack
from wire.params import ImageParams
from wire.types import Role

STEPS = 4
GUIDED = {"guidance_scale": 3.0, "negative_prompt": "a blue star"}
CASES = [
    ("tiny-shapes", "text2image"),
    ("stable-diffusion-3", "text2image"),
    ("stable-diffusion-xl", "text2image"),
    ("qwen-image", "text2image"),
    ("krea-2", "text2image"),
    pytest.param("stable-diffusion-xl", "inpainting", marks=pytest.mark.services),
    pytest.param("anima", "text2image", marks=pytest.mark.services),
    pytest.param("flux-3", "image_conditioned", marks=pytest.mark.services),
    pytest.param("flux2-klein-base", "text2image", marks=pytest.mark.services),
    pytest.param("ernie-image", "text2image", marks=pytest.mark.services),
    pytest.param("qwen-image-edit", "image_conditioned", marks=pytest.mark.services),
]
UNLIKE: dict[str, dict[str, Any]] = {"flux2-klein-base": {"negative_prompt": None}, "flux": {"negative_prompt": None}}
"""What families do not take."""
Engines = Callable[[str], Mapping[Role, DiffusersEngine]]
BOUND = 60.0
"""Seconds, in which whatever is waited for must have come."""


@dataclass
class Table:
    """Where two partners put their halves; each is packed, as it would be to cross."""

    changed: Condition = field(default_factory=Condition)
    lying: dict[tuple[bool, int], Bundle] = field(default_factory=dict)
    gone: set[bool] = field(default_factory=set)


@dataclass
class Seat:
    table: Table
    leads: bool
    gives: int = 1000
    """So many steps; then it falls silent."""

    def give(self, step: int, values: NamedValues) -> None:
        if step <= self.gives:
            with self.table.changed:
                self.table.lying[self.leads, step] = crossed(values)
                self.table.changed.notify_all()

    def take(self, step: int, seconds: float) -> NamedValues | None:
        table, place = self.table, (not self.leads, step)

        def is_over() -> bool:
            return place in table.lying or bool(table.gone)

        with table.changed:
            table.changed.wait_for(is_over, min(seconds, BOUND))
            return unpack(table.lying[place]) if place in table.lying else None

    def leave(self) -> None:
        with self.table.changed:
            self.table.gone.add(self.leads)
            self.table.changed.notify_all()


def crossed(values: Mapping[str, Any]) -> Bundle:
    """As another server receives them."""
    bundle = pack(values)
    payload = bytes(bundle.view(0, bundle.nbytes)) if bundle.nbytes else b""
    return Bundle(bundle.header, bundle.nbytes, ((0, memoryview(payload)),))


@dataclass
class Task:
    """A dit job, and the two engines that may work on it."""

    engines: tuple[DiffusersEngine, DiffusersEngine]
    job: Callable[..., StageJob]
    given: NamedValues

    def run(self, which: int, control: Any, **options: Any) -> Outputs:
        return self.engines[which].run(self.job(**options), self.given, control)


@pytest.fixture(scope="module")
def task(split_engines: Engines, model_folder: Callable[[str], str]) -> Callable[..., Task]:
    linear_png = pictures.encode(Image.linear_gradient("L").convert("RGB"), "png", None)
    second: dict[str, DiffusersEngine] = {}

    def prepared(family: str, workflow: str = "text2image", **options: Any) -> Task:
        engines = split_engines(family)
        if family not in second:
            second[family] = DiffusersEngine(model_folder(family))
            second[family].set_roles(frozenset({Role.DIT}))
        asked = {"num_inference_steps": STEPS, **GUIDED, **UNLIKE.get(family, {}), **options}
        params = ImageParams(workflow=workflow, prompt="a red circle", height=64, width=96, seed=5, **asked)
        images = {} if workflow == "text2image" else {"image": linear_png}
        if workflow == "inpainting":
            images["mask_image"] = linear_png
        encoder = engines[Role.ENCODER]
        given = encoder.run(StageJob(Role.ENCODER, params, images), {}, Unwatched())[Role.DIT]
        return Task(
            (engines[Role.DIT], second[family]), lambda **rest: StageJob(Role.DIT, params, images, **rest), given
        )

    return prepared


@pytest.fixture
def beside() -> Any:
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit


@pytest.mark.parametrize(("family", "workflow"), CASES)
def test_two_make_what_one_makes_with_half_the_calls_each(
    task: Callable[..., Task], steps: type, beside: Any, family: str, workflow: str
) -> None:
    job, alone = task(family, workflow), steps()
    expected = crossed(job.run(0, alone)[Role.DECODER])
    total = alone.seen[-1][1]
    leads, helps, table = steps(), steps(), Table()
    helping: Future[Outputs] = beside(job.run, 1, helps, partner=Seat(table, leads=False))
    made = job.run(0, leads, partner=Seat(table, leads=True))
    assert crossed(made[Role.DECODER]) == expected
    assert helping.result(BOUND) == {}, "what the one that helps has is nobody's"
    assert leads.seen == alone.seen
    assert len(leads.company) == len(helps.company) == len(alone.company) - total


def test_who_gets_no_answer_goes_on_alone(task: Callable[..., Task], steps: type, beside: Any) -> None:
    """The other one falls silent after a step: the half that is missing is computed here, as are all that follow."""
    job, alone, table = task("tiny-shapes"), steps(), Table()
    expected = crossed(job.run(0, alone)[Role.DECODER])
    leads = steps()
    helping: Future[Outputs] = beside(job.run, 1, steps(), partner=Seat(table, leads=False, gives=1))
    assert crossed(job.run(0, leads, partner=Seat(table, leads=True))[Role.DECODER]) == expected
    with pytest.raises(PartnerLeft):
        helping.result(BOUND)
    assert len(leads.company) == len(alone.company) - 1


def test_who_helps_ends_when_it_is_alone(task: Callable[..., Task], steps: type) -> None:
    table = Table(gone={True})
    with pytest.raises(PartnerLeft) as left:
        task("tiny-shapes").run(1, steps(), partner=Seat(table, leads=False))
    assert left.value.steps == 1
    assert False in table.gone


def test_one_that_is_cancelled_says_so_to_the_other(task: Callable[..., Task], steps: type, beside: Any) -> None:
    def cancel(_step: int) -> None:
        raise JobCancelled

    job, table = task("tiny-shapes"), Table()
    helping: Future[Outputs] = beside(job.run, 1, steps(), partner=Seat(table, leads=False))
    with pytest.raises(JobCancelled):
        job.run(0, steps(cancel), partner=Seat(table, leads=True))
    with pytest.raises(PartnerLeft):
        helping.result(BOUND)


def test_who_gives_the_device_to_others_parts_first(task: Callable[..., Task], steps: type, beside: Any) -> None:
    class Urgent(steps):  # type: ignore[misc]
        def wanted(self) -> bool:
            return len(self.seen) == 2

    job, alone, table = task("tiny-shapes"), steps(), Table()
    expected = crossed(job.run(0, alone)[Role.DECODER])
    leads = Urgent()
    helping: Future[Outputs] = beside(job.run, 1, steps(), partner=Seat(table, leads=False))
    assert crossed(job.run(0, leads, partner=Seat(table, leads=True))[Role.DECODER]) == expected
    with pytest.raises(PartnerLeft):
        helping.result(BOUND)
    assert len(leads.company) == len(alone.company) - 2


def test_steps_without_guidance_are_nobody_elses(task: Callable[..., Task], steps: type, beside: Any) -> None:
    job, alone, table = task("tiny-shapes", guidance_scale=1.0), steps(), Table()
    expected = crossed(job.run(0, alone)[Role.DECODER])
    leads, helps = steps(), steps()
    helping: Future[Outputs] = beside(job.run, 1, helps, partner=Seat(table, leads=False))
    assert crossed(job.run(0, leads, partner=Seat(table, leads=True))[Role.DECODER]) == expected
    helping.result(BOUND)
    assert len(leads.company) == len(helps.company) == len(alone.company)
    assert not table.lying


def test_a_model_without_guider_is_computed_by_one(task: Callable[..., Task], steps: type) -> None:
    job, table = task("flux"), Table()
    expected = crossed(job.run(0, steps())[Role.DECODER])
    assert crossed(job.run(0, steps(), partner=Seat(table, leads=True))[Role.DECODER]) == expected
    with pytest.raises(PartnerLeft):
        job.run(1, steps(), partner=Seat(table, leads=False))
