"""Keys with limits, and the API with a database: what tests of limits and usage share."""

from __future__ import annotations

import httpx
from pydantic import SecretStr

from gateway.accounts.caller import Caller, Limits, Scope
from gateway.accounts.keyring import KeyRing
from gateway.api.app import create_app
from gateway.database.usage import Usage
from gateway.limits.budgets import Budgets
from gateway.limits.limiter import Limiter
from gateway.metering.meter import Meter
from gateway.metering.overflow import Overflow

ADMIN = "operators-only-0123"


class Keys(KeyRing):
    """Named by what is shown."""

    def __init__(self, **callers: Caller) -> None:
        super().__init__({"somebody": SecretStr("else")})
        self.callers = callers

    def check(self, shown: bytes) -> Caller:
        return self.callers.get(shown.decode()) or super().check(shown)


def keys(**limits: object) -> Keys:
    """``alice`` with these limits, and ``bob`` of the same tenant with none, and ``carol`` of another."""
    return Keys(
        alice=Caller("acme", "key-a", limits=Limits(**limits)),
        bob=Caller("acme", "key-b"),
        carol=Caller("other", "key-c", scopes=frozenset({Scope.GENERATE})),
    )


class Metered:
    """The API with a database, in-process."""

    def __init__(self, service, settings, database, folder) -> None:
        self.usage = Usage(database)
        self.meter = Meter(self.usage, Overflow(folder / "waiting.jsonl", 1 << 20))
        self._service, self._settings = service, settings
        self._clients: list[httpx.AsyncClient] = []

    def app(self, keys: KeyRing | None = None, **changes: object):
        budgets = Budgets(self.usage, self.meter)
        self.meter.on_written = budgets.written
        settings = self._settings.model_copy(update={"admin_key": SecretStr(ADMIN)} | changes)
        limiter = Limiter(settings.default_limits(), budgets=budgets)
        return create_app(self._service, settings, keys=keys, limiter=limiter, meter=self.meter)

    def client(self, keys: KeyRing | None = None, key: str = "alice", **changes: object) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(self.app(keys, **changes))
        headers = {"authorization": f"Bearer {key}"}
        self._clients.append(httpx.AsyncClient(transport=transport, base_url="http://gateway.test", headers=headers))
        return self._clients[-1]

    async def rows(self, client: httpx.AsyncClient, query: str = "", key: str = ADMIN) -> list[dict]:
        await self.meter.write()
        answer = await client.get(f"/admin/usage{query}", headers={"authorization": f"Bearer {key}"})
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    async def close(self) -> None:
        for client in self._clients:
            await client.aclose()
