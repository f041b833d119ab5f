"""Records of use: written once whatever happens, summed by day and tenant, forgotten in time."""

from __future__ import annotations

from datetime import UTC, date, datetime

import pytest

from gateway.database.usage import ATTEMPT, Usage, UsageRecord, UsageSelection, UsageSum, month_of
from tests.needed import needs

NOVEMBER = datetime(2026, 11, 30, 23, 59, 59, tzinfo=UTC).timestamp()
DECEMBER = NOVEMBER + 2
ALL = UsageSelection(date(2026, 1, 1), date(2026, 12, 31))


def record(number: int, **changes: object) -> UsageRecord:
    fields = {"tenant": "acme", "key": "k1", "model": "tiny", "endpoint": "generations", "status": 200, "code": ""}
    fields |= {"images": 1, "encoder_seconds": 0.25, "dit_seconds": 2.0, "decoder_seconds": 0.5}
    return UsageRecord(**({"id": f"req_{number}", "created": NOVEMBER} | fields | changes))


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=[pytest.mark.services, needs("postgresql")])])
async def usage(request, make) -> Usage:
    where = {} if request.param == "sqlite" else {"database_url": request.getfixturevalue("postgres")}
    database = make(**where)
    await database.open()
    return Usage(database)


async def test_what_is_written_twice_counts_once(usage):
    await usage.write([record(1), record(2)])
    await usage.write([record(2), record(3), record(3, dit_seconds=1000.0)])
    assert await usage.spent(["k1"], month_of(NOVEMBER)) == {"k1": 3 * 2.75}
    assert await usage.sums(ALL, 10) == [UsageSum(date(2026, 11, 30), "acme", 3, 0, 3, 0.75, 6.0, 1.5)]


async def test_a_budget_is_a_key_s_and_a_calendar_month_s_in_utc(usage):
    await usage.write([record(1), record(2, created=DECEMBER), record(3, key="k2", dit_seconds=5.0)])
    assert await usage.spent(["k1", "k2", "k3"], month_of(NOVEMBER)) == {"k1": 2.75, "k2": 5.75}
    assert await usage.spent(["k1", "k2", "k3"], month_of(DECEMBER)) == {"k1": 2.75}
    many = [f"other {number}" for number in range(40_000)]
    assert await usage.spent([*many, "k2"], month_of(NOVEMBER)) == {"k2": 5.75}


async def test_sums_are_by_day_and_tenant_of_what_is_selected(usage):
    await usage.write(
        [
            record(1),
            record(2, key="k2", images=4, status=200, code="server_error"),
            record(3, tenant="other", model="large"),
            record(4, created=DECEMBER, status=429, code="rate_limit_exceeded", images=0, model=""),
        ]
    )
    first, last = date(2026, 11, 30), date(2026, 12, 1)

    async def found(limit: int = 10, **chosen: object) -> list[tuple[object, ...]]:
        sums = await usage.sums(UsageSelection(**({"first": first, "last": last} | chosen)), limit)
        return [(each.day, each.tenant, each.requests, each.failed, each.images) for each in sums]

    acme, other, next_day = (first, "acme", 2, 1, 5), (first, "other", 1, 0, 1), (last, "acme", 1, 1, 0)
    assert await found() == [acme, other, next_day]
    assert await found(limit=2) == [acme, other]
    assert await found(tenant="acme") == [acme, next_day]
    assert await found(last=first) == [acme, other]
    assert await found(key="k2") == [(first, "acme", 1, 1, 4)]
    assert await found(model="large") == [other]
    assert await found(tenant="nobody") == []


async def test_an_attempt_that_another_one_followed_is_charged_and_is_no_request(usage):
    await usage.write([record(1, status=ATTEMPT, images=0), record(2)])
    assert await usage.spent(["k1"], month_of(NOVEMBER)) == {"k1": 2 * 2.75}
    assert await usage.sums(ALL, 10) == [UsageSum(date(2026, 11, 30), "acme", 1, 0, 1, 0.5, 4.0, 1.0)]


async def test_old_records_are_forgotten_and_the_month_s_budget_is_not(usage):
    await usage.write([record(number) for number in range(5)] + [record(9, created=DECEMBER)])
    assert [await usage.forget(DECEMBER, limit=3) for _ in range(3)] == [3, 2, 0]
    assert [each.day for each in await usage.sums(ALL, 10)] == [date(2026, 12, 1)]
    assert await usage.spent(["k1"], month_of(NOVEMBER)) == {}
    assert await usage.spent(["k1"], month_of(DECEMBER)) == {"k1": 2.75}
