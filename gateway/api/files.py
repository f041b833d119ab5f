"""``/v1/files``: what callers upload, list, read back and delete; each sees their own files only."""

from __future__ import annotations

import re
from contextlib import AsyncExitStack
from typing import Annotated, Literal
from urllib.parse import quote

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from gateway.api.body import json_answer
from gateway.api.errors import ApiError, storage_full
from gateway.api.forms import Form, FormFile, FormLimits
from gateway.api.idempotency import Sent, once
from gateway.api.keys import FileOwner, Tenant
from gateway.api.parsing import validate
from gateway.api.state import Api, ApiDep
from gateway.settings import Settings
from gateway.storage.files import FileRecord
from gateway.storage.objects import CHUNK_BYTES
from gateway.storage.space import StoreFull
from gateway.storage.storage import Storage

DAY = 86_400
BATCH_SECONDS = 30 * DAY
"""How long files for batches are kept unless their upload says otherwise, as at OpenAI."""

FORM_OVERHEAD_BYTES = 64 << 10
"""Boundaries and headers, and all fields but the file."""

DOWNLOAD_HEADERS = {"cache-control": "private", "x-content-type-options": "nosniff"}

MAGIC = (
    (b"\x89PNG\r\n\x1a\n", b"", "image/png"),
    (b"\xff\xd8\xff", b"", "image/jpeg"),
    (b"RIFF", b"WEBP", "image/webp"),
)
"""First bytes, bytes from the eighth on, media type."""

JSONL, BYTES = "application/jsonl", "application/octet-stream"


class Upload(BaseModel):
    """The fields of an upload beside the file."""

    model_config = ConfigDict(extra="forbid")

    purpose: Literal["assistants", "batch", "fine-tune", "vision", "user_data", "evals"]
    anchor: Literal["created_at"] | None = Field(None, alias="expires_after[anchor]")
    seconds: int | None = Field(None, alias="expires_after[seconds]", ge=3600, le=30 * DAY)


class Selection(BaseModel):
    """The query of a list."""

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(10_000, ge=1, le=10_000)
    order: Literal["asc", "desc"] = "desc"
    after: str | None = None
    purpose: str | None = None


async def _loaded(api: ApiDep, _: FileOwner) -> None:
    """After the key was checked."""
    await api.storage.ready()


router = APIRouter(prefix="/v1", tags=["files"], dependencies=[Depends(_loaded)])

_UPLOAD_SCHEMA = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        **Upload.model_json_schema()["properties"],
                    },
                }
            }
        },
    }
}


@router.post("/files", openapi_extra=_UPLOAD_SCHEMA)
async def create_file(request: Request, api: ApiDep, tenant: Tenant) -> Response:
    """Keep a file."""
    async with AsyncExitStack() as stack:
        form = await stack.enter_async_context(api.forms.read(request, _limits(api.settings)))
        upload, file = _upload(form)
        held = stack.pop_all()

    async def answer(_: Request) -> Response:
        async with held:
            return json_answer(_describe(await _create(api, tenant, upload, file)))

    return await once(request, api, tenant, Sent("files", upload, (file.filename, file), held), answer)


async def _create(api: Api, tenant: str, upload: Upload, file: FormFile) -> FileRecord:
    """Raises ``ApiError`` or ``StoreError``."""
    try:
        return await api.storage.files.create(
            await file.read() if file.size <= CHUNK_BYTES else file.chunks(),
            tenant=tenant,
            filename=_safe_name(file.filename),
            purpose=upload.purpose,
            nbytes=file.size,
            content_type=_content_type(await file.read(0, 12), file),
            lifetime_seconds=_lifetime(upload, api.settings),
        )
    except StoreFull as full:
        raise storage_full(full) from None


@router.get("/files")
async def list_files(api: ApiDep, tenant: Tenant, selection: Annotated[Selection, Query()]) -> dict[str, object]:
    """The caller's files, newest first unless ``order`` is ``asc``."""
    await api.storage.files.look(tenant)
    records = api.storage.files.of(tenant)
    if selection.order == "desc":
        records.reverse()
    if selection.after is not None:
        await _wanted(api, tenant, selection.after, "after")
        ids = [record.id for record in records]
        records = records[ids.index(selection.after) + 1 :]
    if selection.purpose is not None:
        records = [record for record in records if record.purpose == selection.purpose]
    page = records[: selection.limit]
    return {
        "object": "list",
        "data": [_describe(record) for record in page],
        "first_id": page[0].id if page else None,
        "last_id": page[-1].id if page else None,
        "has_more": len(records) > len(page),
    }


@router.get("/files/{file_id}")
async def retrieve_file(file_id: str, api: ApiDep, tenant: Tenant) -> dict[str, object]:
    return _describe(await _wanted(api, tenant, file_id))


@router.delete("/files/{file_id}")
async def delete_file(file_id: str, api: ApiDep, tenant: Tenant) -> dict[str, object]:
    await api.storage.files.delete(await _wanted(api, tenant, file_id))
    return {"id": file_id, "object": "file", "deleted": True}


@router.get("/files/{file_id}/content")
async def file_content(file_id: str, api: ApiDep, tenant: Tenant) -> Response:
    """The file's bytes, always as a download."""
    record = await _wanted(api, tenant, file_id)
    download = await api.storage.files.open(record)
    if download is None:
        raise _not_found(file_id)
    plain = re.sub(r'[^ -~]|["\\%]', "_", record.filename)
    disposition = f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(record.filename, safe='')}"
    headers = {"content-disposition": disposition, "content-length": str(download.nbytes), **DOWNLOAD_HEADERS}
    return StreamingResponse(download.chunks, media_type=record.content_type, headers=headers)


class NamedFiles:
    """The pictures that edits name by ``file_id``."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    async def file_bytes(self, tenant: str, file_id: str, max_bytes: int) -> bytes:
        """Raises ``ApiError``: 404 for what is not the tenant's, 400 for more than ``max_bytes``; or ``StoreError``."""
        await self._storage.ready()
        record = await self._storage.files.find(tenant, file_id)
        if record is None:
            raise _not_found(file_id[:80], "file_id")
        if record.nbytes > max_bytes:
            raise ApiError(
                f"The file '{file_id}' has {record.nbytes} bytes; a picture may have {max_bytes}.",
                code="invalid_image",
                param="file_id",
            )
        download = await self._storage.files.open(record)
        if download is None:
            raise _not_found(file_id, "file_id")
        return b"".join([bytes(chunk) async for chunk in download.chunks])


def _limits(settings: Settings) -> FormLimits:
    return FormLimits(
        body_bytes=settings.file_max_bytes + FORM_OVERHEAD_BYTES,
        file_bytes=settings.file_max_bytes,
        fields_bytes=FORM_OVERHEAD_BYTES // 2,
        seconds=settings.upload_timeout_seconds,
        files=1,
        fields=8,
    )


def _upload(form: Form) -> tuple[Upload, FormFile]:
    """Raises ``ApiError``."""
    fields = dict(form.fields)
    if len(fields) < len(form.fields):
        twice = next(name for name in fields if sum(name == other for other, _ in form.fields) > 1)
        raise ApiError(f"'{twice}' is given twice.", code="invalid_value", param=twice)
    upload = validate(Upload, fields)
    for field in ("anchor", "seconds"):
        if (upload.anchor is None) != (upload.seconds is None) and getattr(upload, field) is None:
            raise _missing(f"expires_after[{field}]")
    match form.files:
        case [FormFile(name="file") as file]:
            return upload, file
        case []:
            raise _missing("file")
        case _:
            name = form.files[0].name
            raise ApiError(f"Unknown parameter: '{name}'.", code="unknown_parameter", param=name)


def _lifetime(upload: Upload, settings: Settings) -> float | None:
    if upload.seconds is not None:
        return upload.seconds
    if settings.files_max_age_seconds is not None:
        return settings.files_max_age_seconds
    return BATCH_SECONDS if upload.purpose == "batch" else None


def _safe_name(given: str) -> str:
    """The last part of a path, without control characters; clients put it into their file systems."""
    name = re.sub(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]", "", re.split(r"[/\\]", given)[-1]).strip()
    return "upload" if name in ("", ".", "..") else name[:255]


def _content_type(start: bytes, file: FormFile) -> str:
    """By what the bytes are: whatever a browser might run is sent back as mere bytes."""
    for first, eighth, media_type in MAGIC:
        if start.startswith(first) and start[8:].startswith(eighth):
            return media_type
    return JSONL if file.filename.lower().endswith(".jsonl") else BYTES


async def _wanted(api: Api, tenant: str, file_id: str, param: str = "id") -> FileRecord:
    """Raises ``ApiError`` 404, also for another tenant's file."""
    record = await api.storage.files.find(tenant, file_id)
    if record is None:
        raise _not_found(file_id, param)
    return record


def _not_found(file_id: str, param: str = "id") -> ApiError:
    return ApiError(f"No such File object: {file_id}", code="file_not_found", param=param, status=404)


def _missing(name: str) -> ApiError:
    return ApiError(f"Missing required parameter: '{name}'.", code="missing_required_parameter", param=name)


def _describe(record: FileRecord) -> dict[str, object]:
    """OpenAI's file object."""
    described: dict[str, object] = {
        "id": record.id,
        "object": "file",
        "bytes": record.nbytes,
        "created_at": record.created_at,
        "filename": record.filename,
        "purpose": record.purpose,
        "status": "processed",
    }
    if record.expires_at is not None:
        described["expires_at"] = record.expires_at
    return described
