"""How many tokens a prompt has, and how many of them the text encoders read, as seen in what the blocks tokenize.

Only the blocks know which template a prompt is put into and where it is cut; so their tokenizers and processors are
watched. Tokens that stand for pictures are not counted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from threading import RLock
from typing import Any

import torch
from diffusers import ModularPipeline
from transformers import PreTrainedTokenizerBase

TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3", "t5_tokenizer", "text_tokenizer", "processor")

_CUTS = ("truncation", "max_length", "padding", "return_tensors")
"""Options without which everything is tokenized, and nothing added."""


_one_at_a_time = RLock()
"""How to cut and to pad is state of a tokenizer that all jobs share, and is set anew by each call."""


@dataclass(frozen=True, slots=True)
class _Call:
    """The prompt was tokenized, and cut to ``limit`` tokens if it had more."""

    count: Callable[[], int]
    limit: int | None
    """None: whatever it had was read."""
    padded: bool
    """To the limit, so that all of it is read as it is."""
    text: Any


@dataclass(slots=True)
class _Watched:
    """A tokenizer or processor that notes the first text that it is asked to cut or to join with pictures: the prompt
    is encoded before the negative one."""

    _tokenizer: Any
    first: _Call | None = field(default=None, init=False)
    added: int = field(default=0, init=False)
    """Tokens that are put behind the prompt once it is cut, as Krea 2 does with the end of its template."""
    inner: dict[str, _Watched] = field(default_factory=dict, init=False)
    """Tokenizers of a processor, by their names there, once they were asked for."""
    _is_over: bool = field(default=False, init=False)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._tokenizer, name)
        if isinstance(value, PreTrainedTokenizerBase):  # a processor's own, which some blocks call
            return self.inner.setdefault(name, _Watched(value))
        if not callable(value):
            return value

        def alone(*arguments: Any, **options: Any) -> Any:
            """``tokenize``, for one, sets anew how to cut and to pad, too."""
            with _one_at_a_time:
                return value(*arguments, **options)

        return alone

    def __len__(self) -> int:
        return len(self._tokenizer)

    def __call__(self, text: Any = None, **options: Any) -> Any:
        with _one_at_a_time:
            result = self._tokenizer(text=text, **options)
        if options.get("images") is not None:
            self._note(text, lambda: _read(result, self._tokenizer), None, options)
        elif options.get("truncation") and options.get("max_length") is not None:
            first = text if isinstance(text, str) else text[0]
            kept = {name: value for name, value in options.items() if name == "add_special_tokens"}
            self._note(
                text,
                lambda: len(self._tokenizer(first, verbose=False, **kept).input_ids),
                options["max_length"],
                options,
            )
        elif self.first is not None and not self._is_over and text != self.first.text:
            # The same text once more is only looked at, for a warning of what was cut.
            self.added, self._is_over = len(result["input_ids"][0]), True
        return result

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any:
        """Some blocks have the text tokenized on the way; others only want it, and call the tokenizer then."""
        if options.get("tokenize") and options.get("truncation") and options.get("max_length") is not None:
            first = conversation if isinstance(conversation[0], dict) else conversation[0]
            kept = {name: value for name, value in options.items() if name not in _CUTS}
            self._note(conversation, lambda: self._templated(first, kept), options["max_length"], options)
        with _one_at_a_time:
            return self._tokenizer.apply_chat_template(conversation, **options)

    def _templated(self, conversation: Any, options: dict[str, Any]) -> int:
        ids = self._tokenizer.apply_chat_template([conversation], **options | {"return_dict": True})["input_ids"]
        return len(ids[0])

    def _note(self, text: Any, count: Callable[[], int], limit: int | None, options: dict[str, Any]) -> None:
        self._is_over = self.first is not None  # what follows belongs to the negative prompt
        if self.first is None:
            self.first = _Call(count, limit, options.get("padding") == "max_length", text)


def _read(result: Any, processor: Any) -> int:
    """Of the first text in ``result``, without padding and what stands for pictures."""
    ids, mask = (torch.as_tensor(result[name])[0] for name in ("input_ids", "attention_mask"))
    counted = mask.bool() & (ids != getattr(processor, "image_token_id", -1))
    return int(counted.sum())


class PromptCount:
    """Of one encoder job, whose view it changes."""

    def __init__(self, view: ModularPipeline, max_length: int | None, default_length: int | None) -> None:
        """``max_length``: the job's ``max_sequence_length``; ``default_length``: that of the blocks."""
        self._withheld = default_length - max_length if max_length and default_length else 0
        self._default_length = default_length or 0
        self._watched = []
        for name in TOKENIZERS:
            tokenizer = getattr(view, name, None)
            if tokenizer is not None:
                watched = _Watched(tokenizer)
                setattr(view, name, watched)
                self._watched.append(watched)

    def result(self) -> tuple[int, int]:
        """Tokens, those of a template and special ones included, and how many of them the tokenizer that reads most
        of the prompt dropped; (0, 0) where none was seen to read it."""
        everyone = [each for watched in self._watched for each in (watched, *watched.inner.values())]
        calls = [(watched.first, watched.added) for watched in everyone if watched.first is not None]
        if not calls:
            return 0, 0
        longest, added = max(calls, key=lambda call: call[0].limit or 0)
        with _one_at_a_time:
            tokens = longest.count()
        return tokens + added, max(0, tokens - self._limit(longest, tokens))

    def _limit(self, call: _Call, tokens: int) -> int:
        if call.limit is None:
            return tokens
        has_room_for_template = call.limit > self._default_length and not call.padded
        return call.limit - self._withheld if has_room_for_template else call.limit  # the prompt is cut once encoded
