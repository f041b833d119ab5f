"""What enhancers made of prompts, kept for requests that ask for the same: their texts go on without an enhancer job.

An enhancer writes the same of the same prompt, so that what is kept is what it would write again. Pure.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict

import msgspec

from gateway.service.embeddings import Embeddings
from gateway.service.interfaces import ImageRequest
from wire.params import ModelInfo

MOST_CHARACTERS = 4 << 20
"""Of all texts; those used longest ago go first."""


class Rewrites:
    """For whom and whether anything is kept is as with ``embeddings``."""

    def __init__(self, embeddings: Embeddings, most: int = MOST_CHARACTERS) -> None:
        self._embeddings = embeddings
        self._most = most
        self._texts: OrderedDict[bytes, str] = OrderedDict()
        self._characters = 0

    def find(self, request: ImageRequest, model: ModelInfo) -> str | None:
        key = self._key(request, model)
        text = None if key is None else self._texts.get(key)
        if key is not None and text is not None:
            self._texts.move_to_end(key)
        return text

    def made(self, request: ImageRequest, model: ModelInfo, text: str) -> None:
        key = self._key(request, model)
        if key is None or key in self._texts:
            return
        self._texts[key] = text
        self._characters += len(text)
        while self._characters > self._most:
            self._characters -= len(self._texts.popitem(last=False)[1])

    def _key(self, request: ImageRequest, model: ModelInfo) -> bytes | None:
        if model.enhancer is None or not self._embeddings.keeps:
            return None
        parts = (self._embeddings.owner(request), model.enhancer.key, request.images[0].prompt)
        return hashlib.sha256(msgspec.msgpack.encode(parts)).digest()
