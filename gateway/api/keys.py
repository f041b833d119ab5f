"""Who is calling: the keys that requests show, as ``Authorization: Bearer`` or ``api-key``."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from typing import Annotated

from fastapi import Depends
from pydantic import SecretStr
from starlette.requests import Request

from gateway.api.errors import ApiError
from gateway.api.state import api_of


def tenant_of(request: Request) -> str:
    """Name of the key that the request shows; empty on an open server. Raises ``ApiError`` 401."""
    keys = api_of(request).settings.api_keys
    return check_key(request, keys, "API") if keys else ""


def check_key(request: Request, keys: Mapping[str, SecretStr], kind: str) -> str:
    """The name in ``keys`` of the key that the request shows. ``kind`` ("API", "admin") is for the message.

    Raises ``ApiError`` 401.
    """
    shown = _shown_key(request).encode("latin-1")  # the bytes as they came
    # Every key is compared, in constant time each, so that timing tells nothing.
    matches = [name for name, key in keys.items() if hmac.compare_digest(shown, key.get_secret_value().encode())]
    if not matches:
        raise ApiError(
            f"Incorrect {kind} key provided." if shown else f"Missing {kind} key: send 'Authorization: Bearer KEY'.",
            code="invalid_api_key",
            status=401,
            headers={"www-authenticate": "Bearer"},
        )
    return matches[0]


def _shown_key(request: Request) -> str:
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key.strip():
        return key.strip()
    return request.headers.get("api-key", "")


Tenant = Annotated[str, Depends(tenant_of)]
