"""What goes wrong with databases, in words for whoever operates them."""

from __future__ import annotations

import logging
import sqlite3
from enum import StrEnum
from functools import cache

from sqlalchemy import exc


class Trouble(StrEnum):
    FULL = "its disk is full"
    LOCKED = "it is locked by another process"
    CORRUPT = "its file is damaged, or no database"
    READ_ONLY = "it cannot be written"
    UNREADABLE = "its file cannot be opened, read or written"
    LOST = "it cannot be reached"
    REFUSED = "it refuses the connection"
    SLOW = "it did not answer in time"


CONNECTION = frozenset({Trouble.LOST, Trouble.REFUSED, Trouble.SLOW})
"""Troubles that every other statement would have as well, after a wait."""


class DatabaseError(Exception):
    """The database cannot be used now, and may be usable later. Nothing was written, unless it is ``SLOW`` or ``LOST``
    at a commit, of which nobody knows the end. The text is for the log: it may name paths and hosts."""

    def __init__(self, trouble: Trouble, detail: str, where: str = "the database") -> None:
        super().__init__(f"{where}: {trouble} ({detail})" if detail else f"{where}: {trouble}")
        self.trouble = trouble


class DatabaseRefused(Exception):
    """The database cannot be used until an operator has done something; the start is stopped with this text."""


_SQLITE = {
    "SQLITE_FULL": Trouble.FULL,
    "SQLITE_BUSY": Trouble.LOCKED,
    "SQLITE_LOCKED": Trouble.LOCKED,
    "SQLITE_PROTOCOL": Trouble.LOCKED,
    "SQLITE_CORRUPT": Trouble.CORRUPT,
    "SQLITE_NOTADB": Trouble.CORRUPT,
    "SQLITE_READONLY": Trouble.READ_ONLY,
    "SQLITE_CANTOPEN": Trouble.UNREADABLE,
    "SQLITE_IOERR": Trouble.UNREADABLE,
    "SQLITE_PERM": Trouble.UNREADABLE,
}

_POSTGRES = {
    "08": Trouble.LOST,
    "57P01": Trouble.LOST,  # an administrator ends the server
    "57P02": Trouble.LOST,  # another process of it crashed
    "57P03": Trouble.LOST,  # it starts up, or ends
    "57P05": Trouble.LOST,  # idle for too long
    "28": Trouble.REFUSED,
    "3D000": Trouble.REFUSED,  # no such database
    "42501": Trouble.REFUSED,  # no right to the table
    "53300": Trouble.REFUSED,  # too many connections
    "53": Trouble.FULL,
    "55P03": Trouble.LOCKED,
    "40P01": Trouble.LOCKED,  # deadlock
    "40001": Trouble.LOCKED,  # serialization
    "57014": Trouble.SLOW,
    "25P03": Trouble.SLOW,  # a transaction that did nothing for too long
    "58": Trouble.UNREADABLE,
    "XX001": Trouble.CORRUPT,
    "XX002": Trouble.CORRUPT,
    "25006": Trouble.READ_ONLY,
}
"""SQLSTATE, or the class that its first two characters name."""


def level_of(error: Exception, otherwise: int = logging.WARNING) -> int:
    """For a line in the log: that the database fails, and that it works again, it says itself, once for all."""
    return logging.DEBUG if isinstance(error, DatabaseError) else otherwise


@cache
def failures() -> tuple[type[Exception], ...]:
    """All that connecting and executing raise; ``trouble_of`` tells them apart."""
    try:
        import asyncpg  # an extra
    except ModuleNotFoundError:
        return (exc.SQLAlchemyError, sqlite3.Error, OSError)
    # Not wrapped by SQLAlchemy: what asyncpg raises while it connects, and SQLite's driver where it is asked directly.
    return (exc.SQLAlchemyError, sqlite3.Error, OSError, asyncpg.PostgresError, asyncpg.InterfaceError)


def trouble_of(error: BaseException) -> tuple[Trouble, str] | None:
    """What ``error`` says of the database's state; None if it says more of the statement, which is then our defect."""
    match error:
        case exc.IntegrityError():
            return None
        case exc.TimeoutError():  # of the pool
            return Trouble.SLOW, "every connection is in use"
        case exc.DBAPIError():
            found = _of_driver(error.orig)
            if found is None and error.connection_invalidated:
                return Trouble.LOST, _first_line(error.orig)
            return found
        case TimeoutError():
            return Trouble.SLOW, "it took longer than a transaction may"
        case _:
            return _of_driver(error)


def _of_driver(error: BaseException | None) -> tuple[Trouble, str] | None:
    seen = error
    while seen is not None:
        name = getattr(seen, "sqlite_errorname", "") or ""
        state = getattr(seen, "sqlstate", "") or ""
        found = _SQLITE.get("_".join(name.split("_")[:2])) or _POSTGRES.get(state) or _POSTGRES.get(state[:2])
        if isinstance(seen, OSError):
            found = Trouble.LOST
        if found is not None:
            return found, _first_line(seen)
        seen = seen.__cause__
    # asyncpg tells of a connection that broke under it, or was broken before, without any SQLSTATE.
    if type(error).__name__ in {"InterfaceError", "ConnectionDoesNotExistError", "InternalClientError"}:
        return (Trouble.LOST, _first_line(error)) if "connection" in str(error) else None
    if isinstance(error, sqlite3.ProgrammingError) and "closed" in str(error):
        return Trouble.LOST, _first_line(error)
    return None


def _first_line(error: BaseException | None) -> str:
    return (str(error) or type(error).__name__).partition("\n")[0]
