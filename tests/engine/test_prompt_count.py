"""How much of a prompt is read: by the tokens that the blocks themselves make of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from threading import Event
from types import SimpleNamespace

import pytest
import transformers
from diffusers.modular_pipelines.flux2.encoders import Flux2TextEncoderStep, format_text_input
from diffusers.modular_pipelines.krea2 import encoders as krea2
from diffusers.modular_pipelines.qwenimage.prompt_templates import QWENIMAGE_EDIT_PROMPT_TEMPLATE

from stage_server.engine.base import StageJob
from stage_server.engine.checkpoint import BUNDLED
from stage_server.engine.diffusers_engine import DiffusersEngine
from stage_server.engine.prompt_count import PromptCount
from tests.engine.conftest import Steps
from wire.params import ImageParams
from wire.types import Role

Engines = Callable[[str], Mapping[Role, DiffusersEngine]]


def read(
    engines: Mapping[Role, DiffusersEngine], images: Mapping[str, bytes] | None = None, **params: object
) -> tuple[int, int]:
    steps = Steps()
    job = StageJob(Role.ENCODER, ImageParams(width=64, height=64, **params), images or {})  # type: ignore[arg-type]
    engines[Role.ENCODER].run(job, {}, steps)
    assert steps.prompt
    return steps.prompt


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
        ("flux2-dev", {}, 512),
        ("flux2-dev", {"max_sequence_length": 300}, 300),
        ("flux2-klein", {}, 512),
        ("krea-2", {}, 512 + 34 - 5),
        ("krea-2", {"max_sequence_length": 500}, 500 + 34 - 5),
        ("stable-diffusion-3-t5", {}, 256),
        ("stable-diffusion-3", {}, 77),
        ("stable-diffusion-xl", {}, 77),
    ],
)
def test_what_is_past_the_limit_of_the_tokenizer_that_reads_most(
    family: str, params: dict[str, object], limit: int, split_engines: Engines, caplog: pytest.LogCaptureFixture
) -> None:
    engines = split_engines(family)
    tokens, dropped = read(engines, prompt="a b " * 400, **params)
    assert tokens > 700
    behind = 0  # what is cut
    if family == "krea-2":
        behind = len(engines[Role.ENCODER]._pipeline.tokenizer(krea2._PROMPT_TEMPLATE_ENCODE_SUFFIX).input_ids)
    assert dropped == tokens - behind - limit
    assert "b a b" not in caplog.text


def test_the_end_of_krea_2_s_template_counts_too(split_engines: Engines) -> None:
    engines = split_engines("krea-2")
    tokenizer = engines[Role.ENCODER]._pipeline.tokenizer
    text = krea2._PROMPT_TEMPLATE_ENCODE_PREFIX + "a red circle" + krea2._PROMPT_TEMPLATE_ENCODE_SUFFIX
    expected = (len(tokenizer(text).input_ids), 0)
    assert read(engines, prompt="a red circle") == expected
    assert read(engines, prompt="a red circle", negative_prompt="blue " * 50, guidance_scale=3.0) == expected


def test_qwen_image_cuts_the_prompt_after_the_template(split_engines: Engines) -> None:
    engines = split_engines("qwen-image")
    tokens, dropped = read(engines, prompt="a b " * 100)
    assert (tokens > 200, dropped) == (True, 0)
    template = read(engines, prompt="a")[0] - 1
    assert read(engines, prompt="a b " * 100, max_sequence_length=64) == (tokens, tokens - 64 - 34)
    assert template > 34


def test_a_chat_template_that_tokenizes_is_counted(split_engines: Engines) -> None:
    engines = split_engines("flux2-dev")
    tokenizer = engines[Role.ENCODER]._pipeline.tokenizer
    messages = format_text_input(["a red circle"], system_message=Flux2TextEncoderStep.DEFAULT_SYSTEM_MESSAGE)
    (ids,) = tokenizer.apply_chat_template(messages, add_generation_prompt=False, return_dict=True)["input_ids"]
    assert read(engines, prompt="a red circle") == (len(ids), 0)
    assert read(engines, prompt="a red circle", max_sequence_length=len(ids) - 3) == (len(ids), 3)


def test_so_is_one_of_a_processor() -> None:
    """FLUX.2 [dev]'s tokenizer is one, of Pixtral."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(BUNDLED / "tiny-shapes" / "tokenizer")
    template = "{% for message in messages %}{{ message.role }} {{ message.content[0].text }}{% endfor %}"
    pytest.importorskip("torchvision")
    tokenizer.add_special_tokens({"additional_special_tokens": ["[IMG]", "[IMG_BREAK]", "[IMG_END]"]})
    processor = transformers.PixtralProcessor(transformers.PixtralImageProcessor(), tokenizer, chat_template=template)
    view = SimpleNamespace(tokenizer=processor)
    count = PromptCount(view, 40, 512)  # type: ignore[arg-type]
    messages = format_text_input(["a b " * 50, "c"], system_message="draw")
    view.tokenizer.apply_chat_template(
        messages, tokenize=True, return_dict=True, padding="max_length", truncation=True, max_length=40
    )
    expected = len(tokenizer("system drawuser " + "a b " * 50).input_ids)
    assert count.result() == (expected, expected - 40)


def test_a_prompt_beside_pictures_is_counted_without_them(split_engines: Engines, png: bytes) -> None:
    engines = split_engines("qwen-image-edit")
    tokenizer = engines[Role.ENCODER]._pipeline.processor.tokenizer
    text = QWENIMAGE_EDIT_PROMPT_TEMPLATE.format("make the circle blue").replace("<|image_pad|>", "")
    params = {"workflow": "image_conditioned", "prompt": "make the circle blue", "negative_prompt": "red " * 90}
    tokens = read(engines, {"image": png}, guidance_scale=3.0, **params)
    assert tokens == (len(tokenizer(text).input_ids), 0)


def test_whatever_tokenizes_does_so_alone(split_engines: Engines) -> None:
    """Tokenizers of jobs that compute together are the same; each use sets anew how they cut and pad."""
    tokenizer = split_engines("stable-diffusion-xl")[Role.ENCODER]._pipeline.tokenizer
    entered, go_on, held = Event(), Event(), Event()

    class Slow:
        def tokenize(self, text: str) -> list[str]:
            entered.set()
            assert go_on.wait(10)
            return tokenizer.tokenize(text)

    slow, quick = SimpleNamespace(tokenizer=Slow()), SimpleNamespace(tokenizer=tokenizer)
    for view in (slow, quick):
        PromptCount(view, None, None)

    def pad() -> list[int]:
        held.set()
        return quick.tokenizer(["a star"], padding="max_length", max_length=20).input_ids[0]

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(slow.tokenizer.tokenize, "a star")
        assert entered.wait(10)
        second = pool.submit(pad)
        assert held.wait(10)
        assert not wait([second], 0.05).done
        go_on.set()
        assert first.result(10)
        assert len(second.result(10)) == 20
