"""Which GPU each process of a machine gets."""

from __future__ import annotations

import pytest

from fleet.launcher import LaunchFailed
from fleet.local import gpus
from fleet.local.gpus import Gpus, visible_gpus


def test_whole_ones_are_had_alone() -> None:
    here = Gpus(["0", "1", "2"])
    assert [here.take("a", 1), here.take("b", 2)] == [["0"], ["1", "2"]]
    with pytest.raises(LaunchFailed, match="c needs 1 GPUs; of the 3 here 0 have room"):
        here.take("c", 1)
    here.give_back("a")
    assert here.take("c", 1) == ["0"]


def test_shares_go_where_least_is_left() -> None:
    here = Gpus(["0", "1"])
    assert [here.take(name, 1 / 3) for name in "abc"] == [["0"]] * 3
    assert here.take("d", 0.5) == ["1"]
    with pytest.raises(LaunchFailed):
        here.take("e", 0.6)
    assert here.take("e", 0.5) == ["1"]


@pytest.mark.parametrize(("named", "seen"), [("2,3", ["2", "3"]), ("", []), ("-1", [])])
def test_those_that_cuda_may_see(named: str, seen: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert visible_gpus() == seen


def test_a_machine_without_a_driver_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(gpus.shutil, "which", lambda name: None)
    assert visible_gpus() == []
