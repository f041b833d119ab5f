"""Has pools grow and shrink as the gateways predict that they must (docs/autoscaling.md)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import httpx

from fleet.description import Fleet
from fleet.keys import Secrets
from fleet.launcher import LaunchFailed
from fleet.supervisor import Supervisor

ASK_SECONDS = 5.0
"""Gateways decide as often."""
ANSWER_SECONDS = 5.0
ADMIN_KEY = "DISAGFUSION_ADMIN_KEY"
EVERY_ADDRESS = ("0.0.0.0", "::")  # noqa: S104 # compared with, not bound

log = logging.getLogger(__name__)
logging.getLogger("httpx").setLevel(logging.WARNING)  # or it would tell of every question


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the gateways say about one pool."""

    servers: int
    """Beside those in ``drain``."""
    drain: frozenset[str]


def followed(fleet: Fleet, secrets: Secrets) -> list[str]:
    """Pools that nobody but the gateways scales."""
    if not fleet.predicted or ADMIN_KEY in secrets.of_gateways:
        return fleet.predicted
    log.warning(
        "%s: only 'scale' changes how many servers there are: the prediction is asked for with keys.admin_key",
        ", ".join(fleet.predicted),
    )
    return []


class Follower:
    """``run`` beside the supervisor's ``watch``."""

    def __init__(self, supervisor: Supervisor, secrets: Secrets, host: str) -> None:
        """``host``: that of the gateways, where they listen at every address."""
        fleet = supervisor.fleet
        self._supervisor = supervisor
        self._headers = {"authorization": f"Bearer {secrets.of_gateways.get(ADMIN_KEY)}"}
        self._urls = [_url(fleet, gateway, host) for gateway in fleet.gateways]
        self._complaint = ""

    async def run(self) -> NoReturn:
        if not self._supervisor.followed:
            await asyncio.Event().wait()
        async with httpx.AsyncClient(headers=self._headers, timeout=ANSWER_SECONDS, trust_env=False) as http:
            while True:
                await self.follow(http)
                await asyncio.sleep(ASK_SECONDS)

    async def follow(self, http: httpx.AsyncClient) -> None:
        """Once. Unless every gateway answers nothing is changed: one that starts does not know its servers yet."""
        try:
            said = [await _ask(http, url) for url in self._urls]
        except (httpx.HTTPError, ValueError) as error:
            self._complain(f"pools keep their servers: {error or type(error).__name__}")
            return
        try:
            for pool in self._supervisor.followed:
                if wanted := _all_in_all([pools[pool] for pools in said if pool in pools]):
                    await self._supervisor.follow(pool, wanted.servers, wanted.drain)
        except LaunchFailed as error:
            self._complain(str(error))
        else:
            self._complaint = ""

    def _complain(self, text: str) -> None:
        """Once for each trouble."""
        if text != self._complaint:
            log.warning("%s", text)
        self._complaint = text


async def _ask(http: httpx.AsyncClient, url: str) -> Mapping[str, Wanted]:
    """Pool → what this gateway wants. Raises ``httpx.HTTPError``, or ``ValueError`` for an answer of something else."""
    answer = (await http.get(f"{url}/admin/scaling")).raise_for_status().json()
    try:
        return {name: Wanted(int(pool["wanted"]), frozenset(pool["drain"])) for name, pool in answer["pools"].items()}
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{url}/admin/scaling does not answer as a gateway does: {error!r}") from error


def _all_in_all(said: list[Wanted]) -> Wanted | None:
    """Each gateway speaks for the servers that are its own; None where none knows the pool."""
    if not said:
        return None
    return Wanted(sum(each.servers for each in said), frozenset[str]().union(*(each.drain for each in said)))


def _url(fleet: Fleet, gateway: str, host: str) -> str:
    described: Mapping[str, Any] = fleet.gateways[gateway].settings
    own = str(described.get("host", EVERY_ADDRESS[0]))
    address = host if own in EVERY_ADDRESS else own
    return f"http://{f'[{address}]' if ':' in address else address}:{fleet.gateways[gateway].port}"
