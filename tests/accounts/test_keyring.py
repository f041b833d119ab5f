"""Which keys are good, as of when, with the database there and gone."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest
from pydantic import SecretStr

from gateway.accounts import keyring
from gateway.accounts.caller import ANYBODY, Caller, Limits, Scope
from gateway.accounts.keyring import KeyRefused, KeyRing, KeysUnknown, Refusal
from gateway.accounts.secrets import digest_of
from gateway.database.errors import DatabaseError, Trouble
from gateway.database.keys import StoredKeys

STATIC = {"carol": SecretStr("sk-carol")}


class Failing(StoredKeys):
    """Real, until told to fail."""

    lost = False

    def __init__(self, database):
        super().__init__(database)
        self.failed, self.read, self.noted = (asyncio.Event() for _ in range(3))

    def fail_if_lost(self):
        if self.lost:
            self.failed.set()
            raise DatabaseError(Trouble.LOST, "")

    async def changed_since(self, change):
        self.fail_if_lost()
        found = await super().changed_since(change)
        if found is None:  # the keys of the look before are in the ring
            self.read.set()
        return found

    async def note_used(self, used):
        self.fail_if_lost()
        await super().note_used(used)
        self.noted.set()


@dataclass
class Scene:
    stored: Failing
    wall: float = 1_800_000_000.0
    seconds: float = 0.0
    made: list[str] = field(default_factory=list)

    def ring(self, static=None, *, anonymous=False):
        return KeyRing(
            static or {},
            self.stored,
            anonymous=anonymous,
            clock=lambda: self.wall,
            monotonic=lambda: self.seconds,
        )

    async def create(self, secret, tenant="alice", expires=None, **rights):
        caller = Caller(tenant, **rights)
        self.made.append(await self.stored.create(caller, "", digest_of(secret.encode()), self.wall, expires))
        return self.made[-1]


@pytest.fixture
def scene(database):
    return Scene(Failing(database))


def refusal(ring, shown):
    with pytest.raises(KeyRefused) as caught:
        ring.check(shown)
    return caught.value.refusal


async def test_a_key_opens_what_it_was_made_for(scene):
    limits = Limits(60, 30, 2, 3600.5)
    rights = {"scopes": frozenset({Scope.EDIT}), "models": frozenset({"tiny"}), "limits": limits}
    key = await scene.create("sk-1", **rights)
    ring = scene.ring()
    await ring.refresh()
    caller = ring.check(b"sk-1")
    assert caller == Caller("alice", key, **rights)
    assert caller.may_use("tiny")
    assert caller.may_use("alias", "tiny")
    assert not caller.may_use("large")


async def test_right_wrong_revoked_expired_and_missing(scene):
    await scene.create("sk-right")
    revoked = await scene.create("sk-revoked")
    await scene.create("sk-expiring", expires=scene.wall + 60)
    await scene.stored.revoke(revoked, scene.wall)
    ring = scene.ring(STATIC)
    await ring.refresh()
    assert ring.check(b"sk-right").tenant == ring.check(b"sk-expiring").tenant == "alice"
    assert ring.check(b"sk-carol") == Caller("carol", "static:carol")
    scene.wall += 60
    shown = (b"sk-wrong", b"sk-revoked", b"sk-expiring", b"", bytes(32))
    assert [refusal(ring, each) for each in shown] == [
        Refusal.WRONG,
        Refusal.REVOKED,
        Refusal.EXPIRED,
        Refusal.MISSING,
        Refusal.WRONG,
    ]


async def test_whether_others_have_keys(scene):
    ring = scene.ring()
    assert not ring.has_others("alice")
    for tenant in ("alice", "alice", "bob"):
        await scene.create(f"sk-{len(scene.made)}", tenant)
    await ring.refresh()
    assert (ring.has_others("alice"), ring.has_others("bob")) == (True, True)
    await scene.stored.revoke(scene.made[-1], scene.wall)
    await ring.refresh()
    assert (ring.has_others("alice"), ring.has_others("bob")) == (False, True)
    assert scene.ring(STATIC).has_others("alice")


async def test_changes_are_felt_at_the_next_look_of_every_gateway(scene):
    rings = scene.ring(), scene.ring()
    for ring in rings:
        await ring.refresh()
        assert refusal(ring, b"sk-1") is Refusal.WRONG
    key = await scene.create("sk-1")
    for ring in rings:
        await ring.refresh()
        assert ring.check(b"sk-1").key == key
    await scene.stored.revoke(key, scene.wall)
    for ring in rings:
        await ring.refresh()
        assert refusal(ring, b"sk-1") is Refusal.REVOKED


async def test_keys_are_read_again_only_when_they_have_changed(scene):
    await scene.create("sk-1")
    change, records = await scene.stored.changed_since(None)
    assert len(records) == 1
    assert await scene.stored.changed_since(change) is None
    await scene.stored.note_used({scene.made[0]: scene.wall})
    assert await scene.stored.changed_since(change) is None
    await scene.create("sk-2")
    assert (await scene.stored.changed_since(change))[0] == change + 1


async def test_open_until_the_first_key_and_never_again(scene):
    ring = scene.ring(anonymous=True)
    await ring.refresh()
    assert not ring.required
    assert ring.check(b"") is ring.check(b"any") is ANYBODY
    key = await scene.create("sk-1")
    await ring.refresh()
    assert ring.required
    assert refusal(ring, b"") is Refusal.MISSING
    await scene.stored.revoke(key, scene.wall)
    await ring.refresh()
    assert refusal(ring, b"") is Refusal.MISSING


async def test_without_a_key_and_not_open_nobody(scene):
    ring = scene.ring()
    await ring.refresh()
    assert ring.empty
    assert refusal(ring, b"sk-1") is Refusal.WRONG


async def test_without_the_database_known_keys_are_good_for_ten_minutes(scene):
    await scene.create("sk-1")
    await scene.stored.revoke(await scene.create("sk-2"), scene.wall)
    ring = scene.ring(STATIC)
    await ring.refresh()
    scene.stored.lost = True
    scene.seconds = keyring.CURRENT_SECONDS
    with pytest.raises(DatabaseError):
        await ring.refresh()
    assert refusal(ring, b"sk-3") is Refusal.WRONG
    scene.seconds = keyring.TRUSTED_SECONDS
    assert ring.check(b"sk-1").tenant == "alice"
    with pytest.raises(KeysUnknown):  # it may have been made meanwhile
        ring.check(b"sk-3")
    scene.seconds += 1
    with pytest.raises(KeysUnknown):  # it may have been revoked meanwhile
        ring.check(b"sk-1")
    assert ring.check(b"sk-carol").tenant == "carol"
    assert refusal(ring, b"sk-2") is Refusal.REVOKED
    assert refusal(ring, b"") is Refusal.MISSING
    scene.stored.lost = False
    await ring.refresh()
    assert ring.check(b"sk-1").tenant == "alice"


async def test_a_start_without_the_database_serves_static_keys_alone(scene):
    scene.stored.lost = True
    ring = scene.ring(STATIC, anonymous=True)
    assert ring.check(b"sk-carol").tenant == "carol"
    assert refusal(ring, b"") is Refusal.MISSING
    with pytest.raises(KeysUnknown):
        ring.check(b"sk-1")


async def test_an_open_server_that_starts_without_the_database_cannot_know_that_it_is_open(scene):
    scene.stored.lost = True
    ring = scene.ring(anonymous=True)
    with pytest.raises(KeysUnknown):
        ring.check(b"")
    scene.stored.lost = False
    await ring.refresh()
    assert ring.check(b"") is ANYBODY
    scene.stored.lost = True
    scene.seconds = 10 * keyring.TRUSTED_SECONDS
    assert ring.check(b"") is ANYBODY  # nobody can make the first key in a database that is gone


async def last_used(scene):
    return [record.last_used for record in await scene.stored.all()]


async def test_last_use_is_written_in_one_batch_and_kept_until_it_can_be(scene):
    for secret in ("sk-1", "sk-2", "sk-3"):
        await scene.create(secret)
        scene.wall += 1
    began = scene.wall
    ring = scene.ring()
    await ring.refresh()
    ring.check(b"sk-1")
    scene.wall += 5
    ring.check(b"sk-1")
    ring.check(b"sk-2")
    scene.stored.lost = True
    with pytest.raises(DatabaseError):
        await ring.write_used()
    assert await last_used(scene) == [None, None, None]
    scene.wall += 1
    ring.check(b"sk-2")
    scene.stored.lost = False
    await ring.write_used()
    assert await last_used(scene) == [began + 5, began + 6, None]
    await scene.stored.note_used({scene.made[0]: began})  # another gateway, later in writing
    assert (await last_used(scene))[0] == began + 5


async def test_it_follows_the_database_by_itself_and_outlives_its_failure(scene, monkeypatch):
    monkeypatch.setattr(keyring, "POLL_SECONDS", 0.001)
    monkeypatch.setattr(keyring, "USED_SECONDS", 0.0)
    scene.stored.lost = True
    ring = scene.ring()
    following = asyncio.create_task(ring.run())
    async with asyncio.timeout(60):
        await scene.stored.failed.wait()
        await scene.create("sk-1")
        scene.stored.lost = False
        await scene.stored.read.wait()
        ring.check(b"sk-1")
        await scene.stored.noted.wait()
    assert await last_used(scene) == [scene.wall]
    assert not following.done()
    following.cancel()
    await asyncio.wait([following])
