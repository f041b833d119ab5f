"""Pictures behind the urls of ``response_format=url``: open without a key, under names that nobody can guess."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from gateway.api.errors import ApiError
from gateway.api.state import Api, ApiDep
from gateway.storage.job_pictures import is_name

router = APIRouter(prefix="/v1", tags=["images"])

HEADERS = {"cache-control": "private", "x-content-type-options": "nosniff"}


@router.get("/images/files/{name}")
@router.head("/images/files/{name}", include_in_schema=False)
async def picture(name: str, api: ApiDep) -> Response:
    """The bytes of one picture, until it expires."""
    kept = api.storage.jobs.output if is_name(name) else api.storage.pictures.get
    image = await kept(name)
    if image is None:
        raise ApiError(f"No image named '{name}': it has expired or never was.", code="file_not_found", status=404)
    return Response(image, media_type=f"image/{name.rpartition('.')[2]}", headers=HEADERS)


def url_of(request: Request, api: Api, name: str) -> str:
    """Absolute url of a stored picture, as the caller can reach it."""
    base = api.settings.public_url or str(request.base_url)
    return f"{base.rstrip('/')}/v1/images/files/{name}"
