"""Opens what a process serves its outputs by and fetches its inputs with, as the settings say."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from stage_server.command_line import InvalidSettings
from stage_server.data.consumer import Allocate
from stage_server.data.holder import Holder
from stage_server.data.loop_thread import LoopThread
from stage_server.data.paths import PathConsumer, Pathfinder
from stage_server.data.relayed import Relayed, TurnedAway
from stage_server.settings import Settings
from wire.doors import Doors
from wire.to_stage import TryPeer
from wire.transfer import Lookup

_WILDCARDS = ("tcp://*:", "tcp://0.0.0.0:", "tcp://[::]:")


class DataSockets:
    """Open from construction until ``close``."""

    def __init__(self, settings: Settings, lookup: Lookup, allocate: Allocate, identities: Sequence[str]) -> None:
        """``identities``: name/incarnation of each server in this process.

        Raises ``InvalidSettings`` or ``BindError``.
        """
        keys, (identity, *aliases) = settings.curve_keys(), identities
        with ExitStack() as opened:
            holder = Holder(
                settings.data_bind,
                lookup,
                keys=keys,
                allow_plaintext=settings.insecure,
                identity=identity,
                aliases=aliases,
            )
            opened.callback(holder.close)
            self.look_again = holder.look_again
            """To be called when there is something more for ``lookup`` to find that somebody may wait for."""
            self.endpoint = _advertised(settings, holder.endpoint)
            loop = LoopThread("relayed")
            opened.callback(loop.close)
            relays = []
            for relay in settings.relay:
                try:
                    key = settings.relay_key.get_secret_value()
                    relayed = Relayed(relay, _from_here(holder.endpoint), loop, key=key)
                except TurnedAway as error:
                    raise InvalidSettings(f"--relay: {error}") from error
                opened.callback(relayed.close)
                relays.append(relayed.endpoint)
            self.relays = tuple(relays)
            """Further addresses of this process, behind relays."""
            self._pathfinder = Pathfinder(keys, Doors(loop.loop))
            self.consumer = PathConsumer(self._pathfinder, keys=keys, local=lookup, allocate=allocate)
            opened.callback(self.consumer.close)
            self._opened = opened.pop_all()

    def find(self, peer: TryPeer) -> str:
        """What is in the way to a peer's data socket; empty if nothing is."""
        return self._pathfinder.find(peer)

    def close(self) -> None:
        self._opened.close()


def _advertised(settings: Settings, bound: str) -> str:
    if settings.data_advertise:
        host, _, port = settings.data_advertise.rpartition(":")
        return settings.data_advertise if port not in ("*", "0") else f"{host}:{bound.rpartition(':')[2]}"
    if bound.startswith(_WILDCARDS) and settings.relay:
        return _from_here(bound)  # on this machine it works, and whoever is elsewhere comes through the relay
    if bound.startswith(_WILDCARDS):
        raise InvalidSettings(
            f"--data-bind {settings.data_bind} is every address of this machine: name the one that others reach with "
            "--data-advertise tcp://HOST:*, or a --relay tcp://HOST:PORT where they reach none"
        )
    return bound


def _from_here(bound: str) -> str:
    """How this process itself connects there."""
    for wildcard in _WILDCARDS:
        if bound.startswith(wildcard):
            return bound.replace(wildcard, "tcp://[::1]:" if "[" in wildcard else "tcp://127.0.0.1:")
    return bound
