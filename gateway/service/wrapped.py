"""An image service around another one: what it does not change, the inner one answers."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.service.interfaces import ImageService, Place
from wire.params import ModelInfo


class Wrapped:
    def __init__(self, service: ImageService) -> None:
        self._service = service

    def models(self) -> tuple[ModelInfo, ...]:
        return self._service.models()

    def ready(self) -> bool:
        return self._service.ready()

    def status(self) -> Mapping[str, object]:
        return self._service.status()

    def place(self, request_id: str) -> Place | None:
        return self._service.place(request_id)
