"""The web page at ``/``, to be switched off by ``DISAGFUSION_PAGE=false``. Open without a key: it holds no secrets, and
all that it shows comes from the API, with the key that its user enters."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from gateway.api.errors import ApiError
from gateway.page.files import Page, PageFile

IMMUTABLE = "public, max-age=31536000, immutable"
REVALIDATE = "no-cache"

HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


def page_router(page: Page) -> APIRouter:
    """``/`` and, below ``/assets/DIGEST/``, the files that it loads."""
    router = APIRouter(include_in_schema=False)

    @router.api_route("/", methods=["GET", "HEAD"])
    async def index(request: Request) -> Response:
        return _answer(request, page.index, REVALIDATE, {"content-security-policy": page.policy})

    @router.api_route("/assets/{digest}/{name:path}", methods=["GET", "HEAD"])
    async def asset(request: Request, digest: str, name: str) -> Response:
        found = page.files.get(name)
        if found is None:
            raise ApiError(f"The page has no file '{name[:100]}'.", code="not_found", status=404)
        # While gateways of two versions share an address, one is asked for the other's files: not to be kept.
        return _answer(request, found, IMMUTABLE if digest == page.digest else REVALIDATE, {})

    return router


def _answer(request: Request, file: PageFile, caching: str, more: dict[str, str]) -> Response:
    headers = HEADERS | {"etag": file.etag, "cache-control": caching} | more
    known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    if file.etag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    body = b"" if request.method == "HEAD" else file.body
    return Response(body, headers=headers | {"content-length": str(len(file.body))}, media_type=file.media_type)
