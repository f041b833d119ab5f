"""Rules that hold whatever happens: random loads, losses and starts, in the simulator."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import pytest

from scheduler import events as ev
from scheduler.actions import Action
from scheduler.scaling.pools import Pool, ScalingSettings
from scheduler.scaling.records import PoolOrder
from scheduler.scaling.scaler import Autoscaler
from scheduler.sim import suite
from scheduler.sim.engine import Simulation
from scheduler.sim.metrics import End, Recorder
from scheduler.sim.policies import named
from scheduler.sim.setup import Kill, PoolSetup, Scenario, ServerSetup
from scheduler.sim.workload import Arrival, Kind, Workload
from scheduler.view import View
from wire.types import REQUIRED, Role, ServerId

PROFILE = suite.bundled_profile("flux.1-dev-h100")
KIND = Kind("picture", 512, 512, 4, deadline=300.0)
DWELL = 20.0


class Judge(Autoscaler):
    """Checks each of its own decisions against what the scheduler knows."""

    def __init__(self, pools: Sequence[Pool], view: View):
        settings = ScalingSettings(dwell_seconds=DWELL, idle_seconds=60.0)
        super().__init__(pools, view, settings)
        self.view = view
        self.history: dict[str, list[tuple[float, int]]] = {pool.name: [] for pool in pools}
        self.drained: set[ServerId] = set()

    def decide(self, now: float) -> tuple[PoolOrder, ...]:
        orders = super().decide(now)
        for order in orders:
            assert order.pool.min <= order.wanted <= order.pool.max
            self.history[order.pool.name].append((now, order.wanted))
            assert self._keeps_every_role(order), order
            self.drained.update(order.drain)
        return orders

    def _keeps_every_role(self, order: PoolOrder) -> bool:
        """Nobody goes who is the last to hold a role while there is work, unless its machine goes anyway."""
        going = {server for each in self.latest for server in each.drain}
        chosen = set(order.drain) - set(order.lost) - self.drained
        for server in (self.view.servers[name] for name in chosen if self.view.live):
            for role in server.serving:
                if not self.view.serving(server.spec.model, role).keys() - going:
                    return False
        return True

    def turns(self, pool: str) -> list[float]:
        """Seconds between a pool's growing and its shrinking after that."""
        found, grown_at = [], None
        for (_, before), (now, after) in zip(self.history[pool], self.history[pool][1:], strict=False):
            if after > before:
                grown_at = now
            elif after < before and grown_at is not None:
                found.append(now - grown_at)
        return found


class Losses:
    """What machines that were taken away had with them."""

    def __init__(self) -> None:
        self.lost: list[str] = []

    def decided(self, event: ev.Event, actions: list[Action], now: float) -> None:
        if isinstance(event, ev.ServerLost):
            self.lost.append(event.why)

    def computed(self, server: str, role: Role | None, since: float, now: float) -> None:
        pass


def _scenario(seed: int) -> Scenario:
    chance = Random(seed)
    at, arrivals = 0.0, []
    while at < 150:
        rate = chance.choice((0.05, 0.5, 3.0))
        end = at + chance.uniform(10, 90)
        while (at := at + chance.expovariate(rate)) < end:
            arrivals.append(Arrival(at, KIND))
    least = chance.randint(0, 1)
    roles = chance.choice((frozenset(REQUIRED), frozenset({Role.ENCODER, Role.DECODER})))
    pools = (
        Pool("steady", PROFILE.model.name, least, 3, cold_start_seconds=30.0),
        Pool("spot", PROFILE.model.name, 0, 4, roles, cold_start_seconds=30.0, price=0.4),
    )
    setups = tuple(
        PoolSetup(pool, ServerSetup("gpu", PROFILE, pool.roles), pool.min, (5.0, 40.0), losses, notice=60.0)
        for pool, losses in zip(pools, ((), (120.0, 200.0)), strict=True)
    )
    kept = ServerSetup("kept", PROFILE)
    faults = (Kill(chance.uniform(20, 200), "kept", restart_after=30.0),) if chance.random() < 0.5 else ()
    return Scenario(f"pools {seed}", (kept,), Workload(trace=tuple(arrivals)), faults, pools=setups)


@pytest.mark.parametrize("seed", range(4))
def test_pools_keep_their_limits_their_roles_and_their_requests(seed: int) -> None:
    scenario, judges, losses = _scenario(seed), list[Judge](), Losses()
    recorder = Recorder(scenario)

    def made(given: Scenario, view: View) -> Judge:
        judges.append(Judge([setup.pool for setup in given.pools], view))
        return judges[0]

    Simulation(scenario, named("elastic", scenario), seed, [recorder, losses], made).run()
    assert recorder.result().count(End.OPEN) == 0
    assert recorder.result().count(End.FAILED) == 0
    assert all(seconds >= DWELL for pool in judges[0].history for seconds in judges[0].turns(pool))
    # The one that is killed aside, every server went of its own accord, those before whose machine was taken away too.
    assert losses.lost.count("killed") <= len(scenario.faults)


def test_a_server_is_gone_and_replaced_before_its_machine_is_taken_away() -> None:
    pool = Pool("spot", PROFILE.model.name, 1, 2, cold_start_seconds=30.0)
    setup = PoolSetup(pool, ServerSetup("gpu", PROFILE), cold_start=(20.0, 40.0), losses=(100.0,), notice=60.0)
    arrivals = tuple(Arrival(float(at), KIND) for at in range(1, 180, 2))
    scenario = Scenario("a loss", (), Workload(trace=arrivals), pools=(setup,))
    recorder, losses = Recorder(scenario), Losses()
    simulation = Simulation(scenario, named("elastic", scenario), 1, [recorder, losses])
    simulation.run()
    first, second = simulation.launcher.starts()
    assert first.gone < 100.0
    assert second.ordered == pytest.approx(40.0, abs=0.01 + simulation.launcher.scaler.interval_seconds)
    assert second.ready < first.gone
    assert losses.lost == ["it said goodbye"]
    assert recorder.result().count(End.FINISHED) == len(arrivals)
