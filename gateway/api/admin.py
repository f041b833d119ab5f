"""For operators: what the servers hold and do, why the scheduler decided as it did, and orders to it.

Served only where an admin key is set; without one these paths do not exist.
"""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from gateway.api.body import json_answer, read_json
from gateway.api.errors import ApiError
from gateway.api.keys import check_admin
from gateway.api.state import api_of
from gateway.service.interfaces import OperatorService
from wire.types import Role


class LossBody(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    within_seconds: float = Field(ge=0, le=86_400)


class RolesBody(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    roles: list[Literal["encoder", "dit", "decoder"]]


def operator_of(request: Request) -> OperatorService:
    """What serves the operator, once the request has shown the admin key. Raises ``ApiError`` 401."""
    api = api_of(request)
    assert api.operator is not None  # noqa: S101 # ``create_app`` includes the router on no other condition
    assert api.settings.admin_key is not None  # noqa: S101
    check_admin(request, api.settings.admin_key)
    return api.operator


OperatorDep = Annotated[OperatorService, Depends(operator_of)]

router = APIRouter(prefix="/admin", tags=["admin"])


def _takes(body: type[BaseModel]) -> dict[str, object]:
    """For the OpenAPI document: the handler reads the body itself."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": body.model_json_schema()}}}}


@router.get("/servers")
async def list_servers(operator: OperatorDep) -> Response:
    """Every stage server: roles, changes of roles, jobs, speed."""
    return json_answer({"servers": operator.servers()})


@router.get("/why")
async def explain(operator: OperatorDep, request: str = "", server: str = "") -> Response:
    """The latest decisions about a request or a server, or all of them, each with its reason and its cause."""
    if request and server:
        raise ApiError("Name a request or a server, not both.", code="invalid_value", param="server")
    return json_answer(operator.why(request, server))


@router.get("/plan")
async def explain_plan(operator: OperatorDep) -> Response:
    """What is asked of each role, the latest plan, and why roles move or do not."""
    return json_answer(operator.plan())


@router.get("/scaling")
async def explain_scaling(operator: OperatorDep) -> Response:
    """For launchers: how many servers each pool shall have, which of them shall go, and why."""
    return json_answer(operator.scaling())


@router.post(
    "/servers/{name:path}/loss",
    status_code=202,
    openapi_extra=_takes(LossBody),
)
async def announce_loss(name: str, request: Request, operator: OperatorDep) -> Response:
    """Its machine will be taken away, as spot machines are: the server stops in time, and its pool gets another."""
    body = await read_json(request, LossBody, api_of(request).settings)
    return json_answer(await operator.announce_loss(name, body.within_seconds), 202)


@router.post("/servers/{name:path}/pin")
async def pin(name: str, operator: OperatorDep) -> Response:
    """Keep the server's roles as they are."""
    return json_answer(await operator.pin(name, pinned=True))


@router.post("/servers/{name:path}/unpin")
async def unpin(name: str, operator: OperatorDep) -> Response:
    return json_answer(await operator.pin(name, pinned=False))


@router.post("/servers/{name:path}/drain", status_code=202)
async def drain(name: str, operator: OperatorDep) -> Response:
    """No new work; the server ends when what it has is done and handed over."""
    return json_answer(await operator.drain(name), 202)


@router.post(
    "/servers/{name:path}/roles",
    status_code=202,
    openapi_extra=_takes(RolesBody),
)
async def assign(name: str, request: Request, operator: OperatorDep) -> Response:
    """Give the server these roles, and no others. It is under way when this is answered: see ``GET /admin/servers``."""
    body = await read_json(request, RolesBody, api_of(request).settings)
    return json_answer(await operator.assign(name, map(Role, body.roles)), 202)
