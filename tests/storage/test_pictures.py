from __future__ import annotations

import pytest

MINUTE = 60.0


@pytest.fixture
def storage(reopen):
    return reopen(results_max_bytes=100, results_max_age_seconds=MINUTE)


async def test_names_are_distinct_and_end_in_the_extension(storage):
    names = {await storage.pictures.put(b"x", "png") for _ in range(5)}
    assert len(names) == 5
    assert all(name.startswith("img_") and name.endswith(".png") and len(name) == 48 for name in names)


async def test_they_survive_a_restart_until_they_expire(storage, reopen, clock):
    name = await storage.pictures.put(b"picture", "webp")
    again = reopen(results_max_bytes=100, results_max_age_seconds=MINUTE)
    await again.ready()
    assert await again.pictures.get(name) == b"picture"
    clock.now += MINUTE
    assert await again.pictures.get(name) is None
    await again.sweep()
    clock.now -= MINUTE
    assert await again.pictures.get(name) is None


async def test_the_oldest_go_first(storage, reopen, clock):
    names = []
    for extension in ("png", "jpeg", "png"):
        names.append(await storage.pictures.put(bytes(40), extension))
        clock.now += 1
    assert [await storage.pictures.get(name) is not None for name in names] == [False, True, True]
    smaller = reopen(results_max_bytes=50, results_max_age_seconds=MINUTE)
    await smaller.ready()
    assert [await storage.pictures.get(name) is not None for name in names] == [False, False, True]


@pytest.mark.parametrize("name", ["", ".", "../records/x.json", "img_0.png", "img_" + 40 * "f" + ".svg", "img_ü"])
async def test_names_are_no_paths(storage, name):
    await storage.pictures.put(b"x", "png")
    assert await storage.pictures.get(name) is None


async def test_a_guess_with_a_later_expiry_is_another_name(storage):
    name = await storage.pictures.put(b"x", "png")
    assert await storage.pictures.get("img_" + 8 * "f" + name[12:]) is None
