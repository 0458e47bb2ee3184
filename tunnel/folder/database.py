"""Where a study's asks are: SQLite in its folder, or a PostgreSQL server that a team shares (`storage`).

On a server the names of a folder's stages begin with an id, so that studies do not clash; database.json holds it. What
was measured stays in the folder all the same: a server that is lost costs what was asked, and no reading.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import optuna
from pydantic import BaseModel, ConfigDict
from sqlalchemy import NullPool, create_engine, make_url, text
from sqlalchemy.exc import SQLAlchemyError

from tunnel.errors import UserError
from tunnel.folder.files import discard, whole

SQLITE, SERVER = "optuna.db", "database.json"
LEFT = "optuna.db.left"  # what the asks were before they moved to a server
WAIT_SECONDS = 40  # of a writer, for another's lock on SQLite: the promise is that 30 are outlived  *assumed*
ANSWER_SECONDS = 10  # for a server's first word  *assumed*
# A server that is cut off is given up after a minute, not after TCP's two hours  *assumed*
ALIVE = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3, "tcp_user_timeout": 60_000}
TABLES = 0x74756E6E656C  # "tunnel": the lock under which one of several drivers makes a server's tables


class Server(BaseModel):
    """database.json: the server, and which of its studies are this folder's. It holds no password."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str
    password_env: str
    id: str
    inode: int  # of database.json itself: a copy of the folder has another, and must not ask under the same names


def server(folder: Path) -> Server | None:
    """The server that has the folder's asks; None where SQLite has them."""
    path = folder / SERVER
    if not path.exists():
        return None
    try:
        return Server.model_validate_json(path.read_bytes())
    except ValueError:
        raise UserError("cannot be read; without it, a sweep asks anew and uses the records again", file=path) from None


def exists(folder: Path) -> bool:
    """Whether anything was asked yet, as far as the folder knows."""
    asks = folder / SQLITE
    return (asks.exists() and asks.stat().st_size > 0) or (folder / SERVER).exists()


def name(folder: Path, stage: str) -> str:
    """A stage's study, as the database calls it."""
    return named(server(folder), stage)


def named(at: Server | None, stage: str) -> str:
    return stage if at is None else f"{at.id}/{stage}"


def storage(folder: Path, *, read_only: bool = False) -> optuna.storages.RDBStorage:
    """The database with the folder's asks, which SQLite lets be written to all the same.

    Raises UserError where no server answers. `read_only` is quicker: it does not compare versions of Optuna's tables.
    """
    return opened(folder, server(folder), read_only=read_only)


def opened(folder: Path, at: Server | None, *, read_only: bool = False) -> optuna.storages.RDBStorage:
    if at is not None:
        return on_server(at, read_only=read_only)
    waits = {"connect_args": {"timeout": WAIT_SECONDS}}
    ours = read_only and version(folder / SQLITE) == newest()
    url = f"sqlite:///{(folder / SQLITE).resolve()}"
    try:
        return optuna.storages.RDBStorage(
            url, engine_kwargs=waits, skip_table_creation=ours, skip_compatibility_check=ours
        )
    except RuntimeError as e:  # Optuna's, about tables of another version
        raise UserError(f"is of another Optuna: {e}", file=folder / SQLITE) from None


def version(path: Path) -> str | None:
    """Of which version a SQLite file's tables are; None where it cannot be told. Optuna's own look takes 0.05 s."""
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", WAIT_SECONDS, uri=True)) as db:
            found = db.execute("SELECT version_num FROM alembic_version").fetchall()
    except sqlite3.Error:
        return None
    return str(found[0][0]) if len(found) == 1 else None


@cache
def newest() -> str:
    """The version of this Optuna's tables."""
    return str(optuna.storages.RDBStorage("sqlite://").get_head_version())


def on_server(at: Server, *, read_only: bool) -> optuna.storages.RDBStorage:
    """One that only reads makes no tables, and leaves no connection open."""
    url = make_url(at.url).set(drivername="postgresql+psycopg").render_as_string()
    password = os.environ.get(at.password_env)  # without one, libpq looks where it always does: ~/.pgpass, peer
    options: dict[str, Any] = {"connect_timeout": ANSWER_SECONDS, "application_name": "tunnel", **ALIVE}
    options |= {} if password is None else {"password": password}
    driver = {"connect_args": options, "pool_pre_ping": True}
    reader = driver | {"poolclass": NullPool, "execution_options": {"postgresql_readonly": True}}
    try:
        if read_only:
            return optuna.storages.RDBStorage(
                url, engine_kwargs=reader, skip_table_creation=True, skip_compatibility_check=True
            )
        with create_engine(url, connect_args=options, poolclass=NullPool).begin() as other:
            other.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": TABLES})
            return optuna.storages.RDBStorage(url, engine_kwargs=driver)
    except ImportError:
        raise UserError("needs the driver of PostgreSQL: pip install '.[postgres]'", key="storage") from None
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as e:
        why = said(e)
        more = f"; the password is that of {at.password_env} in the environment" if "password" in why else ""
        raise UserError(f"the database does not answer: {why}{more}", key="storage", value=at.url) from None


def said(e: BaseException) -> str:
    """What the server, or the network before it, said: the innermost error's first line."""
    while e.__cause__ is not None:
        e = e.__cause__
    return (str(e).strip() or type(e).__name__).splitlines()[0]


def bind(folder: Path, url: str | None, password_env: str, stages: Iterable[str]) -> None:
    """Puts the folder's asks where its study file wants them; those that are elsewhere move. For the driver alone.

    A copy of a folder takes copies of its asks along, under an id of its own.
    """
    before = server(folder)
    if before is None and url is None:
        return
    if before is not None and url == before.url and before.inode == os.stat(folder / SERVER).st_ino:
        if password_env != before.password_env:
            write(folder, before.model_copy(update={"password_env": password_env}))
        return
    label = re.sub(r"[^A-Za-z0-9._-]", "_", folder.resolve().name)[:64]
    fresh = f"{label}-{secrets.token_hex(4)}"
    after = None if url is None else Server(url=url, password_env=password_env, id=fresh, inode=0)
    if exists(folder):
        move(opened(folder, before), before, opened(folder, after), after, stages)
    if after is None:
        discard(folder / SERVER)
    else:
        write(folder, after)
        if (folder / SQLITE).exists():
            os.replace(folder / SQLITE, folder / LEFT)


def move(
    there: optuna.storages.RDBStorage,
    before: Server | None,
    here: optuna.storages.RDBStorage,
    after: Server | None,
    stages: Iterable[str],
) -> None:
    """Copies the stages' asks from one database into another; what a move that was killed left there makes way."""
    known, taken = (set(optuna.get_all_study_names(s)) for s in (there, here))
    for stage in stages:
        old, new = named(before, stage), named(after, stage)
        if old not in known:
            continue
        if new in taken:
            optuna.delete_study(study_name=new, storage=here)
        optuna.copy_study(from_study_name=old, from_storage=there, to_storage=here, to_study_name=new)


def write(folder: Path, at: Server) -> None:
    with whole(folder / SERVER) as temporary:
        kept = at.model_copy(update={"inode": temporary.stat().st_ino})
        temporary.write_text(json.dumps(kept.model_dump(), indent=1) + "\n")
