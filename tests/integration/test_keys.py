"""Real gateways: keys made and revoked while they run, and databases that stop a start, or do not."""

from __future__ import annotations

import sqlite3

import httpx
import pytest

from gateway.__main__ import main
from gateway.database.engines import FILE_NAME
from gateway.settings import InvalidSettings, Settings
from gateway.shell.assembly import Gateway
from gateway.storage.space import StoreFull


@pytest.fixture
def keys(monkeypatch, tmp_path, capsys):
    """The command, which returns what it prints on standard output."""
    monkeypatch.setenv("DISAGFUSION_STATE_DIR", str(tmp_path / "state"))

    def run(*arguments):
        assert main(["keys", *arguments]) == 0
        return capsys.readouterr().out.strip()

    return run


def run(start, **environment):
    return start("-m", "gateway", "--port", "0", "--control-bind", "tcp://127.0.0.1:*", **environment)


def status(url, secret=""):
    headers = {"authorization": f"Bearer {secret}"} if secret else {}
    return httpx.get(f"{url}/v1/models", headers=headers).status_code


def test_keys_are_made_and_revoked_while_the_gateway_runs(start, listening, until, keys, tmp_path):
    gateway = run(start)
    url = listening(gateway)
    assert status(url) == 200  # open, as there is no key
    secret = keys("create", "--tenant", "alice")
    until(lambda: status(url) == 401, "a gateway that wants a key")
    until(lambda: status(url, secret) == 200, "a gateway that knows the key")
    keys("revoke", keys("list").split("\n")[1].split()[0])
    until(lambda: status(url, secret) == 401, "a gateway that refuses the key")
    assert status(url) == 401  # not open again
    assert gateway.finish() == 0
    assert secret not in gateway.text()
    assert "Traceback" not in gateway.text()
    with sqlite3.connect(tmp_path / "state" / FILE_NAME) as database:
        ((last_used,),) = database.execute("SELECT last_used FROM keys").fetchall()
    assert last_used is not None  # written at the end at the latest


async def test_beyond_loopback_a_key_must_be_there(monkeypatch, tmp_path):
    settings = Settings(state_dir=tmp_path, host="0.0.0.0", control_bind="tcp://127.0.0.1:*")  # noqa: S104
    with pytest.raises(InvalidSettings, match="there is no API key: make one with 'python -m gateway keys create'"):
        await Gateway(settings).open()
    for changes in ({"allow_anonymous": True}, {"api_keys": {"carol": "sk-carol"}}):
        gateway = Gateway(Settings(**(settings.model_dump() | changes)))
        await gateway.open()
        await gateway.close()


async def test_the_store_is_shared_out_among_tenants_with_keys(tmp_path):
    carol = {"carol": "sk-carol"}
    room = 100 << 20
    for keys, nbytes in ((carol, room), (carol | {"dave": "sk-dave"}, room // 2)):
        gateway = Gateway(
            Settings(state_dir=tmp_path, control_bind="tcp://127.0.0.1:*", api_keys=keys, storage_max_bytes=room)
        )
        try:
            gateway.storage.jobs.promise("job_1", "carol", nbytes)
            with pytest.raises(StoreFull):
                gateway.storage.jobs.promise("job_2", "carol", 1)
        finally:
            await gateway.close()


def test_a_newer_database_stops_the_start_with_one_line(start, keys, tmp_path):
    keys("list")
    with sqlite3.connect(tmp_path / "state" / FILE_NAME) as database:
        database.execute("UPDATE alembic_version SET version_num = '8888'")
    gateway = run(start)
    assert gateway.popen.wait(60) == 2
    (line,) = gateway.text().splitlines()
    assert "of a newer version (revision 8888)" in line


def test_a_damaged_database_leaves_static_keys_working(start, listening, tmp_path):
    (tmp_path / "state").mkdir(exist_ok=True)
    (tmp_path / "state" / FILE_NAME).write_bytes(b"nonsense " * 1000)
    gateway = run(start, DISAGFUSION_API_KEYS='{"carol": "sk-carol"}')
    url = listening(gateway)
    assert (status(url, "sk-carol"), status(url, "sk-other"), status(url)) == (200, 503, 401)
    assert gateway.finish() == 0
    lines = [line for line in gateway.text().splitlines() if "ERROR" in line]
    assert len(lines) == 1
    assert "its file is damaged, or no database" in lines[0]
    assert "Traceback" not in gateway.text()
