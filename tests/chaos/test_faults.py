from __future__ import annotations

from collections import Counter
from pathlib import Path
from random import Random

import pytest

from tests.chaos.faults import KINDS, Fault, Kind, Strikes, fill, plan
from tests.chaos.members import Member
from tests.chaos.proxy import Proxy
from tests.chaos.record import Asked, Attempt, End
from tests.chaos.report import written
from tests.chaos.run import Outcome
from tests.chaos.site import Site
from tests.servers import free_port


def test_a_seed_is_a_plan() -> None:
    faults = plan(5, 400)
    assert faults == plan(5, 400) != plan(6, 400)
    assert set(Counter(fault.kind.name for fault in faults)) == {kind.name for kind in KINDS}
    assert all(fault.kind.shortest <= fault.seconds <= fault.kind.longest for fault in faults)


def member(folder: Path, *command: str) -> Member:
    return Member("a", command, {}, folder / "log", lambda: 0.0)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
async def test_whatever_is_drawn_is_done(kind: Kind, tmp_path: Path) -> None:
    """Where there is no process, and nobody is connected, nothing is broken; but nothing fails either."""
    site = Site(tmp_path, Random(1))
    site.disk, site.ports = tmp_path, [free_port()]
    site.gateways, site.servers = [member(tmp_path)], [member(tmp_path)]
    site.control, site.data = [Proxy(0, 1)], [Proxy(0, 1)]
    strikes = Strikes(site)
    await strikes.run([Fault(kind, 3, 0.0, 5, 0.0)], 1.0)
    assert (strikes.done + strikes.undone).total() == 1
    await site.http.aclose()


async def test_a_process_that_ends_by_itself_is_told_of(tmp_path: Path) -> None:
    gone = member(tmp_path, "timeit", "-n", "1", "pass")

    def once() -> None:
        gone.is_stopping = gone.starts == 2

    gone.on_end = once
    await gone.keep()
    assert gone.complaints == ["a ended by itself with status 0"] * 2


def test_a_disk_is_filled_until_it_takes_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        """Ten thousand bytes fit."""

        left = 10_000

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: object) -> None: ...

        def write(self, data: bytes) -> int:
            if len(data) > self.left:
                raise OSError(28, "No space left on device")
            self.left -= len(data)
            return len(data)

    disk = Full()
    monkeypatch.setattr(Path, "open", lambda *_, **__: disk)
    fill(tmp_path / "ballast")
    assert disk.left == 0


def test_a_report_says_what_did_not_hold() -> None:
    outcome = Outcome(1, 1, 1, 2.0, 1.0, requests=1, asked=[Asked(1, "plain", attempts=[Attempt(0, 0, 1, End.HUNG)])])
    assert "All held." in written(outcome)
    outcome.complaints.append("request 1 (plain): hung")
    assert "1 did not hold:\n\n- request 1 (plain): hung" in written(outcome)
