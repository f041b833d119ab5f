"""Liveness and readiness, open to probes without a key."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from gateway.api.body import json_answer
from gateway.api.state import ApiDep

router = APIRouter(tags=["health"])


@router.get("/healthz")
@router.head("/healthz", include_in_schema=False)
@router.api_route("/livez", methods=["GET", "HEAD"], include_in_schema=False)
async def alive() -> Response:
    """The process answers."""
    return json_answer({"status": "ok"})


@router.get("/readyz")
@router.head("/readyz", include_in_schema=False)
async def ready(api: ApiDep) -> Response:
    """200 when every role of some model is held by a live server; until then 503 and what is missing. 503 once more
    from the moment when the gateway is told to end."""
    status = api.service.status()
    if api.door is not None and api.door.is_draining:
        return json_answer({"status": "draining", "models": status}, 503)
    if api.service.ready():
        return json_answer({"status": "ready", "models": status})
    error = {
        "message": "Not every role of a model is held yet; see 'models'.",
        "type": "service_unavailable_error",
        "param": None,
        "code": "not_ready",
    }
    return json_answer({"status": "not ready", "models": status, "error": error}, 503)
