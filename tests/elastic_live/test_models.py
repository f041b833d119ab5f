"""Servers that may serve two models, and a load that swings from one to the other: they follow it, and every picture is
that of its model alone."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import shutil
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import stage_server
from gateway.settings import Settings
from scheduler import actions as act
from scheduler import events as ev
from tests.elastic_live.conftest import KEY, PATIENCE, PROFILE
from wire.types import REQUIRED, Role, server_name

MODEL = Path(stage_server.__file__).parent / "models" / "tiny-shapes"
OPTIONS = ("--threads", "1", "--device", "cpu")
SEEDS = (3, 4)

pytestmark = pytest.mark.services


@pytest.fixture
def settings() -> Settings:
    return Settings(
        admin_key=KEY,
        profiles=(PROFILE,),
        default_model="tiny-shapes",
        role_interval_seconds=0.25,
        role_dwell_seconds=1.0,
        heartbeat_seconds=0.5,
        liveness_seconds=20.0,
    )


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A second set of weights for the bundled model's architecture."""
    folder = Path(shutil.copytree(MODEL, tmp_path / "other"))
    generator = torch.Generator().manual_seed(1)
    for file in (folder / "transformer").glob("*.safetensors"):
        weights = load_file(file)
        noise = {key: torch.randn(value.shape, generator=generator) for key, value in weights.items()}
        changed = {key: value * (1 + 0.2 * noise[key].to(value.dtype)) for key, value in weights.items()}
        save_file(changed, file, {"format": "pt"})
    return folder


def picture(answer: Any) -> str:
    assert answer.status_code == 200, answer.text
    return hashlib.sha256(base64.b64decode(answer.json()["data"][0]["b64_json"])).hexdigest()


def seed_of(answer: Any) -> str:
    """As an emulated server writes it into its blank picture."""
    image = Image.open(BytesIO(base64.b64decode(answer.json()["data"][0]["b64_json"])))
    image.load()  # the text comes after the picture
    return str(image.info["seed"])


async def ask(site: Any, model: str, number: int) -> tuple[str, int, str]:
    seed = SEEDS[number % len(SEEDS)]
    return model, seed, picture(await site.picture(model, "64x64", 4, seed))


async def alone(site: Any, other: Path) -> dict[tuple[str, int], str]:
    """What servers of one model each make."""
    for name, model in (("alone", "tiny-shapes"), ("alone as well", str(other))):
        await site.serve(name, *REQUIRED, options=(*OPTIONS, "--model", model))
    made = await asyncio.gather(*(ask(site, model, n) for model in ("tiny-shapes", "other") for n in range(len(SEEDS))))
    for process in site.processes:
        process.terminate()
    for name in ("alone", "alone as well"):
        await site.tape.find(ev.ServerLost, lambda event, name=name: server_name(event.server) == name)
    return {(model, seed): digest for model, seed, digest in made}


async def test_servers_follow_the_load_from_one_model_to_the_other(site: Any, other: Path) -> None:
    right = await alone(site, other)
    assert len(set(right.values())) == 4
    mine = (*OPTIONS, "--model", "tiny-shapes", "--may-load", f"other={other}")
    theirs = (*OPTIONS, "--model", str(other), "--may-load", "tiny-shapes")
    for name, options in (("a", mine), ("b", mine), ("c", theirs)):
        await site.serve(name, *REQUIRED, options=options)
        await site.tape.find(ev.ServerJoined, lambda event, name=name: event.server.name == f"{name}.2")
    began = len(site.tape.items)

    def moves() -> list[act.AssignRoles]:
        """Roles of the model that a server did not begin with."""
        orders = [item for item in site.tape.items[began:] if isinstance(item, act.AssignRoles)]
        return [order for order in orders if server_name(order.server).endswith(".2") and order.roles]

    async def load(model: str, rare: str) -> list[tuple[str, int, str]]:
        kinds = [*[model] * 36, *[rare] * 4]
        return await asyncio.gather(*(ask(site, kind, n) for n, kind in enumerate(kinds)))

    made = await load("tiny-shapes", "other")
    async with asyncio.timeout(PATIENCE):  # a fast machine is through with the first of it before roles move
        while not moves():
            made += await load("other", "tiny-shapes")

    assert [one for one in made if right[one[:2]] != one[2]] == []
    runs = [item for item in site.tape.items[began:] if isinstance(item, act.Run)]
    assert len(runs) == 3 * len(made), "something ran twice"


async def test_a_model_that_nobody_holds_is_loaded_for_its_first_request(site: Any, other: Path) -> None:
    options = (*OPTIONS, "--model", "tiny-shapes", "--may-load", f"other={other}")
    await site.serve("a", *REQUIRED, options=options)
    await site.tape.find(ev.ServerJoined, lambda event: event.server.name == "a.2")
    model, _, digest = await ask(site, "other", 0)
    assert (model, len(digest)) == ("other", 64)
    (order,) = site.tape.all(act.AssignRoles)
    assert (server_name(order.server), order.roles) == ("a.2", frozenset(REQUIRED))
    assert "no server held" in order.reason


async def test_emulated_servers_with_room_for_one_model_change_places(site: Any) -> None:
    """The two models' transformers fill a device each: what comes waits for what goes."""
    mine = ("--engine", "emulated", "--profile", str(PROFILE), "--model", "first", "--may-load", f"second={PROFILE}")
    await site.serve_all(mine, a=(Role.ENCODER, Role.DECODER), b=(Role.DIT,), c=(Role.DIT,))
    for name in "abc":
        await site.tape.find(ev.ServerJoined, lambda event, name=name: event.server.name == f"{name}.2")
    answers = await asyncio.gather(*(site.picture("first", "64x64", 10, n) for n in range(50)))
    answers += await asyncio.gather(*(site.picture("second", "64x64", 10, n) for n in range(50)))
    assert [answer.status_code for answer in answers] == [200] * 100
    assert [seed_of(answer) for answer in answers] == [str(n) for n in range(50)] * 2
    dits = site.tape.all(act.Run, lambda run: run.role is Role.DIT)
    assert {server_name(run.server).partition(".")[2] for run in dits} == {"", "2"}
    assert len(dits) == 100
