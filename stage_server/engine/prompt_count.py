"""How many tokens a prompt has, and how many of them the text encoders read, as seen in what the blocks tokenize.

Only the blocks know which template a prompt is put into and where it is cut; so their tokenizers are watched.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from diffusers import ModularPipeline

TOKENIZERS = ("tokenizer", "tokenizer_2", "tokenizer_3")


@dataclass(frozen=True, slots=True)
class _Call:
    """A text that was cut to ``limit`` tokens."""

    tokenizer: Any
    text: str
    limit: int
    options: dict[str, Any]

    def tokens(self) -> int:
        return len(self.tokenizer(self.text, verbose=False, **self.options).input_ids)


@dataclass(slots=True)
class _Watched:
    """A tokenizer that notes the first text it is asked to cut: the prompt is encoded before the negative one."""

    _tokenizer: Any
    first_cut: _Call | None = field(default=None, init=False)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __len__(self) -> int:
        return len(self._tokenizer)

    def __call__(self, text: Any, **options: Any) -> Any:
        limit = options.get("max_length")
        if self.first_cut is None and options.get("truncation") and limit is not None:
            first = text if isinstance(text, str) else text[0]
            kept = {name: value for name, value in options.items() if name == "add_special_tokens"}
            self.first_cut = _Call(self._tokenizer, first, limit, kept)
        return self._tokenizer(text, **options)


class PromptCount:
    """Of one encoder job, whose view it changes. Use it on the compute thread: tokenizers are not for two at a time."""

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
        of the prompt dropped; (0, 0) where no tokenizer was seen to cut."""
        calls = [watched.first_cut for watched in self._watched if watched.first_cut is not None]
        if not calls:
            return 0, 0
        longest = max(calls, key=lambda call: call.limit)
        limit = longest.limit
        if limit > self._default_length:  # room for a template, and the prompt itself is cut after it was encoded
            limit -= self._withheld
        tokens = longest.tokens()
        return tokens, max(0, tokens - limit)
