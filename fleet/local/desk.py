"""Where other shells of the same user ask a running fleet for something: one line of JSON there, one back.

It listens on loopback and wants a token, which lies in a file that only its user can read.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from fleet.launcher import LaunchFailed

LONGEST = 1 << 20
"""Bytes of a line."""


class NotUp(Exception):
    """No such fleet runs on this machine; the text is for the operator."""


class UpAlready(Exception):
    """The text is for the operator."""


class Orders(Protocol):
    async def status(self) -> Mapping[str, object]: ...

    async def scale(self, pool: str, servers: int) -> None: ...

    async def end(self) -> None:
        """Drain everything; return when it is over."""


@contextmanager
def sole(folder: Path) -> Iterator[None]:
    """Hold the fleet's folder. Raises ``UpAlready`` where another process does."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UpAlready(f"the fleet in {folder} is up already: 'status' shows it, 'down' ends it") from None
        yield


async def keep_desk(folder: Path, orders: Orders) -> None:
    """Until cancelled; who still waits for an answer then finds the connection closed."""
    token = secrets.token_hex(16)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            asked = json.loads(await reader.readline())
            answer = await _answer(asked, token, orders)
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
        except (ValueError, OSError):  # not one of ours, or gone before it was answered
            pass
        finally:
            writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0, limit=LONGEST)
    address = folder / "desk.json"
    fresh = folder / "desk.json.new"
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump({"port": listener.sockets[0].getsockname()[1], "token": token}, file)
    fresh.replace(address)
    try:
        async with listener:
            await asyncio.Event().wait()
    finally:
        address.unlink(missing_ok=True)


async def ask(folder: Path, order: str, **arguments: Any) -> Any:
    """The answer. Raises ``NotUp``, or ``LaunchFailed`` with what the fleet has against it."""
    try:
        address = json.loads((folder / "desk.json").read_text())
        reader, writer = await asyncio.open_connection("127.0.0.1", address["port"], limit=LONGEST)
    except (OSError, ValueError):
        raise NotUp(f"no fleet of this name is up on this machine ({folder}): 'up' starts it") from None
    asked = {"token": address["token"], "order": order, **arguments}
    writer.write(json.dumps(asked).encode() + b"\n")
    line = b""
    with suppress(OSError):
        line = await reader.readline()
    writer.close()
    if not line and order != "down":
        raise NotUp("the fleet ended before it answered")
    answer = json.loads(line or '{"done": null}')
    if "refused" in answer:
        raise LaunchFailed(answer["refused"])
    return answer["done"]


async def _answer(asked: Any, token: str, orders: Orders) -> Mapping[str, object]:
    if not isinstance(asked, dict) or not secrets.compare_digest(str(asked.get("token")), token):
        return {"refused": "the token is another fleet's"}
    try:
        match asked:
            case {"order": "status"}:
                return {"done": await orders.status()}
            case {"order": "scale", "pool": str(pool), "servers": int(servers)}:
                await orders.scale(pool, servers)
                return {"done": None}
            case {"order": "down"}:
                await orders.end()
                return {"done": None}
    except LaunchFailed as error:
        return {"refused": str(error)}
    return {"refused": f"this fleet does not know the order {asked.get('order')!r}"}
