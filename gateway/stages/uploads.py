"""Uploaded pictures, held for the stage servers that fetch them: the same protocol as between stage servers."""

from __future__ import annotations

import logging
import secrets
from typing import NoReturn

from gateway.stages.sockets import Router
from gateway.storage.room import Room
from wire.bundle import Bundle, pack
from wire.errors import WireError
from wire.to_stage import InputRef
from wire.transfer import serve
from wire.types import Handle

PICTURE = "image"
"""Name of the picture in a bundle: uploaded ones and finished ones alike."""

log = logging.getLogger(__name__)


class Uploads:
    """Serves uploaded pictures until they are dropped."""

    def __init__(self, router: Router, advertise: str, public_key: str, room: Room) -> None:
        """``advertise``: the address under which stage servers reach ``router``."""
        self._router = router
        self._endpoint = advertise
        self._public_key = public_key
        self._room = room
        self._bundles: dict[Handle, Bundle] = {}

    def hold(self, picture: bytes) -> InputRef:
        """Keep ``picture`` and say where it lies. Raises ``RoomTaken``."""
        bundle = pack({PICTURE: picture})
        self._room.take(bundle.total_bytes)
        handle = Handle(secrets.token_hex(16))
        self._bundles[handle] = bundle
        return InputRef(handle=handle, endpoint=self._endpoint, nbytes=bundle.total_bytes, public_key=self._public_key)

    def drop(self, handle: Handle) -> None:
        bundle = self._bundles.pop(handle, None)
        if bundle is not None:
            self._room.give_back(bundle.total_bytes)

    async def run(self) -> NoReturn:
        """Serve for ever."""
        while True:
            incoming = await self._router.receive()
            try:
                answers = serve(incoming.frames, self._bundles.get, "gateway/")
            except WireError as error:
                log.warning("a data request was dropped: %s", error)
                continue
            for answer in answers:
                self._router.send(incoming.peer, answer)  # to one who is gone or does not read, nothing is owed
