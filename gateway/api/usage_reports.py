"""What was used, by day and tenant: ``GET /v1/usage`` for the caller's own tenant, ``GET /admin/usage`` for all."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, date, datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query
from pydantic import AfterValidator, BaseModel, ConfigDict
from pydantic_core import PydanticCustomError
from starlette.requests import Request
from starlette.responses import Response

from gateway.accounts.caller import Caller, Scope
from gateway.api.body import json_answer
from gateway.api.errors import ApiError
from gateway.api.keys import check_admin, with_scope
from gateway.api.state import Api, ApiDep, api_of
from gateway.database.usage import STAGE_SECONDS, UsageSelection, UsageSum

DAYS = 30
"""Reported unless the query says otherwise, today included."""
MAX_ROWS = 10_000

COLUMNS = (
    *("day", "tenant", "requests", "failed", "images"),
    *("device_seconds", *STAGE_SECONDS),
)


def _printable(word: str) -> str:
    if not word.isprintable():  # PostgreSQL refuses to look for NUL
        raise PydanticCustomError("unprintable", "expected printable characters")
    return word


Word = Annotated[str, AfterValidator(_printable)]


class Report(BaseModel):
    """The query. Days are in UTC and both included."""

    model_config = ConfigDict(extra="forbid")

    start: date | None = None
    end: date | None = None
    key: Word | None = None
    model: Word | None = None
    by: Literal["tenant", "key"] = "tenant"
    format: Literal["json", "csv"] = "json"


class TenantsReport(Report):
    tenant: Word | None = None


async def _admin(request: Request, api: ApiDep) -> None:
    assert api.settings.admin_key is not None  # noqa: S101 # ``create_app`` includes the router on no other condition
    check_admin(request, api.settings.admin_key)


own = APIRouter(prefix="/v1", tags=["usage"])
everybody = APIRouter(prefix="/admin", tags=["admin"], dependencies=[Depends(_admin)])


@own.get("/usage")
async def own_usage(
    api: ApiDep,
    caller: Annotated[Caller, Depends(with_scope(Scope.USAGE))],
    report: Annotated[Report, Query()],
) -> Response:
    """What the caller's tenant used, with all its keys."""
    if not caller.key:
        raise ApiError("Without API keys nobody's usage can be told from others'.", code="api_key_required", status=403)
    return await _answer(api, report, caller.tenant)


@everybody.get("/usage")
async def usage_of_everybody(request: Request, report: Annotated[TenantsReport, Query()]) -> Response:
    """What each tenant used."""
    return await _answer(api_of(request), report, report.tenant)


async def _answer(api: Api, report: Report, tenant: str | None) -> Response:
    assert api.meter is not None  # noqa: S101 # ``create_app`` includes the routers on no other condition
    last = report.end or datetime.now(UTC).date()
    first = report.start or date.fromordinal(max(1, last.toordinal() - DAYS + 1))
    if first > last:
        raise ApiError(f"'start' ({first}) must not be after 'end' ({last}).", code="invalid_value", param="start")
    selection = UsageSelection(first, last, tenant, report.key, report.model, by_key=report.by == "key")
    sums = await api.meter.ledger.sums(selection, MAX_ROWS + 1)
    if len(sums) > MAX_ROWS:
        raise ApiError(
            f"These are more than {MAX_ROWS} rows: ask for fewer days, or for one tenant.",
            code="invalid_value",
            param="start",
        )
    columns = (*COLUMNS, "key") if report.by == "key" else COLUMNS
    rows = [_row(each, columns) for each in sums]
    if report.format == "csv":
        name = f"usage-{first}-{last}.csv"
        return Response(
            _csv(rows, columns),
            media_type="text/csv",
            headers={"content-disposition": f'attachment; filename="{name}"'},
        )
    return json_answer({"object": "list", "start": str(first), "end": str(last), "data": rows})


def _row(each: UsageSum, columns: Sequence[str]) -> dict[str, object]:
    fields = asdict(each) | {"day": str(each.day), "device_seconds": each.device_seconds}
    return {name: round(fields[name], 6) if name.endswith("_seconds") else fields[name] for name in columns}


def _csv(rows: Sequence[dict[str, object]], columns: Sequence[str]) -> str:
    text = io.StringIO()
    table = csv.DictWriter(text, columns)
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()
