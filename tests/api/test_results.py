from __future__ import annotations

from pathlib import Path

import pytest

from gateway.storage.results import ResultStore

MINUTE = 60.0


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store(tmp_path, clock):
    store = ResultStore(directory=tmp_path / "results", max_bytes=100, max_age_seconds=MINUTE, clock=clock)
    yield store
    store.close()


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


async def test_names_are_distinct_and_end_in_the_extension(store):
    names = {await store.put(b"x", "png") for _ in range(10)}
    assert len(names) == 10
    assert all(name.startswith("img_") and name.endswith(".png") and len(name) == 40 for name in names)


async def test_what_is_put_can_be_got(store):
    name = await store.put(b"picture", "webp")
    assert await store.get(name) == b"picture"
    assert await store.get("img_0.webp") is None


async def test_the_oldest_go_first(store, tmp_path):
    names = [await store.put(bytes(40), "png") for _ in range(3)]
    assert [await store.get(name) is not None for name in names] == [False, True, True]
    assert store.nbytes == 80
    assert len(files(tmp_path)) == 2


async def test_the_newest_is_kept_whatever_its_size(store, tmp_path):
    await store.put(bytes(40), "png")
    name = await store.put(bytes(500), "png")
    assert await store.get(name) == bytes(500)
    assert len(files(tmp_path)) == 1


async def test_age(store, clock, tmp_path):
    name = await store.put(b"x", "png")
    clock.now += MINUTE
    assert await store.get(name) is None
    await store.put(b"y", "png")
    assert len(files(tmp_path)) == 1


@pytest.mark.parametrize("name", ["../secret", "", ".", "img_x.png/../../secret"])
async def test_names_are_no_paths(store, tmp_path, name):
    (tmp_path / "secret").write_bytes(b"secret")
    await store.put(b"x", "png")
    assert await store.get(name) is None


async def test_a_file_that_somebody_removed_is_gone(store, tmp_path):
    name = await store.put(b"x", "png")
    files(tmp_path)[0].unlink()
    assert await store.get(name) is None


async def test_a_refusing_disk_leaves_nothing_counted(store, tmp_path):
    name = await store.put(b"x", "png")
    folder = files(tmp_path)[0].parent
    await store.get(name)
    files(tmp_path)[0].unlink()
    folder.rmdir()
    with pytest.raises(FileNotFoundError):
        await store.put(b"y", "png")
    assert store.nbytes == 1


async def test_close_removes_everything(store, tmp_path):
    await store.put(b"x", "png")
    store.close()
    assert files(tmp_path) == []
    assert store.nbytes == 0
