"""Records of use reach the database once each, whatever becomes of it meanwhile."""

from __future__ import annotations

import asyncio
import logging
import os
from collections import defaultdict

import pytest

from gateway.database.errors import DatabaseError, Trouble
from gateway.database.usage import UsageRecord, month_of
from gateway.limits.budgets import Budgets
from gateway.limits.refusals import BudgetUsedUp
from gateway.metering import journal
from gateway.metering import meter as module
from gateway.metering.journal import Journal
from gateway.metering.meter import Meter
from gateway.metering.overflow import Overflow
from gateway.storage import locks

NOVEMBER = 1_795_000_000.0  # 18 November 2026


class Ledger:
    """Works, or fails before or after the commit."""

    def __init__(self) -> None:
        self.records: dict[str, UsageRecord] = {}
        self.batches: list[int] = []
        self.fails = ""
        self.reads = 0
        self.forgotten: list[float] = []
        self.between = lambda: asyncio.sleep(0)
        """Happens while it is asked what was spent."""

    async def write(self, records) -> None:
        if self.fails == "before":
            raise DatabaseError(Trouble.FULL, "")
        self.records = {record.id: record for record in records} | self.records
        self.batches.append(len(records))
        if self.fails == "after":
            raise DatabaseError(Trouble.SLOW, "")

    async def spent(self, keys, month: int) -> dict[str, float]:
        self.reads += 1
        await self.between()
        if self.fails:
            raise DatabaseError(Trouble.LOST, "")
        found = defaultdict(float)
        for record in self.records.values():
            if record.key in keys and month_of(record.created) == month:
                found[record.key] += record.device_seconds
        return found

    async def forget(self, before: float, limit: int = 1000) -> int:
        self.forgotten.append(before)
        return 7 if len(self.forgotten) == 1 else 0


class Clock:
    def __init__(self) -> None:
        self.now = NOVEMBER

    def __call__(self) -> float:
        return self.now


def record(number: int, **changes: object) -> UsageRecord:
    fields = {"tenant": "acme", "key": "k", "model": "tiny", "endpoint": "edits", "status": 200, "code": ""}
    fields |= {"images": 1, "encoder_seconds": 0.5, "dit_seconds": 8.0, "decoder_seconds": 1.5, "created": NOVEMBER}
    return UsageRecord(**({"id": f"req_{number}"} | fields | changes))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


@pytest.fixture
def file(tmp_path) -> Overflow:
    return Overflow(tmp_path / "usage-waiting.jsonl", 10_000)


@pytest.fixture
def meter(ledger, file, clock) -> Meter:
    return Meter(ledger, file, clock=clock)


async def test_records_are_written_in_batches(meter, ledger):
    for number in range(1201):
        meter.record(record(number))
    assert ledger.records == {}
    await meter.write()
    assert ledger.batches == [500, 500, 201]
    assert len(ledger.records) == 1201


@pytest.mark.parametrize("fails", ["before", "after"])
async def test_a_file_takes_what_the_database_does_not_and_is_replayed_once(meter, ledger, file, fails, caplog):
    caplog.set_level(logging.INFO)
    ledger.fails = fails
    for number in range(3):
        meter.record(record(number))
        await meter.write()
    assert len(file.path.read_text().splitlines()) == 3
    assert [line.getMessage().partition(" wait in ")[0] for line in caplog.records] == ["records of use"]

    later = Meter(ledger, file)  # another process
    later.record(record(3))
    ledger.fails = ""
    await later.write()
    await later.write()
    assert sorted(ledger.records) == [f"req_{number}" for number in range(4)]
    assert ledger.records["req_1"] == record(1)
    assert not file.path.exists()
    assert "3 records of use have been written from" in caplog.text


async def test_a_process_that_is_killed_leaves_its_records_to_the_next(ledger, file, tmp_path, caplog):
    path = tmp_path / "usage-journal.jsonl"

    def begin() -> Meter:
        return Meter(ledger, file, journal=Journal(path, file))

    killed = begin()
    killed.record(record(1))
    await killed.write()
    assert path.read_bytes() == b"", "what is in the database needs no journal"
    killed.record(record(2))
    ledger.fails = "after"  # written, and nobody knows
    with pytest.raises(DatabaseError):
        await ledger.write([record(2)])
    killed.record(record(3))
    ledger.fails = ""
    killed.close()  # as the kernel does

    later = begin()
    later.record(record(4))
    await later.write()
    assert sorted(ledger.records) == ["req_1", "req_2", "req_3", "req_4"]
    assert not caplog.records
    assert (path.read_bytes(), file.path.exists()) == (b"", False)


async def test_a_journal_goes_behind_what_waits_in_the_file_already(ledger, file, tmp_path):
    path = tmp_path / "usage-journal.jsonl"
    file.append([record(1)])
    killed = Meter(ledger, file, journal=Journal(path, file))
    killed.record(record(2))
    killed.close()
    path.write_bytes(path.read_bytes() + b'{"id": "req_3", "cre')  # killed as it wrote
    later = Meter(ledger, file, journal=Journal(path, file))
    ledger.fails = "before"
    later.record(record(4))
    await later.write()
    assert path.read_bytes() == b"", "the file has it"
    ledger.fails = ""
    await later.write()
    assert sorted(ledger.records) == ["req_1", "req_2", "req_4"]


async def test_a_journal_is_one_gateway_s(ledger, tmp_path, caplog):
    """Two in one state folder: the later one must not take over, or cut off, what the other notes."""
    path = tmp_path / "usage-journal.jsonl"
    file, others = Overflow(tmp_path / "usage-waiting.jsonl", 10_000), Ledger()
    first = Meter(ledger, file, journal=Journal(path, file))
    first.record(record(1))
    second = Meter(others, file, journal=Journal(path, file))
    assert "another gateway uses this state folder" in caplog.text
    second.record(record(2))
    await second.write()
    first.record(record(3))
    assert sorted(others.records) == ["req_2"]
    first.close()  # killed
    second.close()
    await Meter(ledger, file, journal=Journal(path, file)).write()
    assert sorted(ledger.records) == ["req_1", "req_3"]


async def test_what_another_gateway_adds_while_a_file_is_read_back_is_kept(ledger, tmp_path):
    path = tmp_path / "usage-waiting.jsonl"
    mine, others = Overflow(path, 10_000), Overflow(path, 10_000)
    mine.append([record(1)])
    assert [len(batch) for batch in mine.batches(10)] == [1]
    others.append([record(2)])
    mine.clear()
    await Meter(ledger, others).write()
    assert sorted(ledger.records) == ["req_1", "req_2"]
    assert not path.exists()


async def test_nothing_is_added_to_a_file_that_another_gateway_deletes(tmp_path, monkeypatch):
    path = tmp_path / "usage-waiting.jsonl"
    mine, others = Overflow(path, 10_000), Overflow(path, 10_000)
    others.append([record(1)])
    assert len(list(others.batches(10))) == 1
    lock = locks.lock

    def deleted_meanwhile(file, *, waits):  # after it was opened, before it is locked
        monkeypatch.setattr(locks, "lock", lock)
        others.clear()
        return lock(file, waits=waits)

    monkeypatch.setattr(locks, "lock", deleted_meanwhile)
    assert mine.append([record(2)]) == 1
    assert list(mine.batches(10)) == [[record(2)]]


async def test_a_journal_that_is_never_empty_does_not_grow_for_ever(ledger, tmp_path, monkeypatch):
    path = tmp_path / "usage-journal.jsonl"
    numbers = iter(range(1, 100))

    class Busy(Overflow):
        def append(self, records):
            taken = super().append(records)
            meter.record(record(next(numbers)))  # somebody's request ends meanwhile
            return taken

    file = Busy(tmp_path / "usage-waiting.jsonl", 1 << 20)
    meter = Meter(ledger, file, journal=Journal(path, file))
    meter.record(record(0))
    line = path.stat().st_size
    monkeypatch.setattr(journal, "MOST_BYTES", 5 * line)
    ledger.fails = "before"
    for _ in range(50):
        await meter.write()
        assert path.stat().st_size < 8 * line
    ledger.fails = ""
    meter.close()  # as if it had been killed
    later = Meter(ledger, file, journal=Journal(path, file))
    await later.write()
    assert sorted(ledger.records) == sorted(f"req_{number}" for number in range(51))
    assert [each.name for each in tmp_path.iterdir()] == ["usage-journal.jsonl"]


async def test_a_journal_whose_disk_is_full_holds_nobody_up(ledger, file, tmp_path, monkeypatch, caplog):
    path = tmp_path / "usage-journal.jsonl"
    meter = Meter(ledger, file, journal=Journal(path, file))
    meter.record(record(1))
    whole = path.read_bytes()
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:10]))
    for number in (2, 3):
        meter.record(record(number))
    assert path.read_bytes() == whole, "no half lines"
    assert [each.getMessage().partition(": ")[2] for each in caplog.records] == [
        "No space left on device; what was used in the last second is lost if the gateway is killed"
    ]
    monkeypatch.undo()
    await meter.write()
    meter.record(record(4))
    assert path.read_bytes().count(b"\n") == 1
    assert len(ledger.records) == 3


def test_a_journal_that_cannot_be_opened_is_told_of(ledger, file, tmp_path, caplog):
    (tmp_path / "usage-journal.jsonl").mkdir()
    Meter(ledger, file, journal=Journal(tmp_path / "usage-journal.jsonl", file)).record(record(1))
    (told,) = caplog.records
    assert "Is a directory" in told.getMessage()


async def test_a_file_that_is_half_replayed_stays(meter, ledger, file):
    ledger.fails = "before"
    meter.record(record(1))
    await meter.write()
    ledger.fails = "after"
    await meter.write()
    assert file.path.exists(), "nobody knows whether it was written"
    ledger.fails = ""
    await meter.write()
    assert not file.path.exists()


async def test_a_torn_line_costs_itself_alone(meter, ledger, file, caplog):
    file.append([record(1)])
    with file.path.open("ab") as lines:
        lines.write(b'{"id": "req_2", "crea\n')
    file.append([record(3)])
    await meter.write()
    assert sorted(ledger.records) == ["req_1", "req_3"]
    assert "line 2 is no record of use" in caplog.text


async def test_a_full_file_and_what_is_lost(meter, ledger, file, caplog):
    ledger.fails = "before"
    for number in range(100):
        meter.record(record(number))
    await meter.write()
    assert file.path.stat().st_size <= 10_000
    kept = len(file.path.read_text().splitlines())
    assert 20 < kept < 100
    ledger.fails = ""
    await meter.write()
    assert sorted(ledger.records) == sorted(f"req_{number}" for number in range(kept))
    lines = [line.getMessage() for line in caplog.records if line.levelno == logging.ERROR]
    assert len(lines) == 2
    assert lines[0].startswith("records of use are being lost")
    assert lines[1] == f"{100 - kept} records of use were lost meanwhile"


async def test_where_no_file_can_be_written_either_records_wait_in_memory(ledger, clock, tmp_path, caplog, monkeypatch):
    folder = tmp_path / "not yet"
    meter = Meter(ledger, Overflow(folder / "waiting.jsonl", 10_000), clock=clock)
    monkeypatch.setattr(module, "MAX_WAITING", 5)
    ledger.fails = "before"
    for number in range(7):
        meter.record(record(number))
        await meter.write()
    lines = [line.getMessage() for line in caplog.records]
    assert [line.partition(":")[0] for line in lines] == [
        "records of use wait in memory",
        "records of use are being lost",
    ]
    assert lines[0].endswith("No such file or directory")
    folder.mkdir()
    await meter.write()
    ledger.fails = ""
    await meter.write()
    assert sorted(ledger.records) == [f"req_{number}" for number in range(5)]


async def test_retention_deletes_in_small_parts_and_rarely(ledger, file, clock):
    meter = Meter(ledger, file, retention_days=30, clock=clock)
    await meter.forget_old()
    assert ledger.forgotten == [NOVEMBER - 30 * 86400] * 2, "until nothing is left to delete"
    await meter.forget_old()
    assert len(ledger.forgotten) == 2
    clock.now += 3600
    await meter.forget_old()
    assert len(ledger.forgotten) == 3


# --- budgets, which are measured by these records ---------------------------------------------------------------------


@pytest.fixture
def budgets(ledger, meter, clock) -> Budgets:
    budgets = Budgets(ledger, meter, clock)
    meter.on_written = budgets.written
    return budgets


async def test_a_budget_is_used_up_at_once_before_anything_is_written(budgets, meter, ledger):
    await budgets.check("k", 20.0)
    meter.record(record(1))
    await budgets.check("k", 20.0)
    meter.record(record(2))
    with pytest.raises(BudgetUsedUp, match=r"20\.0 of 20 device-seconds in November 2026"):
        await budgets.check("k", 20.0)
    await budgets.check("another", 20.0)
    await meter.write()
    with pytest.raises(BudgetUsedUp):
        await budgets.check("k", 20.0)
    await budgets.check("k", 20.1)


async def test_what_other_gateways_used_is_known_after_five_seconds(budgets, ledger, clock):
    await budgets.check("k", 10.0)
    await ledger.write([record(1)])
    clock.now += 4.9
    await budgets.check("k", 10.0)
    assert ledger.reads == 1
    clock.now += 0.2
    with pytest.raises(BudgetUsedUp):
        await budgets.check("k", 10.0)


async def test_a_clock_that_is_set_back_hides_nothing_of_what_other_gateways_used(budgets, ledger, clock):
    await budgets.check("k", 10.0)
    await ledger.write([record(1)])
    clock.now -= 3600
    with pytest.raises(BudgetUsedUp):
        await budgets.check("k", 10.0)


async def test_what_is_written_while_the_budget_is_looked_up_counts_once(budgets, meter, ledger):
    meter.record(record(1))
    ledger.between = meter.write
    with pytest.raises(BudgetUsedUp, match=r"10\.0 of 10 device-seconds"):
        await budgets.check("k", 10.0)
    ledger.between = lambda: asyncio.sleep(0)
    with pytest.raises(BudgetUsedUp, match=r"10\.0 of 10 device-seconds"):
        await budgets.check("k", 10.0)
    await budgets.check("k", 10.1)


async def test_all_keys_are_looked_up_at_once(budgets, ledger, clock):
    await asyncio.gather(*(budgets.check(f"key {number}", 10.0) for number in range(100)))
    reads = ledger.reads
    clock.now += 6
    await asyncio.gather(*(budgets.check(f"key {number}", 10.0) for number in range(100)))
    assert ledger.reads <= reads + 2, "one look for those that came before it, one for the rest"


async def test_keys_by_turns_are_not_looked_up_each_time(budgets, ledger):
    for _ in range(10):
        await budgets.check("a", 10.0)
        await budgets.check("b", 10.0)
    assert ledger.reads == 2


async def test_a_budget_begins_anew_with_the_month(budgets, meter, clock):
    meter.record(record(1))
    with pytest.raises(BudgetUsedUp):
        await budgets.check("k", 5.0)
    clock.now += 14 * 86400
    await budgets.check("k", 5.0)


async def test_without_the_database_what_was_known_and_what_was_used_since_counts(budgets, meter, ledger, clock):
    await ledger.write([record(1)])
    await budgets.check("k", 15.0)
    ledger.fails = "before"
    clock.now += 60
    await budgets.check("k", 15.0)
    meter.record(record(2))
    await meter.write()
    with pytest.raises(BudgetUsedUp):
        await budgets.check("k", 15.0)
    clock.now += 60
    await budgets.check("unknown", 15.0)
    reads = ledger.reads
    await budgets.check("unknown", 15.0)
    assert ledger.reads == reads, "a database that fails is not asked for every request"
