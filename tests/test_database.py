"""A team's asks on a real PostgreSQL server: shared, copied, moved, cut off; the folder stays the truth."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import optuna
import pytest
from conftest import TINY

from tunnel.errors import Stopped, UserError
from tunnel.folder import database, trouble
from tunnel.sampler import states
from tunnel.sweeps import sweep
from tunnel.sweeps.status import Live

BIN = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"), reverse=True)), shutil.which("pg_ctl"))
PASSWORD = "5f0c not a secret"
ENV = "TUNNEL_DB_PASSWORD"


@dataclass(frozen=True)
class Postgres:
    """A server on a socket in a folder of its own; it listens on no port."""

    folder: Path

    def as_user(self, tool: str, *args: object) -> None:
        """The server refuses to be root's."""
        user = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.getuid() == 0 else {}
        call = [str(Path(str(BIN)).parent / tool), *map(str, args)]
        done = subprocess.run(call, cwd="/", capture_output=True, text=True, check=False, timeout=120, **user)  # type: ignore[call-overload]
        assert done.returncode == 0, done.stderr + done.stdout

    def start(self) -> None:
        options = f"-c listen_addresses= -c unix_socket_directories={self.folder} -c fsync=off"
        log = self.folder / "log"
        self.as_user("pg_ctl", "-D", self.folder / "data", "-w", "-t", 100, "-l", log, "-o", options, "start")

    def stop(self) -> None:
        self.as_user("pg_ctl", "-D", self.folder / "data", "-w", "-t", 100, "-m", "immediate", "stop")

    def url(self, name: str) -> str:
        return f"postgresql://tunnel@/{name}?host={self.folder}"


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    if BIN is None:
        pytest.skip("there is no PostgreSQL server here: apt-get install postgresql")
    pytest.importorskip("psycopg", reason="there is no driver of PostgreSQL here: pip install '.[postgres]'")
    folder = Path(tempfile.mkdtemp(prefix="tunnel-pg-"))  # the way to pytest's own folders is closed to nobody
    made = Postgres(folder)
    (folder / "password").write_text(PASSWORD)
    if os.getuid() == 0:
        for path in (folder, folder / "password"):
            shutil.chown(path, "nobody", "nogroup")
    try:
        made.as_user(
            *("initdb", "-D", folder / "data", "--auth=scram-sha-256", f"--pwfile={folder / 'password'}"),
            *("--username=tunnel", "--no-sync", "--no-locale", "--encoding=UTF8"),
        )
        made.start()
        yield made
    finally:
        if (folder / "data/postmaster.pid").exists():
            made.stop()
        shutil.rmtree(folder)


numbers = count()


def emptied(server: Postgres, name: str) -> None:
    """Makes the database `name`, without tables, whether or not there was one."""
    import psycopg

    place = {"host": str(server.folder), "user": "tunnel", "password": PASSWORD}
    with psycopg.connect(dbname="postgres", autocommit=True, **place) as connection:  # type: ignore[arg-type]
        connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        connection.execute(f"CREATE DATABASE {name}")


@pytest.fixture
def url(server: Postgres, monkeypatch: pytest.MonkeyPatch) -> str:
    """A database of this test's own."""
    name = f"test{next(numbers)}"
    emptied(server, name)
    monkeypatch.setenv(ENV, PASSWORD)
    return server.url(name)


Write = Callable[..., Path]


@pytest.fixture
def study(tmp_path: Path) -> Write:
    def write(url: str | None = None, trials: int = 2) -> Path:
        path = tmp_path / "tiny.toml"
        storage = "" if url is None else f'storage = "{url}"\n'
        text = TINY.replace("trials = 4", f"trials = {trials}").replace("fan = [0.5, 1, 2]", "widen = 0")
        path.write_text(storage + text)
        return path

    return write


def swept(path: Path, out: Path) -> dict[str, Any]:
    return sweep.sweep(*sweep.opened(path, out))


def asked(folder: Path) -> dict[str, list[dict[str, Any]]]:
    return {stage: states(folder, stage) for stage in ("calibrate", "ladder")}


def records(folder: Path) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in folder.glob("records/*.json")}


def driver(path: Path, out: Path) -> int:
    """A sweep in a process of its own; its pid."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            swept(path, out)
            code = 0
        finally:
            os._exit(code)
    return child


def test_three_drivers_share_a_database_and_one_is_killed(url: str, study: Write, tmp_path: Path) -> None:
    """They begin at once, in a database without tables, with the same study in folders of one name."""
    path, outs = study(url, trials=12), [tmp_path / team / "tiny" for team in "abc"]
    children = [driver(path, out) for out in outs]
    while len(records(outs[1])) < 5:
        assert os.waitpid(children[1], os.WNOHANG) == (0, 0), "it ended before it was killed"
        time.sleep(0.001)
    os.kill(children[1], signal.SIGKILL)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, -signal.SIGKILL, 0]
    before = records(outs[1])
    assert swept(path, outs[1])["trials"]["complete"] == 12 + 2
    assert before.items() <= records(outs[1]).items(), "what was measured is not measured again"
    for out in outs:
        found = sweep.status(*sweep.frozen(out))
        assert found["state"] == "complete"
        assert found["trials"] == {"planned": 14, "complete": 14, "pruned": 0, "diverged": 0, "failed": 0, "running": 0}
        assert not (out / "optuna.db").exists()
        for trials in asked(out).values():
            done = [(*sorted(t["params"].items()), t["seed"]) for t in trials if t["state"] == "complete"]
            assert len(done) == len(set(done))
            assert {f"{fp}.json" for t in trials for fp in t["runs"]} <= records(out).keys()
    names = optuna.get_all_study_names(database.storage(outs[0]))
    assert len(set(names)) == 6, "a stage each, and none shared"


def test_a_reader_cannot_write(url: str, study: Write, tmp_path: Path) -> None:
    swept(study(url), tmp_path / "out")
    reader = database.storage(tmp_path / "out", read_only=True)
    assert len(optuna.get_all_study_names(reader)) == 2
    with pytest.raises(optuna.exceptions.StorageInternalError) as refused:
        optuna.create_study(study_name="new", storage=reader)
    assert "read-only" in str(refused.value.__cause__)


@pytest.mark.parametrize("password", [None, "wrong"])
def test_who_has_not_the_password_is_told_so_in_a_line(
    url: str, study: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, password: str | None
) -> None:
    swept(study(url), tmp_path / "out")
    monkeypatch.setenv(ENV, password) if password else monkeypatch.delenv(ENV)
    for read in (lambda: states(tmp_path / "out", "ladder"), lambda: swept(study(url), tmp_path / "other")):
        with pytest.raises(UserError, match=ENV) as refused:
            read()
        assert "password" in str(refused.value)
        assert "wrong" not in str(refused.value)


@pytest.mark.slow
def test_a_copied_folder_asks_for_itself(url: str, study: Write, tmp_path: Path) -> None:
    """As a copied SQLite file would: both go on from the same asks, and neither sees what the other asks then."""
    swept(study(url), tmp_path / "out")
    before = asked(tmp_path / "out")
    shutil.copytree(tmp_path / "out", tmp_path / "copy")
    assert swept(study(url, trials=3), tmp_path / "copy")["trials"]["complete"] == 3 + 2
    assert asked(tmp_path / "out") == before
    (tmp_path / "out").rename(tmp_path / "moved")
    swept(study(url), tmp_path / "moved")
    assert asked(tmp_path / "moved") == before
    assert len(optuna.get_all_study_names(database.storage(tmp_path / "moved"))) == 4, "one that only moved has not"


@pytest.mark.slow
def test_asks_move_to_the_server_and_back(url: str, study: Write, tmp_path: Path) -> None:
    from dashboard import load  # only here: it imports streamlit

    swept(study(), tmp_path / "out")
    before, kept = asked(tmp_path / "out"), records(tmp_path / "out")
    for at, trials in ((url, 2), (None, 2), (url, 3)):
        found = swept(study(at, trials), tmp_path / "out")
        assert found["trials"]["complete"] == trials + 2
        assert (tmp_path / "out/optuna.db").exists() == (at is None)
        assert (tmp_path / "out/database.json").exists() == (at is not None)
        after = asked(tmp_path / "out")
        assert set(load.states(tmp_path / "out", "ladder").values()) == {"complete"}, "the dashboard sees them too"
        assert (after["calibrate"][:2], after["ladder"]) == (before["calibrate"], before["ladder"])
    assert kept.items() <= records(tmp_path / "out").items()


@pytest.mark.slow
def test_a_server_that_goes_stops_the_sweep_which_goes_on_when_it_is_back(
    server: Postgres, url: str, study: Write, tmp_path: Path
) -> None:
    path = study(url, trials=12)
    given, keep = sweep.opened(path, tmp_path / "out")

    def cut_off(live: Live) -> None:
        if live.finished == 5 and (server.folder / "data/postmaster.pid").exists():
            server.stop()

    with pytest.raises(Stopped, match="the database does not answer"), trouble.stops():  # as the command line does
        sweep.sweep(given, keep, watch=cut_off)
    try:
        with pytest.raises(UserError, match="does not answer"):
            swept(path, tmp_path / "out")
    finally:
        server.start()
    assert swept(path, tmp_path / "out")["trials"]["complete"] == 12 + 2


@pytest.mark.slow
def test_a_database_that_is_lost_costs_no_reading(server: Postgres, url: str, study: Write, tmp_path: Path) -> None:
    path = study(url, trials=6)
    swept(path, tmp_path / "out")
    before = records(tmp_path / "out")
    emptied(server, url.split("/")[3].split("?")[0])
    with pytest.raises(UserError, match="does not exist"):
        asked(tmp_path / "out")
    assert swept(path, tmp_path / "out")["trials"]["complete"] == 6 + 2
    assert records(tmp_path / "out") == before
