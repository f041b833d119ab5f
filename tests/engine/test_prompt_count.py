"""How much of a prompt is read: by the tokens that the blocks themselves make of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import transformers

from stage_server.engine.base import StageJob
from stage_server.engine.checkpoint import BUNDLED
from stage_server.engine.diffusers_engine import DiffusersEngine
from tests.engine.conftest import Steps
from wire.params import ImageParams
from wire.types import Role

Engines = Callable[[str], Mapping[Role, DiffusersEngine]]


def read(engines: Mapping[Role, DiffusersEngine], **params: object) -> tuple[int, int]:
    steps = Steps()
    job = StageJob(Role.ENCODER, (ImageParams(width=64, height=64, **params),))  # type: ignore[arg-type]
    engines[Role.ENCODER].run(job, ({},), steps)
    return steps.prompts[0]


def test_tokens_are_those_of_the_template_too(split_engines: Engines) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(BUNDLED / "tiny-shapes" / "tokenizer")
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "a red circle"}], tokenize=False, add_generation_prompt=True, enable_thinking=True
    )
    engines = split_engines("tiny-shapes")
    expected = len(tokenizer(text).input_ids)
    assert read(engines, prompt="a red circle", guidance_scale=3.0, negative_prompt="blue " * 40) == (expected, 0)
    assert read(engines, prompt="a red circle", max_sequence_length=expected) == (expected, 0)
    assert read(engines, prompt="a red circle", max_sequence_length=expected - 2) == (expected, 2)


@pytest.mark.parametrize(
    ("family", "params", "limit"),
    [
        ("tiny-shapes", {}, 512),
        ("flux", {}, 512),  # of T5: CLIP reads 77
        ("flux", {"max_sequence_length": 100}, 100),
        ("flux2-klein", {}, 512),
        ("stable-diffusion-3-t5", {}, 256),
        ("stable-diffusion-3", {}, 77),
        ("stable-diffusion-xl", {}, 77),
    ],
)
def test_what_is_past_the_limit_of_the_tokenizer_that_reads_most(
    family: str, params: dict[str, object], limit: int, split_engines: Engines, caplog: pytest.LogCaptureFixture
) -> None:
    tokens, dropped = read(split_engines(family), prompt="a b " * 400, **params)
    assert tokens > 700
    assert dropped == tokens - limit
    assert "b a b" not in caplog.text


def test_qwen_image_cuts_the_prompt_after_the_template(split_engines: Engines) -> None:
    engines = split_engines("qwen-image")
    tokens, dropped = read(engines, prompt="a b " * 100)
    assert (tokens > 200, dropped) == (True, 0)
    template = read(engines, prompt="a")[0] - 1
    assert read(engines, prompt="a b " * 100, max_sequence_length=64) == (tokens, tokens - 64 - 34)
    assert template > 34
