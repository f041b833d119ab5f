"""``python -m gateway keys``, in this process."""

from __future__ import annotations

import asyncio
import json
import re
import stat

import pytest

from gateway.__main__ import main
from gateway.accounts.keyring import KeyRing
from gateway.database.database import Database
from gateway.database.engines import FILE_NAME
from gateway.database.keys import StoredKeys
from gateway.settings import Settings


@pytest.fixture(autouse=True)
def state(monkeypatch, tmp_path):
    monkeypatch.setenv("DISAGFUSION_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def keys(capsys):
    def run(*arguments, status=0):
        assert main(["keys", *arguments]) == status
        return capsys.readouterr()

    return run


def caller_with(state, secret):
    async def look():
        database = Database(Settings(state_dir=state))
        await database.open()
        ring = KeyRing({}, StoredKeys(database))
        await ring.refresh()
        await database.close()
        return ring.check(secret.encode())

    return asyncio.run(look())


def test_a_key_is_shown_once_and_alone_on_standard_output(keys, state):
    said = keys("create", "--tenant", "alice", "--name", "laptop", "--scopes", "edit,generate", "--expires", "30d")
    secret = said.out.strip()
    assert re.fullmatch(r"sk-df-[\w-]{43}", secret)
    assert "alice" in said.err
    assert "only time" in said.err
    assert secret not in keys("list").out + keys("list", "--json").out
    assert secret.encode() not in (state / FILE_NAME).read_bytes()
    assert stat.S_IMODE((state / FILE_NAME).stat().st_mode) == 0o600
    caller = caller_with(state, secret)
    assert (caller.tenant, sorted(caller.scopes)) == ("alice", ["edit", "generate"])


def test_rights_and_limits_are_listed(keys):
    limits = ("--requests-per-minute", "60", "--images-per-minute", "30", "--concurrent-requests", "2")
    budget = ("--device-seconds-per-month", "3600.5")
    keys("create", "--tenant", "alice", "--models", "tiny, org/plain", "--expires", "2099-01-31", *limits, *budget)
    keys("create", "--tenant", "bob")
    (found, other) = json.loads(keys("list", "--json").out)
    assert found["limits"] == {
        "requests_per_minute": 60,
        "images_per_minute": 30,
        "concurrent_requests": 2,
        "device_seconds_per_month": 3600.5,
    }
    assert (found["models"], found["expires"]) == (["org/plain", "tiny"], 4073500800.0)
    assert (other["scopes"], other["models"]) == (["edit", "generate", "jobs", "usage"], [])
    heads, alice, bob = keys("list").out.splitlines()
    assert heads.split()[:3] == ["ID", "TENANT", "NAME"]
    for word in (
        found["id"],
        "alice",
        "org/plain,tiny",
        "60 requests/min",
        "2 at a time",
        "2099-01-31 00:00Z",
        "valid",
    ):
        assert word in alice
    assert bob.split()[3:6] == ["all", "all", "-"]
    assert [line.split()[1] for line in keys("list", "--tenant", "bob").out.splitlines()] == ["TENANT", "bob"]


def test_revoking(keys):
    keys("create", "--tenant", "alice")
    (key,) = [each["id"] for each in json.loads(keys("list", "--json").out)]
    assert "refuse it within a second" in keys("revoke", key).err
    assert "revoked" in keys("list").out.splitlines()[1]
    before = keys("list", "--json").out
    assert "already" in keys("revoke", key).err
    assert keys("list", "--json").out == before
    assert "there is no key 'key_x'" in keys("revoke", "key_x", key, status=2).err


def test_an_empty_list_says_how_to_begin(keys):
    assert "keys create --tenant" in keys("list").out
    assert json.loads(keys("list", "--json").out) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("create",), "--tenant"),
        (("create", "--tenant", " "), "1 to 200 printable characters"),
        (("create", "--tenant", "a\nb"), "1 to 200 printable characters"),
        (("create", "--tenant", "a", "--scopes", "generate,fly"), "fly: write some of generate,edit,jobs,usage"),
        (("create", "--tenant", "a", "--scopes", ","), "nothing: write some of"),
        (("create", "--tenant", "a", "--models", ""), "leave it out for all"),
        (("create", "--tenant", "a", "--expires", "soon"), "write 30d, 12h or 2027-01-31"),
        (("create", "--tenant", "a", "--expires", "2020-01-01"), "is past"),
        (("create", "--tenant", "a", "--expires", "0d"), "is past"),
        (("create", "--tenant", "a", "--expires", "999999w"), "leave it out"),
        (("create", "--tenant", "a", "--expires", "9999-12-31T23:00-08:00"), "leave it out"),
        (("create", "--tenant", "~batches"), "take another name"),
        (("create", "--tenant", "a", "--requests-per-minute", "0"), "whole number from 1"),
        (("create", "--tenant", "a", "--device-seconds-per-month", "nan"), "a number above 0"),
        (("revoke",), "id"),
        ((), "create | list | revoke"),
    ],
)
def test_a_mistake_is_named_and_nothing_is_made(keys, capsys, state, arguments, words):
    with pytest.raises(SystemExit) as caught:
        main(["keys", *arguments])
    assert caught.value.code == 2
    assert words in capsys.readouterr().err
    assert not state.exists()


def test_a_database_that_cannot_be_used_is_one_line(keys, state):
    state.mkdir()
    (state / FILE_NAME).write_bytes(b"nonsense " * 1000)
    said = keys("list", status=2)
    assert (said.out, len(said.err.splitlines())) == ("", 1)
    assert "damaged, or no database" in said.err
