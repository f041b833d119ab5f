"""What earlier states of 0.1.0 wrote can be read, and what is written now they could read.

``wire-1.0.json`` is of the first commit, ``wire-1.2.json`` of the last before protocol 1.3 (``record.py`` makes them);
``database-0006.sql`` is a dump of an SQLite database of that time, with a row in every table. None is ever made anew.
"""

from __future__ import annotations

import base64
import json
import sqlite3
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.database.database import Database
from gateway.database.engines import FILE_NAME
from gateway.database.usage import Usage, UsageRecord, UsageSelection
from gateway.settings import Settings
from tests.compatibility.record import recorded
from wire import to_gateway, to_stage
from wire.control_codec import decode_to_gateway, decode_to_stage

HERE = Path(__file__).parent
RECORDS = sorted(HERE.glob("wire-*.json"))
DECODERS = {"to_gateway": decode_to_gateway, "to_stage": decode_to_stage}
UNIONS = {"to_gateway": to_gateway.ToGateway, "to_stage": to_stage.ToStage}


def messages(direction: str) -> Iterator[Any]:
    for record in RECORDS:
        for name, encodings in json.loads(record.read_text())[direction].items():
            for encoding in encodings:
                yield pytest.param(name, base64.b64decode(encoding), id=f"{record.stem}-{name}-{len(encoding)}")


def differences(old: Any, new: Any, path: str = "") -> Iterator[str]:
    """Where something that both know has another value. Fields that are gone, or new, are no difference."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in old.keys() & new.keys():
            yield from differences(old[name], new[name], f"{path}.{name}")
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for one, other in zip(old, new, strict=True):
            yield from differences(one, other, f"{path}[]")
    elif old != new:
        yield f"{path}: {old!r} has become {new!r}"


def read(direction: str, name: str, frame: bytes) -> None:
    message = DECODERS[direction](frame)
    assert type(message).__name__ == name
    before, after = msgspec.msgpack.decode(frame), msgspec.to_builtins(message)
    assert list(differences(before, msgspec.msgpack.decode(msgspec.msgpack.encode(after)))) == []


@pytest.mark.parametrize(("name", "frame"), list(messages("to_gateway")))
def test_messages_of_older_stage_servers_are_read(name: str, frame: bytes) -> None:
    read("to_gateway", name, frame)


@pytest.mark.parametrize(("name", "frame"), list(messages("to_stage")))
def test_messages_of_older_gateways_are_read(name: str, frame: bytes) -> None:
    read("to_stage", name, frame)


@pytest.mark.parametrize("record", RECORDS, ids=lambda path: path.stem)
@pytest.mark.parametrize("direction", DECODERS)
def test_older_ones_find_all_that_they_need_in_messages_of_today(record: Path, direction: str) -> None:
    today = recorded(UNIONS[direction])
    for name, (needed, _) in json.loads(record.read_text())[direction].items():
        least = msgspec.msgpack.decode(base64.b64decode(today[name][0]))
        assert msgspec.msgpack.decode(base64.b64decode(needed)).keys() <= least.keys(), name


async def test_a_database_of_0_1_0_is_brought_up_to_date_with_all_that_is_in_it(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / FILE_NAME) as connection:
        connection.executescript((HERE / "database-0006.sql").read_text())
    before = rows(tmp_path)
    assert len(before) > 5
    database = Database(Settings(state_dir=tmp_path))
    await database.open()
    await database.close()
    after = rows(tmp_path)
    for table in before.keys() - {"alembic_version"}:
        (kept,) = after[table]
        assert {column: kept[column] for column in before[table][0] if column in kept} == before[table][0], table


def test_a_record_of_use_that_an_older_gateway_left_in_a_file_is_read() -> None:
    fields = {"created": 0.0, "tenant": "t", "key": "k", "model": "m", "endpoint": "generations", "status": 200}
    fields |= {"code": "", "images": 1, "encoder_seconds": 1.0, "dit_seconds": 2.0, "decoder_seconds": 3.0}
    record = msgspec.json.decode(msgspec.json.encode({"id": "req_1"} | fields), type=UsageRecord)
    assert (record.enhancer_seconds, record.upscaler_seconds, record.device_seconds) == (0.0, 0.0, 6.0)


async def test_an_older_gateway_goes_on_writing_what_was_used(tmp_path: Path) -> None:
    """One that runs while a newer one brings the database up to date."""
    with sqlite3.connect(tmp_path / FILE_NAME) as connection:
        connection.executescript((HERE / "database-0006.sql").read_text())
    (before,) = rows(tmp_path)["usage"]
    database = Database(Settings(state_dir=tmp_path))
    await database.open()
    another = before | {"id": "another", "created": before["created"]}
    with sqlite3.connect(tmp_path / FILE_NAME) as connection:
        names, marks = ", ".join(another), ", ".join("?" * len(another))
        connection.execute(f"INSERT INTO usage ({names}) VALUES ({marks})", list(another.values()))  # noqa: S608 # its own
    (found,) = await Usage(database).sums(UsageSelection(date(1, 1, 1), date(9999, 12, 31)), 10)
    await database.close()
    assert found.decoder_seconds == 2 * before["decoder_seconds"]
    assert (found.enhancer_seconds, found.upscaler_seconds) == (0.0, 0.0)


def rows(folder: Path) -> dict[str, list[dict[str, object]]]:
    with sqlite3.connect(folder / FILE_NAME) as connection:
        connection.row_factory = sqlite3.Row
        names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {
            name: [dict(row) for row in connection.execute(f'SELECT * FROM "{name}"')]  # noqa: S608 # its own
            for name in names
        }
