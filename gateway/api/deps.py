"""What handlers need, typed: the service behind the API, settings, storage, and who is calling."""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import Annotated, cast

from fastapi import Depends
from starlette.requests import Request

from gateway.api.errors import ApiError
from gateway.results import ResultStore
from gateway.service import AdminService, ImageService
from gateway.settings import Settings


@dataclass(frozen=True, slots=True)
class Api:
    service: ImageService
    settings: Settings
    results: ResultStore
    started: int
    """Unix time of the start, the ``created`` of every model."""
    admin: AdminService | None = None


def api_of(request: Request) -> Api:
    return cast(Api, request.app.state.api)


def tenant_of(request: Request) -> str:
    """Name of the key that the request shows, as ``Authorization: Bearer`` or ``api-key``; empty on an open server."""
    keys = api_of(request).settings.api_keys
    if not keys:
        return ""
    shown = shown_key(request).encode("latin-1")  # the bytes as they came
    # Every key is compared, in constant time each, so that timing tells nothing.
    matches = [name for name, key in keys.items() if hmac.compare_digest(shown, key.get_secret_value().encode())]
    if not matches:
        raise ApiError(
            "Incorrect API key provided." if shown else "Missing API key: send 'Authorization: Bearer KEY'.",
            code="invalid_api_key",
            status=401,
            headers={"www-authenticate": "Bearer"},
        )
    return matches[0]


def shown_key(request: Request) -> str:
    """As ``Authorization: Bearer`` or ``api-key``; empty when there is none."""
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key.strip():
        return key.strip()
    return request.headers.get("api-key", "")


ApiDep = Annotated[Api, Depends(api_of)]
Tenant = Annotated[str, Depends(tenant_of)]
