from __future__ import annotations

import pytest

from gateway.storage.objects import Objects, StoreError, open_store


async def halves(data: bytes):
    yield data[: len(data) // 2]
    yield data[len(data) // 2 :]


async def test_what_is_put_is_there_until_it_is_deleted(objects: Objects):
    await objects.put("a/one", b"1")
    await objects.put("a/two", halves(bytes(12 << 20)))
    await objects.put("b/three", b"")
    assert await objects.get("a/one") == b"1"
    assert await objects.get("b/three") == b""
    download = await objects.open("a/two")
    assert download.nbytes == 12 << 20
    assert sum([len(chunk) async for chunk in download.chunks]) == 12 << 20
    assert {(stored.key, stored.nbytes) for stored in await objects.list("a")} == {("a/one", 1), ("a/two", 12 << 20)}
    await objects.delete("a/one")
    await objects.delete("a/one")
    assert await objects.get("a/one") is None
    assert await objects.open("a/one") is None


async def test_nothing_is_there_at_first(objects: Objects):
    assert await objects.list("a") == []
    assert await objects.get("a/b") is None


async def test_an_upload_that_fails_leaves_nothing(objects: Objects):
    async def broken():
        yield bytes(1 << 20)
        raise OSError("the spool is gone")

    with pytest.raises(StoreError):
        await objects.put("a/one", broken())
    assert await objects.get("a/one") is None
    assert await objects.list("a") == []


async def test_a_folder_that_refuses(tmp_path):
    objects = open_store(None, tmp_path / "files")
    (tmp_path / "files" / "a").write_bytes(b"not a folder")
    with pytest.raises(StoreError, match="cannot store a/b"):
        await objects.put("a/b", b"1")


async def test_what_a_killed_process_did_not_finish_is_removed(tmp_path):
    left = tmp_path / "files" / "a" / "b#1"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    open_store(None, tmp_path / "files")
    assert not left.exists()


@pytest.mark.parametrize("url", ["nonsense", "ftp://host/x", "s3://"])
def test_urls_that_name_no_store(url, tmp_path):
    with pytest.raises(StoreError, match=url):
        open_store(url, tmp_path)


async def test_a_bucket_that_is_not_there(s3_url, tmp_path):
    objects = open_store("s3://nobody-has-this/x", tmp_path)
    with pytest.raises(StoreError, match="cannot store a") as caught:
        await objects.put("a", b"1")
    assert "\n" not in str(caught.value)


async def test_what_cannot_be_deleted_is_tried_again(tmp_path):
    objects = open_store(None, tmp_path / "files")
    blocked = tmp_path / "files" / "a"
    (blocked / "inside").mkdir(parents=True)
    await objects.discard(["a"])  # a folder is no object
    assert blocked.exists()
    (blocked / "inside").rmdir()
    blocked.rmdir()
    blocked.write_bytes(b"1")
    await objects.discard()
    assert not blocked.exists()
