"""What a disk or a database that fails says, in one line: the command stops, and the same command goes on."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from tunnel.errors import Stopped

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what a disk without room says
ROOM = "make room, and the same command goes on"
DATABASE = {  # SQLite's result codes: sqlite.org/rescode.html
    sqlite3.SQLITE_FULL: f"no space left on the disk (optuna.db); {ROOM}",
    sqlite3.SQLITE_IOERR: f"optuna.db cannot be written: no space left, or a disk that fails; {ROOM}",
    sqlite3.SQLITE_BUSY: "optuna.db is locked: another program has it open; close that, and the same command goes on",
    sqlite3.SQLITE_CORRUPT: "optuna.db is corrupt; `tunnel sweep` rebuilds it from the records",
    sqlite3.SQLITE_NOTADB: "optuna.db is no database any more; `tunnel sweep` rebuilds it from the records",
}
GONE = ("psycopg.OperationalError", "psycopg.InterfaceError")  # of a server; by name, since few have its driver


class Unreachable(OSError):
    """Storage behind a URL does not answer, however often it is asked."""


def no_space(e: OSError) -> str:
    return f"no space left on the disk ({e.filename or 'while writing'}); {ROOM}"


def said(error: BaseException) -> str | None:
    """What failed, in a line, where the disk or the database is behind an error; None where it is something else."""
    full = next((e for e in behind(error) if isinstance(e, OSError) and e.errno in FULL), None)
    lost = next((e for e in behind(error) if isinstance(e, Unreachable)), None)
    if lost is not None:
        return f"{lost}; the same command goes on"
    return no_space(full) if full else DATABASE.get(sqlite_code(error)) or server_gone(error)


def server_gone(error: BaseException) -> str | None:
    """What PostgreSQL, or the network before it, said; None where something else is behind an error."""
    for e in behind(error):
        if any(f"{c.__module__}.{c.__name__}" in GONE for c in type(e).__mro__):
            return f"the database does not answer ({str(e).strip().splitlines()[0]}); the same command goes on"
    return None


def sqlite_code(error: BaseException) -> int:
    """The primary result code of SQLite's error behind this one; 0 where there is none, or Python itself complains."""
    own = (e for e in behind(error) if isinstance(e, sqlite3.Error))
    return next((getattr(e, "sqlite_errorcode", 0) & 0xFF for e in own), 0)


def behind(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and what caused it."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


@contextmanager
def stops() -> Iterator[None]:
    """Raises Stopped where the disk or the database fails in the block."""
    try:
        yield
    except Exception as e:
        line = said(e)
        if line is None:
            raise
        raise Stopped(line) from None
