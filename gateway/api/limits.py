"""What the caller may still ask for."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from gateway.api.body import json_answer
from gateway.api.keys import CallerDep
from gateway.api.limiting import account_of
from gateway.api.state import ApiDep

router = APIRouter(prefix="/v1", tags=["usage"])


@router.get("/limits")
async def own_limits(request: Request, api: ApiDep, caller: CallerDep) -> Response:
    """Each limit that holds for the key, or without keys for the client's address: how much is left, and until when.

    To ask counts as nothing.
    """
    limits = api.limiter.limits_of(caller.limits)
    left = await api.limiter.left(account_of(request, caller), limits, budget=caller.key)
    return json_answer({"limits": {name: each._asdict() for name, each in left.items()}})
