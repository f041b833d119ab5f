"""Who is calling: the keys that requests show, as ``Authorization: Bearer`` or ``api-key``, and what they open."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Depends
from pydantic import SecretStr
from starlette.requests import Request

from gateway.accounts.caller import WORK, Caller, Scope
from gateway.accounts.keyring import KeyRefused, KeysUnknown, Refusal
from gateway.api.errors import ApiError, storage_unavailable
from gateway.api.state import api_of

_MESSAGES = {
    Refusal.MISSING: "Missing API key: send 'Authorization: Bearer KEY'.",
    Refusal.WRONG: "Incorrect API key provided.",
    Refusal.REVOKED: "This API key has been revoked.",
    Refusal.EXPIRED: "This API key has expired.",
}


def caller_with(request: Request, *scopes: Scope) -> Caller:
    """The caller, whose key has at least one of ``scopes``. Raises as ``find_caller``, and ``ApiError`` 403."""
    caller = find_caller(request)
    if caller.scopes.isdisjoint(scopes):
        raise missing_scope(*scopes)
    return caller


def find_caller(request: Request) -> Caller:
    """Whose key the request shows; also left in ``request.state.caller``. Raises ``ApiError`` 401, or 503 while nobody
    can tell."""
    try:
        caller = api_of(request).keys.check(_shown_key(request))
    except KeyRefused as error:
        raise _unauthorized(_MESSAGES[error.refusal]) from None
    except KeysUnknown:
        raise storage_unavailable("API keys cannot be looked up at the moment; try again later.") from None
    request.state.caller = caller
    return caller


async def caller_of(request: Request) -> Caller:  # async, or FastAPI would hand it to a thread
    """``find_caller`` as a dependency."""
    return find_caller(request)


CallerDep = Annotated[Caller, Depends(caller_of)]
"""FastAPI asks once per request, however many dependencies name it."""


async def tenant_of(caller: CallerDep) -> str:
    """Name of whom the request is for; empty on an open server."""
    return caller.tenant


def with_scope(*scopes: Scope) -> Callable[[Caller], Awaitable[Caller]]:
    """A dependency: the caller, whose key has at least one of ``scopes``. Raises ``ApiError`` 403."""

    async def allowed(caller: CallerDep) -> Caller:
        if caller.scopes.isdisjoint(scopes):
            raise missing_scope(*scopes)
        return caller

    return allowed


def missing_scope(*scopes: Scope) -> ApiError:
    """403: the key lacks all of ``scopes``, of which one would do."""
    wanted = " or ".join(f"'{scope}'" for scope in scopes)
    return ApiError(f"This API key may not do that: it lacks the scope {wanted}.", code="missing_scope", status=403)


def check_admin(request: Request, key: SecretStr) -> None:
    """Raises ``ApiError`` 401 unless the request shows ``key``."""
    shown = _shown_key(request)
    if not hmac.compare_digest(shown, key.get_secret_value().encode()):
        raise _unauthorized(
            "Incorrect admin key provided." if shown else "Missing admin key: send 'Authorization: Bearer KEY'."
        )


def _unauthorized(message: str) -> ApiError:
    return ApiError(message, code="invalid_api_key", status=401, headers={"www-authenticate": "Bearer"})


def _shown_key(request: Request) -> bytes:
    """As it came; empty if there is none."""
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    shown = key.strip() if scheme.lower() == "bearer" and key.strip() else request.headers.get("api-key", "")
    return shown.encode("latin-1")


Tenant = Annotated[str, Depends(tenant_of)]
FileOwner = Annotated[Caller, Depends(with_scope(*sorted(WORK)))]
