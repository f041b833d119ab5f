"""Whether the address of the data socket can be right at all, told at start rather than by requests that fail."""

from __future__ import annotations

import logging
import socket

from stage_server.command_line import InvalidSettings
from stage_server.settings import Settings
from wire.dial import resolve
from wire.security import is_loopback

log = logging.getLogger(__name__)


def check_data_address(settings: Settings) -> None:
    """Raise ``InvalidSettings`` for a loopback address that a gateway, on another machine, could not reach.

    With a relay it need not: others come through that.
    """
    endpoint = settings.data_advertise or settings.data_bind
    if not is_loopback(endpoint) or settings.relay:
        return
    for gateway in settings.gateway:
        _check_reached(settings, endpoint, gateway)


def _check_reached(settings: Settings, endpoint: str, gateway: str) -> None:
    try:
        found = resolve(gateway)
    except OSError as error:
        log.warning("--gateway %s: %s; whether it reaches %s cannot be told", gateway, error, endpoint)
        return
    if not any(_is_own(family, address[0]) for family, _, _, _, address in found):
        flag = "--data-advertise" if settings.data_advertise else "--data-bind"
        raise InvalidSettings(
            f"{flag} {endpoint} is reached from this machine only, and the gateway {gateway} is on another: "
            "set --data-bind tcp://HOST:* to an address of this machine that others reach (with --data-advertise "
            "tcp://HOST:* where they call it by another name), or --relay tcp://HOST:PORT where none can be reached"
        )


def _is_own(family: int, address: str) -> bool:
    """Only a machine's own addresses can be bound."""
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as trial:
            trial.bind((address, 0))
    except OSError:
        return False
    return True
