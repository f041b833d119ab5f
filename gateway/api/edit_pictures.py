"""The pictures of an edit: from wherever the client put them to what stage servers are sent."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import msgspec
import pybase64

from gateway.api.edit_schema import BAD_JSON, Edit, FileId, Inline, Remote, Source
from gateway.api.errors import ApiError, invalid_picture, overloaded
from gateway.api.forms import FormFile
from gateway.api.remote_pictures import PictureFetcher
from gateway.api.sizes import Size
from gateway.decoding.decoders import DECODING_AT_ONCE, Decoders, NoDecoder
from gateway.decoding.pictures import BadPicture, Decoding, InputPicture
from gateway.settings import Settings
from gateway.storage.room import Share

MAX_DATA_HEAD = 256
"""Characters of a data URL before its comma."""

NO_DECODER_SECONDS = 5.0
"""``Retry-After`` where the machine lets no process start."""

log = logging.getLogger(__name__)


class UploadedFiles(Protocol):
    """What clients uploaded before, to name it by ``file_id`` now."""

    async def file_bytes(self, tenant: str, file_id: str, max_bytes: int) -> bytes:
        """Raises ``ApiError``: 404 ``file_not_found``, 400 for a file of more than ``max_bytes``."""


@dataclass(frozen=True, slots=True)
class EditPictures:
    """Ready for stage servers."""

    uploads: dict[str, bytes]
    """Input name of the blocks (``image``, ``image_1``, …, ``mask_image``) → PNG."""
    size: Size
    """Of the first picture as it was sent, upright."""
    has_mask: bool


class PictureLoader:
    """Loads pictures for all requests, a few at a time."""

    def __init__(
        self,
        settings: Settings,
        decoders: Decoders,
        fetcher: PictureFetcher | None,
        files: UploadedFiles | None = None,
    ) -> None:
        """Without ``fetcher`` links are refused; without ``files`` no file is known."""
        self._settings = settings
        self._fetcher = fetcher
        self._files = files
        self._decoders = decoders
        self._slots = asyncio.Semaphore(DECODING_AT_ONCE)

    async def close(self) -> None:
        if self._fetcher is not None:
            await self._fetcher.close()

    async def load(self, edit: Edit, tenant: str, share: Share, *, alpha_is_mask: bool) -> EditPictures:
        """``share`` takes what is fetched, and what is passed on. Raises ``ApiError`` or ``RoomTaken``."""
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._picture(source, tenant, share, alpha_is_mask=alpha_is_mask))
                    for source in edit.pictures
                ]
                masking = group.create_task(self._mask(edit.mask, tenant, share))
        except BaseExceptionGroup as group_error:
            raise group_error.exceptions[0] from None
        pictures = [task.result() for task in tasks]
        first, mask = pictures[0], masking.result()
        if mask is not None and mask.sent_size != first.sent_size:
            sizes = f"The mask has {Size(*mask.sent_size)} pixels, the picture {Size(*first.sent_size)}."
            raise invalid_picture(sizes, "mask")
        uploads = {f"image_{index}" if index else "image": picture.png for index, picture in enumerate(pictures)}
        grey = first.mask if mask is None else mask.png
        if grey is not None:
            uploads["mask_image"] = grey
        return EditPictures(uploads, Size(*first.sent_size), grey is not None)

    async def steering(self, sources: Mapping[str, Source], tenant: str, share: Share) -> dict[str, bytes]:
        """Input name of the blocks (``control_image``, ``control_image_1``, …, ``ip_adapter_image``) → PNG. Raises
        ``ApiError`` or ``RoomTaken``."""
        rules = self._settings
        found: dict[str, bytes] = {}
        for index, (name, source) in enumerate(sources.items()):
            param = f"control.{index}.image" if name.startswith("control") else "ip_adapter.image"
            how = Decoding(param, rules.max_image_bytes, rules.max_image_pixels, rules.max_pixels)
            found[name] = (await self._decoded(source, tenant, share, how)).png
        return found

    async def _picture(self, source: Source, tenant: str, share: Share, *, alpha_is_mask: bool) -> InputPicture:
        rules = self._settings
        how = Decoding("image", rules.max_image_bytes, rules.max_image_pixels, rules.max_pixels, alpha_is_mask)
        return await self._decoded(source, tenant, share, how)

    async def _mask(self, source: Source | None, tenant: str, share: Share) -> InputPicture | None:
        rules = self._settings
        how = Decoding("mask", rules.max_mask_bytes, rules.max_image_pixels, rules.max_pixels)
        return None if source is None else await self._decoded(source, tenant, share, how)

    async def _decoded(self, source: Source, tenant: str, share: Share, how: Decoding) -> InputPicture:
        data = b""
        match source:
            case Remote(url):
                data = await self._fetch(url, how, share)
            case FileId(file_id):
                data = await self._named(file_id, tenant, how)
                share.take(len(data))
        async with self._slots:
            match source:
                case FormFile():
                    data = await source.read()
                case Inline():
                    data = await asyncio.to_thread(_from_data_url, source, how.param)
            try:
                picture = await self._decoders.decode(data, how)
            except BadPicture as error:
                raise invalid_picture(str(error), how.param) from None
            except NoDecoder as error:
                log.error("%s", error)  # noqa: TRY400 # no defect of ours
                raise overloaded("Pictures cannot be decoded at the moment.", NO_DECODER_SECONDS) from None
        share.take(len(picture.png) + len(picture.mask or b""))
        return picture

    async def _fetch(self, url: str, how: Decoding, share: Share) -> bytes:
        if self._fetcher is None:
            raise ApiError(
                "This server fetches no pictures; send a data URL or a file in place of a link.",
                code="unsupported_value",
                param=how.param,
            )
        return await self._fetcher.fetch(url, how.param, how.max_bytes, share.take)

    async def _named(self, file_id: str, tenant: str, how: Decoding) -> bytes:
        if self._files is None:
            raise ApiError(f"No such file: '{file_id[:80]}'.", code="file_not_found", param="file_id", status=404)
        return await self._files.file_bytes(tenant, file_id, how.max_bytes)


def _from_data_url(source: Inline, param: str) -> bytes:
    """On a thread. Raises ``ApiError``."""
    head, comma, _ = bytes(source.url[:MAX_DATA_HEAD]).partition(b",")
    if not comma or not head.lower().rstrip().endswith(b";base64"):
        raise invalid_picture("A data URL must read data:image/png;base64,… with the picture's own type.", param)
    text = source.url[len(head) + 1 :]
    try:
        return bytes(pybase64.b64decode(text, validate=True))
    except ValueError:
        if not source.as_json or b"\\" not in bytes(text):
            raise invalid_picture("The data URL holds no valid base64.", param) from None
    return _from_data_url(Inline(_unescaped(source.url, param)), param)


def _unescaped(text: memoryview, param: str) -> memoryview:
    """Some clients escape slashes, or the plus sign (as ``\\u002B``)."""
    try:
        return memoryview(msgspec.json.decode(b'"%b"' % bytes(text), type=str).encode())
    except BAD_JSON as error:
        raise invalid_picture(f"The data URL is no valid JSON: {error}.", param) from None
