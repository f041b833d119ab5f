"""Prefix sums against sums."""

from __future__ import annotations

from random import Random

import pytest

from scheduler.elastic.fenwick import Entry, Fenwick


def test_sums_are_those_of_a_list_and_nothing_is_left_behind() -> None:
    rng, tree = Random(1), Fenwick()
    kept: list[tuple[float, float, Entry]] = []
    for _ in range(400):
        if kept and rng.random() < 0.4:
            tree.remove(kept.pop(rng.randrange(len(kept)))[2])
        else:
            key, amount = rng.uniform(0, 5000), rng.uniform(0, 20)
            kept.append((key, amount, tree.add(key, amount)))
        at = rng.uniform(0, 5000)
        assert tree.before(at) == pytest.approx(sum(a for k, a, _ in kept if k // 0.01 <= at // 0.01), abs=1e-3)
        assert tree.total == pytest.approx(sum(a for _, a, _ in kept), abs=1e-3)
    for _, _, entry in kept:
        tree.remove(entry)
    assert tree.total == 0
    assert not tree._nodes


def test_keys_beyond_the_ends_are_kept() -> None:
    tree = Fenwick()
    low, high = tree.add(-5.0, 1.0), tree.add(1e15, 2.0)
    assert tree.before(0.0) == pytest.approx(1.0)
    assert tree.before(1e16) == pytest.approx(3.0)
    tree.remove(low)
    tree.remove(high)
    assert tree.total == 0
