"""A language model that writes prompts anew: a causal one, as transformers has it.

Beside the diffusion model and apart from it: it reads a prompt and writes a prompt. It takes the likeliest token each
time, so that equal prompts become equal prompts, whoever asks and with whatever seed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, StoppingCriteria
from transformers.generation import LogitsProcessor
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from stage_server.engine.base import BadJob, LoadError, NonFinite
from stage_server.engine.published import check_all_found, digest_of, located, name_of, weights_of
from stage_server.engine.weights import element_counts, loaded_bytes, read_json
from wire.params import Enhancer
from wire.types import MAX_PROMPT

INSTRUCTION = (
    "You rewrite prompts for a model that draws pictures. Keep everything that the prompt asks for, and add what it "
    "leaves open: setting, composition, light, colors, style. Words that the picture shall show stay as they are, in "
    "quotation marks. Answer in the prompt's language, with the rewritten prompt alone, in one paragraph."
)
"""Unless the operator gives another."""

_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.safetensors")
_WARM_PROMPT = "a red circle"
_WARM_TOKENS = 2
_THOUGHTS = re.compile(r"\A((?!<think>).)*?</think>|<think>.*?(</think>|\Z)", re.DOTALL)
"""The opening mark may be missing."""
_OPENED = "<think>"
_SHORTEST_MARK = 3
"""Characters: one such as "!" may stand for padding, and is a word as well."""
_TAIL_TOKENS = 8
"""Of what is read: templates of models that always think end with the opening mark."""
_QUOTED = re.compile(r"\A[\"\u201c](?P<inside>[^\"\u201c\u201d]*)[\"\u201d]\Z")


class PromptEnhancer:
    """One on one device. Its weights are there from ``load`` to ``unload``."""

    def __init__(
        self,
        source: str,
        device: torch.device,
        dtype: torch.dtype,
        *,
        instruction: str = "",
        max_tokens: int,
        local_files_only: bool = False,
    ) -> None:
        """Reads configuration files, the tokenizer and the headers of weights. ``instruction``: ``INSTRUCTION`` unless
        given. Raises ``LoadError``."""
        self._folder = located(source, "enhancer", _FILES, local_files_only=local_files_only)
        self._device = device
        self._dtype = dtype
        self._max_tokens = max_tokens
        self._model: Any = None
        weights = weights_of(self._folder)
        self._longest = self._context()
        self._tokenizer = self._opened_tokenizer()
        self._chats = bool(self._tokenizer.chat_template)
        if instruction and not self._chats:
            raise LoadError(
                f"the enhancer {self._folder} has no chat template: it continues prompts and follows no instruction; "
                "leave --enhancer-instruction out, or take a model that was trained to follow instructions"
            )
        self._instruction = instruction or INSTRUCTION
        self.nbytes = sum(loaded_bytes(element_counts(file), dtype.itemsize) for file in weights)
        described = sorted(path for pattern in _FILES[:-1] for path in self._folder.glob(pattern))
        told = self._instruction if self._chats else ""
        digest = digest_of([*described, *weights], told, str(max_tokens), str(dtype))
        self.info = Enhancer(name_of(source, "enhancer"), digest, max_tokens)

    @property
    def module(self) -> torch.nn.Module | None:
        model: torch.nn.Module | None = self._model
        return model

    def load(self) -> None:
        """Raises ``LoadError``."""
        try:
            model, about = AutoModelForCausalLM.from_pretrained(
                self._folder, dtype=self._dtype, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
        except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
            raise LoadError(f"the enhancer {self._folder} cannot be loaded: {error}") from error
        check_all_found(about, f"the enhancer {self._folder}")
        self._model = model.to(self._device).eval()

    def unload(self) -> None:
        self._model = None

    def warm_up(self) -> None:
        """Raises whatever the model raises."""
        self._continued(self.read(_WARM_PROMPT), _WARM_TOKENS, lambda: None)

    def read(self, prompt: str) -> torch.Tensor:
        """What the model is told, (1, tokens) on the device. Raises ``BadJob`` for more than it reads."""
        plain = self._without_marks(prompt)
        tokens = self._asked(plain) if self._chats else self._tokenizer(plain)["input_ids"]
        most = None if self._longest is None else self._longest - self._max_tokens
        if most is not None and len(tokens) > most:
            raise BadJob(
                f"'enhance' reads {most} tokens here, and has {len(tokens)} to read with this prompt: "
                "send a shorter one, or leave 'enhance' out."
            )
        return torch.tensor([tokens], device=self._device)

    def rewritten(self, prompt: str, read: torch.Tensor, check: Callable[[], None]) -> str:
        """The prompt in its words; empty where it finds none. ``read``: of the prompt. ``check`` is called before each
        token. Raises ``NonFinite``, and whatever ``check`` and the model raise."""
        tail = self._tokenizer.decode(read[0, -_TAIL_TOKENS:]).rstrip() if self._chats else ""
        opened = _OPENED if tail.endswith(_OPENED) else ""
        made = cleaned(opened + self._continued(read, self._max_tokens, check))
        if made and not self._chats:
            made = f"{prompt.rstrip()}{'' if made[0] in ',.;:!?' else ' '}{made}"
        return made[:MAX_PROMPT]

    def _continued(self, read: torch.Tensor, most: int, check: Callable[[], None]) -> str:
        known, padding = self._model.generation_config.eos_token_id, self._model.generation_config.pad_token_id
        # The tokenizer's, too: of models that learned to chat later, the configuration often names only the older one.
        ends = {*(known if isinstance(known, list) else [known]), self._tokenizer.eos_token_id} - {None}
        settings = GenerationConfig(
            do_sample=False,
            num_beams=1,
            temperature=1.0,
            top_p=1.0,
            top_k=50,
            max_new_tokens=most,
            eos_token_id=sorted(ends) or None,
            pad_token_id=min(ends, default=None) if padding is None else padding,
        )
        with torch.no_grad():
            made = self._model.generate(
                read,
                attention_mask=torch.ones_like(read),
                generation_config=settings,
                stopping_criteria=[_Asking(check)],
                logits_processor=[_Finite(self._dtype)],
            )
        text: str = self._tokenizer.decode(made[0, read.shape[1] :], skip_special_tokens=True)
        return text

    def _asked(self, prompt: str) -> list[int]:
        """Where the template knows no system's words, the instruction is the user's."""
        told = [{"role": "system", "content": self._instruction}, {"role": "user", "content": prompt}]
        alone = [{"role": "user", "content": f"{self._instruction}\n\n{prompt}"}]
        try:
            return self._templated(told)
        except TemplateError:
            return self._templated(alone)

    def _without_marks(self, prompt: str) -> str:
        """Those that end a turn in a chat, or begin one: who writes them into a prompt would speak as the operator."""
        added = (token.content for token in self._tokenizer.added_tokens_decoder.values() if token.special)
        marks = {mark for mark in (*self._tokenizer.all_special_tokens, *added) if len(mark) >= _SHORTEST_MARK}
        for mark in sorted(marks, key=len, reverse=True):
            prompt = prompt.replace(mark, " ")
        return prompt

    def _templated(self, messages: list[dict[str, str]]) -> list[int]:
        tokens: list[int] = self._tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, enable_thinking=False
        )["input_ids"]
        return tokens

    def _context(self) -> int | None:
        """Tokens that it reads and writes at most; None where it does not say. Raises ``LoadError``."""
        kind = read_json(self._folder / "config.json").get("model_type")
        if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            raise LoadError(f"{self._folder} is a model of the type {kind!r}; an enhancer is a causal language model")
        config = AutoConfig.from_pretrained(self._folder, local_files_only=True)
        longest: int | None = getattr(config, "max_position_embeddings", None)
        if longest is not None and longest <= self._max_tokens:
            raise LoadError(
                f"{self._folder} reads and writes {longest} tokens at most, of which --enhancer-tokens "
                f"{self._max_tokens} leaves none to read; name fewer"
            )
        return longest

    def _opened_tokenizer(self) -> Any:
        try:
            return AutoTokenizer.from_pretrained(self._folder, local_files_only=True)
        except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
            raise LoadError(f"the tokenizer of the enhancer {self._folder} cannot be opened: {error}") from error


def cleaned(text: str) -> str:
    """Without thoughts, quotation marks around the whole, and a character that was cut in two at the end."""
    text = _THOUGHTS.sub("", text).strip().rstrip("\ufffd")
    quoted = _QUOTED.match(text)
    return (quoted["inside"] if quoted else text).strip()


class _Asking(StoppingCriteria):  # type: ignore[misc] # transformers has no types
    """Lets the job be cancelled between two tokens."""

    def __init__(self, check: Callable[[], None]) -> None:
        self._check = check

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: object) -> torch.Tensor:  # noqa: ARG002
        self._check()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


class _Finite(LogitsProcessor):  # type: ignore[misc] # transformers has no types
    """The likeliest of what is no number is any token."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = str(dtype).removeprefix("torch.")

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        if scores.isnan().any():
            raise NonFinite(f"the enhancer's logits hold NaN, computed in {self._dtype}")
        return scores
