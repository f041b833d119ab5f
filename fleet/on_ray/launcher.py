"""Launches processes of a fleet as Ray actors. Runs where the supervisor does, on the cluster's head node."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import RayActorError
from ray.util.placement_group import PlacementGroup, get_placement_group, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from fleet.description import Fleet, Pool
from fleet.keys import Secrets
from fleet.launcher import Standing
from fleet.on_ray.host import Assignment, Host, Told
from fleet.programs import Kind, Member, gateways, relays, server
from wire.children import Condition

NAMESPACE = "disagfusion"
ON_THE_HEAD = {"node:__internal_head__": 0.001}
"""Ray's resource of the head node alone: gateways and relays stay where others look for them."""

ANSWER_SECONDS = 5.0
"""An actor that does not answer for so long has no node yet."""
POLL_SECONDS = 1.0


class RayLauncher:
    """Implements ``fleet.launcher.Launcher``."""

    def __init__(self, fleet: Fleet, secrets: Secrets, gateway_host: str) -> None:
        self._fleet = fleet
        self._secrets = secrets
        self._gateway_host = gateway_host
        self._lives: defaultdict[str, dict[str, int]] = defaultdict(dict)
        """Process → life of its actor → starts in it."""

    async def start(self, member: Member) -> None:
        is_server = member.kind is Kind.SERVER
        options = self._placed(member) if is_server else {"num_cpus": 0, "resources": ON_THE_HEAD}
        assignment = Assignment(self._fleet, member, self._gateway_host, self._secrets)
        ray.remote(Host).options(
            name=self._named(member.name),
            namespace=NAMESPACE,
            lifetime="detached",
            max_restarts=-1,
            max_concurrency=4,  # it tells how it is while it drains
            **options,
        ).remote(assignment)

    async def stop(self, member: Member, *, drain: bool = True) -> None:
        host = self._host(member.name)
        if host is None:
            return
        if await self._ask(host) is not None:
            with suppress(RayActorError):  # its node died meanwhile
                await host.stop.remote(drain)
        ray.kill(host, no_restart=True)
        self._lives.pop(member.name, None)
        if member.kind is Kind.SERVER:
            self._give_back(member)

    async def list(self) -> Sequence[Standing]:
        members = [each for each in self._members() if self._host(each.name) is not None]
        return await asyncio.gather(*(self._standing(each.name) for each in members))

    async def watch(self) -> AsyncIterator[Standing]:
        """Ray tells nobody, so it is asked."""
        known: set[Standing] = set()
        while True:
            found = set(await self.list())
            for standing in sorted(found - known, key=lambda each: each.name):
                yield standing
            known = found
            await asyncio.sleep(POLL_SECONDS)

    # --- actors -------------------------------------------------------------------------------------------------------

    async def _standing(self, name: str) -> Standing:
        host = self._host(name)
        told = None if host is None else await self._ask(host)
        if told is None:
            return Standing(name, Condition.WAITING, "no machine yet", sum(self._lives[name].values()))
        self._lives[name][told.life] = told.starts
        return Standing(name, told.condition, told.where, sum(self._lives[name].values()))

    async def _ask(self, host: Any) -> Told | None:
        """Nothing while it has no node."""
        asked = asyncio.ensure_future(_answer(host.told.remote()))
        await asyncio.wait([asked], timeout=ANSWER_SECONDS)
        if not asked.done():
            asked.cancel()
            return None
        return asked.result()

    def _host(self, name: str) -> Any:
        try:
            return ray.get_actor(self._named(name), namespace=NAMESPACE)
        except ValueError:
            return None

    def _members(self) -> Sequence[Member]:
        pools = self._fleet.pools.items()
        servers = [server(name, index) for name, pool in pools for index in range(1, pool.most + 1)]
        return [*relays(self._fleet), *gateways(self._fleet), *servers]

    def _named(self, name: str) -> str:
        return f"{self._fleet.name}/{name}"

    # --- placement ----------------------------------------------------------------------------------------------------

    def _placed(self, member: Member) -> dict[str, Any]:
        """The servers that a pool always has are placed together; each further one by itself, so that its room is
        free again when it goes."""
        pool = self._fleet.pools[member.pool]
        together = member.index <= pool.min
        group = self._group(self._group_name(member), pool, pool.min if together else 1)
        resources = pool.resources
        return {
            "num_cpus": resources.cpus,
            "num_gpus": resources.num_gpus,
            "memory": resources.memory_bytes,
            "resources": dict(resources.custom),
            "scheduling_strategy": PlacementGroupSchedulingStrategy(group, member.index - 1 if together else 0),
        }

    def _group(self, name: str, pool: Pool, servers: int) -> PlacementGroup:
        try:
            return get_placement_group(name)
        except ValueError:
            resources = pool.resources
            bundle = {"CPU": resources.cpus, "GPU": resources.num_gpus, "memory": float(resources.memory_bytes or 0)}
            needed = {kind: amount for kind, amount in {**bundle, **resources.custom}.items() if amount}
            return placement_group(
                [needed] * servers,
                strategy=pool.placement.upper(),
                name=name,
                lifetime="detached",
                bundle_label_selector=[dict(pool.node_labels)] * servers,
            )

    def _give_back(self, member: Member) -> None:
        pool = self._fleet.pools[member.pool]
        neighbours = [server(member.pool, index) for index in range(1, pool.min + 1)]
        if member.index > pool.min or all(self._host(each.name) is None for each in neighbours):
            remove_placement_group(get_placement_group(self._group_name(member)))

    def _group_name(self, member: Member) -> str:
        together = member.index <= self._fleet.pools[member.pool].min
        return self._named(member.pool if together else member.name)


async def _answer(reference: Any) -> Told | None:
    try:
        told: Told = await reference
    except RayActorError:  # it is being started elsewhere
        return None
    return told
