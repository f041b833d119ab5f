"""Real stage servers with broken models end with one clear line, or answer with an error; never with a picture."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from scheduler import events as ev
from stage_server.engine.checkpoint import BUNDLED
from tests.integration.conftest import Service, Start
from wire.errors import Code
from wire.types import REQUIRED, Role

MODEL = BUNDLED / "tiny-shapes"
DIT = "transformer/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"
WORD = "triangle"
"""Its token has its embedding beyond the first 64 KiB of the file, which make the model's key."""
BODY = {"model": "tiny", "size": "64x64", "num_inference_steps": 1}


def copied(folder: Path) -> Path:
    return Path(shutil.copytree(MODEL, folder / "tiny"))


def without_a_weight(folder: Path) -> None:
    weights = load_file(folder / DIT)
    del weights[min(weights)]
    save_file(weights, folder / DIT, {"format": "pt"})


def with_nan(folder: Path) -> None:
    weights = load_file(folder / DIT)
    weights[max(weights)].fill_(float("nan"))
    save_file(weights, folder / DIT, {"format": "pt"})


def with_nan_in_a_word(folder: Path) -> None:
    """Not in the part of the file by which the model's key is told."""
    token = max(AutoTokenizer.from_pretrained(MODEL / "tokenizer")(f"a {WORD}").input_ids)
    weights = load_file(folder / TEXT)
    row = weights["embed_tokens.weight"][token]
    assert token * row.nbytes > 1 << 16
    row.fill_(float("nan"))
    save_file(weights, folder / TEXT, {"format": "pt"})


@pytest.mark.services
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda folder: (folder / DIT).write_bytes((folder / DIT).read_bytes()[:100]),
            "is cut short inside its header",
        ),
        (lambda folder: (folder / DIT).write_bytes(b"version https://git-lfs.github.com"), "is a Git LFS pointer"),
        (lambda folder: (folder / "model_index.json").write_text("{"), "model_index.json is not readable JSON"),
        (without_a_weight, "1 weights of a ZImageTransformer2DModel of this configuration are not in its files"),
        (with_nan, "cannot run the role dit here: the dit's latents holds NaN, computed in float32"),
    ],
)
def test_a_server_of_a_broken_model_ends_with_one_line(
    damage: Callable[[Path], object], message: str, tmp_path: Path, start: Start
) -> None:
    folder = copied(tmp_path)
    damage(folder)
    server = start("-m", "stage_server", "--model", str(folder), "--role", "dit", "--gateway", "tcp://127.0.0.1:1")
    assert server.popen.wait(120) == 2, server.text()
    assert "Traceback" not in server.text()
    (line,) = [line for line in server.text().splitlines() if line.startswith("stage_server: ")]
    assert message in line


async def draw(http: httpx.AsyncClient, prompt: str) -> httpx.Response:
    return await http.post("/v1/images/generations", json=BODY | {"prompt": prompt}, timeout=60)


@pytest.mark.services
async def test_nan_is_answered_with_what_to_do(tmp_path: Path, service: Service, http: httpx.AsyncClient) -> None:
    folder = copied(tmp_path)
    with_nan_in_a_word(folder)
    await service.serve("all", *REQUIRED, model=str(folder))

    answer = await draw(http, f"a {WORD}")

    assert answer.status_code == 500
    assert answer.headers["x-should-retry"] == "false"
    error = answer.json()["error"]
    assert (error["type"], error["code"], error["param"]) == ("server_error", "server_error", None)
    assert "the encoder's prompt_embeds holds NaN, computed in float32" in error["message"]
    assert str(tmp_path) not in error["message"]
    assert len(service.tape.runs(Role.ENCODER)) == 2
    assert (await draw(http, "a circle")).status_code == 200


@pytest.mark.services
async def test_another_server_of_the_role_makes_the_picture(
    tmp_path: Path, service: Service, http: httpx.AsyncClient
) -> None:
    whole, broken = copied(tmp_path / "whole"), copied(tmp_path / "broken")
    with_nan_in_a_word(broken)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(service.serve("broken", Role.ENCODER, model=str(broken)))
        tasks.create_task(service.serve("whole", *REQUIRED, model=str(whole)))

    answers = await asyncio.gather(*(draw(http, f"a {WORD}") for _ in range(4)))

    assert [answer.status_code for answer in answers] == [200] * 4

    failed = [event for event in service.tape.events if isinstance(event, ev.JobFailed)]
    assert {(event.code, event.server.partition("/")[0]) for event in failed} == {(Code.NON_FINITE, "broken")}
