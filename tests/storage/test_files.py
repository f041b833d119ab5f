from __future__ import annotations

import asyncio

import msgspec
import pytest

from gateway.settings import InvalidSettings, Settings
from gateway.storage.files import ORPHAN_SECONDS, RECORD_BYTES, FileRecord
from gateway.storage.objects import StoreError, in_memory, open_store
from gateway.storage.space import StoreFull
from gateway.storage.storage import Storage, open_storage

HOUR = 3600


async def create(storage: Storage, data: bytes = b"text", **given: object) -> FileRecord:
    facts = {"tenant": "alice", "filename": "in.jsonl", "purpose": "batch", "content_type": "application/jsonl"}
    nbytes = len(data) if isinstance(data, bytes) else 100
    return await storage.files.create(data, **{**facts, "nbytes": nbytes, "lifetime_seconds": None, **given})


async def content(storage: Storage, record: FileRecord) -> bytes | None:
    download = await storage.files.open(record)
    return None if download is None else b"".join([chunk async for chunk in download.chunks])


async def test_a_restart_keeps_files(reopen, clock):
    storage = reopen()
    first = await create(storage)
    clock.now += 1
    second = await create(storage, b"\x00", tenant="bob", filename="ü", purpose="vision", lifetime_seconds=HOUR)
    again = reopen()
    await again.ready()
    assert (again.files.of("alice"), again.files.of("bob")) == ([first], [second])
    assert second.expires_at == clock.now + HOUR
    assert await content(again, second) == b"\x00"


async def test_another_tenants_file_does_not_exist(reopen):
    storage = reopen()
    record = await create(storage)
    assert storage.files.get("alice", record.id) == record
    assert storage.files.get("bob", record.id) is None
    assert storage.files.of("bob") == []


async def test_what_has_expired_is_gone_at_once_and_swept_later(reopen, clock):
    storage = reopen()
    record = await create(storage, lifetime_seconds=HOUR)
    clock.now += HOUR
    assert storage.files.get("alice", record.id) is None
    assert storage.files.of("alice") == []
    await storage.sweep()
    assert await content(storage, record) is None
    assert len(reopen().files) == 0


async def test_deleted_for_good(reopen):
    storage = reopen()
    record = await create(storage)
    await storage.files.delete(record)
    assert storage.files.get("alice", record.id) is None
    assert await content(storage, record) is None
    again = reopen()
    await again.ready()
    assert again.files.of("alice") == []


async def test_pictures_make_room_for_files_but_files_for_nothing(reopen):
    storage = reopen(storage_tenant_share=1.0, storage_max_bytes=3 * RECORD_BYTES, results_max_bytes=3 * RECORD_BYTES)
    name = await storage.pictures.put(bytes(RECORD_BYTES + 1), "png")
    await create(storage, bytes(RECORD_BYTES))
    assert await storage.pictures.get(name) is None
    with pytest.raises(StoreFull):
        await create(storage, b"1")
    assert len(storage.files.of("alice")) == 1


async def test_a_tenant_has_a_share_that_files_and_jobs_fill_together(reopen):
    storage = reopen(storage_tenant_share=0.5, storage_max_bytes=8 * RECORD_BYTES)
    storage.jobs.promise("job_1", "alice", 2 * RECORD_BYTES)
    kept = await create(storage)
    with pytest.raises(StoreFull, match=f"{3 * RECORD_BYTES + 4} bytes of the {4 * RECORD_BYTES}"):
        await create(storage)
    with pytest.raises(StoreFull, match="you may have"):
        storage.jobs.promise("job_2", "alice", RECORD_BYTES)
    storage.jobs.promise("job_3", "bob", 4 * RECORD_BYTES)
    await storage.files.delete(kept)
    await create(storage)
    storage.jobs.withdraw("job_1")
    storage.jobs.promise("job_4", "alice", 2 * RECORD_BYTES)


async def test_a_tenant_who_is_alone_has_the_whole_store(clock):
    with_keys = {"alice"}
    settings = Settings().model_copy(update={"storage_max_bytes": 4 * RECORD_BYTES})
    storage = Storage(settings, in_memory(), clock=clock, has_others=lambda tenant: bool(with_keys - {tenant}))
    storage.jobs.promise("job_1", "alice", 3 * RECORD_BYTES)
    with pytest.raises(StoreFull, match="The store is full"):
        storage.jobs.promise("job_2", "alice", 2 * RECORD_BYTES)
    with_keys.add("bob")
    with pytest.raises(StoreFull, match="you may have"):
        storage.jobs.promise("job_2", "alice", 1)
    storage.jobs.promise("job_3", "bob", RECORD_BYTES)


async def test_uploads_at_the_same_time_count_on_what_is_left(reopen):
    storage = reopen(storage_tenant_share=1.0, storage_max_bytes=3 * RECORD_BYTES)
    tries = await asyncio.gather(*(create(storage, bytes(10)) for _ in range(5)), return_exceptions=True)
    assert sum(isinstance(each, StoreFull) for each in tries) == 3


async def test_a_failed_upload_leaves_nothing(reopen, objects):
    async def broken():
        yield b"half"
        raise OSError("gone")

    storage = reopen(storage_tenant_share=1.0, storage_max_bytes=2 * RECORD_BYTES)
    with pytest.raises(StoreError):
        await create(storage, broken())
    assert await objects.list("") == []
    await create(storage)  # its room is free again


async def test_what_another_gateway_stored_and_deleted_is_known_after_a_look(reopen, clock):
    here, there = reopen(), reopen()
    await here.ready()
    await there.ready()
    first = await create(there)
    clock.now += 0.001
    second = await create(here)
    clock.now += 0.001
    third = await create(there)
    await create(there, tenant="bob")
    assert here.files.of("alice") == [second]
    await here.files.look("alice")
    assert here.files.of("alice") == [first, second, third], "in the order in which they were stored"
    assert here.files.of("bob") == []
    await there.files.delete(first)
    await here.files.look("alice")
    assert here.files.of("alice") == [second, third]
    assert await there.files.find("alice", second.id) == second


async def test_what_an_earlier_version_stored_is_there_until_it_is_deleted(objects, reopen):
    record = FileRecord(
        id="file-" + "0" * 32,
        tenant="alice",
        filename="a",
        purpose="batch",
        nbytes=1,
        content_type="",
        created_at=1,
    )
    await objects.put(f"files/{record.id}", b"1")
    await objects.put(f"records/{record.id}.json", msgspec.json.encode(record))
    storage = reopen()
    await storage.ready()
    await storage.files.look("alice")
    assert storage.files.of("alice") == [record]
    assert await content(storage, record) == b"1"
    await storage.files.delete(record)
    assert await objects.list("") == []


async def test_bytes_without_a_record_are_swept_when_they_are_old(clock):
    objects = in_memory()
    await objects.put("files/file-old", b"1")
    (stored,) = await objects.list("files")
    clock.now = stored.modified + ORPHAN_SECONDS - 1
    await Storage(Settings(), objects, clock=clock).ready()
    assert await objects.get("files/file-old") is not None
    clock.now += 2
    await Storage(Settings(), objects, clock=clock).ready()
    assert await objects.get("files/file-old") is None


async def test_a_record_that_cannot_be_read_is_passed_over(caplog):
    objects = in_memory()
    storage = Storage(Settings(), objects)
    record = await create(storage)
    await objects.put("records/file-x.json", b"{")
    again = Storage(Settings(), objects)
    await again.ready()
    assert again.files.of("alice") == [record]
    assert "records/file-x.json" in caplog.text


async def test_a_store_that_fails_is_asked_again(tmp_path):
    (tmp_path / "files").mkdir()
    objects = open_store(None, tmp_path / "files")
    storage = Storage(Settings(), objects)
    (tmp_path / "files" / "records").write_bytes(b"in the way")
    (tmp_path / "files" / "files").write_bytes(b"in the way")
    with pytest.raises(StoreError):
        await create(storage)
    for name in ("records", "files"):
        (tmp_path / "files" / name).unlink()
    await storage.sweep()
    assert await create(storage)


def test_the_state_folder_is_for_its_user_alone(tmp_path, monkeypatch):
    state = tmp_path / "a" / "state"
    open_storage(Settings(state_dir=state))
    assert state.stat().st_mode & 0o777 == 0o700
    assert sorted(path.name for path in state.iterdir()) == ["files", "spool"]
    monkeypatch.delenv("DISAGFUSION_STATE_DIR")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    assert Settings().state_folder() == tmp_path / "xdg" / "disagfusion"
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Settings().state_folder() == tmp_path / ".local" / "state" / "disagfusion"


def test_a_state_folder_that_cannot_be_used_stops_the_start(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InvalidSettings, match=r"DISAGFUSION_STATE_DIR: .*file/state cannot be used: Not a directory"):
        open_storage(Settings(state_dir=tmp_path / "file" / "state"))
    with pytest.raises(InvalidSettings, match="DISAGFUSION_FILE_STORE"):
        open_storage(Settings(state_dir=tmp_path / "state", file_store="ftp://x/y"))


async def test_requests_wait_only_so_long_for_what_is_read_at_start(monkeypatch):
    class Hanging:
        async def list(self, prefix: str):
            await asyncio.Event().wait()

    monkeypatch.setattr("gateway.storage.storage.READY_SECONDS", 0.01)
    with pytest.raises(StoreError, match=r"within 0\.01 s"):
        await Storage(Settings(), Hanging()).ready()
