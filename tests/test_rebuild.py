"""A database that is locked, corrupt, gone or old, and records that are missing."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import TINY
from killing import SEARCH, assert_intact, assert_once, best, forked, records, results, sampled, tunnel

from tunnel.errors import Stopped
from tunnel.folder import database
from tunnel.sampler import states
from tunnel.sweeps import sweep

LEARNED = (
    *SEARCH,
    sampled("cmaes"),
    ("trials = 24", "trials = 6\n  seeds = [0, 1]"),
    ("lr = {", "warmup = { low = 0.01, high = 0.2 }\n  weight_decay = { low = 0.01, high = 0.5 }\n  lr = {"),
    ("lr = {", "batch_tokens = { low = 256, high = 2048, log = false, step = 256 }\n  lr = {"),
)


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Swept by two drivers, so that its sampler, asked anew, would ask otherwise; old.db is what the first one left."""
    text = TINY
    for old, new in LEARNED:
        assert old in text
        text = text.replace(old, new, 1)
    path = tmp_path_factory.mktemp("learned") / "tiny.toml"
    path.write_text(text.replace("trials = 6", "trials = 3"))
    sweep.sweep(*sweep.opened(path, path.parent / "out"))
    shutil.copy(path.parent / "out/optuna.db", path.parent / "out/old.db")
    path.write_text(text)
    sweep.sweep(*sweep.opened(path, path.parent / "out"))
    return path.parent / "out"


# 10: a database that somebody else holds

HOLD = """
import sqlite3, sys, time
held = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30)
held.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
time.sleep(float(sys.argv[2]))
held.execute("ROLLBACK")
"""


def added(learned: Path, folder: Path) -> Path:
    """A copy of a swept study, and its file that asks for one more candidate, at two seeds."""
    shutil.copytree(learned, folder / "out")
    path = folder / "tiny.toml"
    path.write_text((folder / "out/study.toml").read_text().replace("trials = 6", "trials = 7"))
    return path


@contextmanager
def holding(path: Path, seconds: float) -> Iterator[None]:
    call = [sys.executable, "-c", HOLD, str(path), str(seconds)]
    other = subprocess.Popen(call, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        yield
    finally:
        other.kill()
        other.wait()


@pytest.mark.fault(10)
@pytest.mark.parametrize("seconds", [1.5, pytest.param(30.0, marks=pytest.mark.slow)])
def test_a_locked_database_is_waited_for(learned: Path, tmp_path: Path, seconds: float) -> None:
    study, out, log = added(learned, tmp_path), tmp_path / "out", tmp_path / "log"
    began = time.monotonic()
    with holding(out / "optuna.db", seconds):
        found = tunnel("sweep", study, "--out", out, "--json", log=log)
    assert time.monotonic() - began > seconds
    assert found.code == 0, found
    assert json.loads(found.said)["trials"]["complete"] == (n := json.loads(found.said)["trials"]["planned"])
    assert n > 7 * 2
    assert_once(out)


@pytest.mark.fault(10)
def test_past_the_limit_it_is_said(learned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "WAIT_SECONDS", 1)
    study, out, log = added(learned, tmp_path), tmp_path / "out", tmp_path / "log"
    began = time.monotonic()
    with locked_after(out, 1):
        stopped = tunnel("sweep", study, "--out", out, log=log)
    assert time.monotonic() - began < 50
    assert (stopped.code, "locked" in stopped.line) == (75, True), stopped
    assert_intact(out)
    assert tunnel("sweep", study, "--out", out, log=log).code == 0
    assert sum(t["state"] == "complete" for t in states(out, "calibrate")) == 7 * 2


@contextmanager
def locked_after(out: Path, more: int) -> Iterator[None]:
    """Somebody takes the database in the middle of a sweep, when there are so many new records."""
    enough, other = records(out) + more, os.fork()
    if other == 0:
        try:
            while records(out) < enough:
                time.sleep(0.005)
            held = sqlite3.connect(out / "optuna.db", isolation_level=None, timeout=30)
            held.execute("BEGIN EXCLUSIVE")
            time.sleep(60)
        finally:
            os._exit(0)
    try:
        yield
    finally:
        os.kill(other, signal.SIGKILL)
        os.waitpid(other, 0)


# a database that is corrupt, gone or old, and records that are missing


def damage(db: Path, how: str) -> None:
    raw = db.read_bytes()
    if how == "text":
        db.write_bytes(b"no database\n" * 999)
    elif how == "cut":
        db.write_bytes(raw[: len(raw) // 2 + 77])
    elif how == "zeros":
        db.write_bytes(raw[:8192] + bytes(8192) + raw[16384:])
    elif how == "values":  # a structure that is whole, around what is not
        with sqlite3.connect(db) as broken:
            broken.execute("UPDATE trial_user_attributes SET value_json = substr(value_json, 1, 3) WHERE key = 'runs'")
    elif how == "empty":
        db.write_bytes(b"")
    elif how == "old":
        shutil.copy(db.parent / "old.db", db)
    else:
        db.unlink()


SLOW = [pytest.param(how, marks=pytest.mark.slow) for how in ("cut", "zeros", "values", "empty", "old", "gone")]


@pytest.mark.parametrize("how", ["text", *SLOW])
def test_a_database_is_rebuilt_from_the_records(
    learned: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    """Exactly what was planned, and nothing is trained again."""
    asked, keep = sweep.frozen(Path(shutil.copytree(learned, tmp_path / "out")))
    before, measured, written = sweep.status(asked, keep), results(keep.root), stamps(keep.root)
    damage(keep.path("optuna.db"), how)
    found = sweep.sweep(asked, keep)
    assert found["trials"] == before["trials"]
    assert results(keep.root) == measured
    assert stamps(keep.root) == written
    assert best(keep.root, "ladder") == best(learned, "ladder")
    assert_once(keep.root)
    corrupt = how in ("text", "cut", "zeros", "values")
    assert [p.name for p in keep.root.glob("optuna.db.*")] == ["optuna.db.corrupt-1"] * corrupt
    assert sum("is corrupt" in r.getMessage() for r in caplog.records) == corrupt


def stamps(folder: Path) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in folder.glob("records/*")}


def test_a_corrupt_database_is_one_line_for_who_only_looks(learned: Path, tmp_path: Path) -> None:
    shutil.copytree(learned, tmp_path / "out")
    damage(tmp_path / "out/optuna.db", "text")
    looked = tunnel("status", tmp_path / "out", log=tmp_path / "log")
    assert (looked.code, "`tunnel sweep` rebuilds it" in looked.line) == (75, True), looked
    assert not list((tmp_path / "out").glob("optuna.db.*")), "it is the driver's to move"


def test_records_that_are_gone_with_the_database_are_trained_again(learned: Path, tmp_path: Path) -> None:
    """Of a search that learned: three of its candidates' records, and the database."""
    asked, keep = sweep.frozen(Path(shutil.copytree(learned, tmp_path / "out")))
    measured = results(keep.root)
    gone = [r.fingerprint_of for r in keep.records() if r.stage == "ladder"][:3]
    for name in gone:
        keep.path("records", f"{name}.json").unlink()
    keep.path("optuna.db").unlink()
    found = sweep.sweep(asked, keep)
    assert found["trials"]["complete"] == found["trials"]["planned"]
    assert results(keep.root) == measured


@pytest.mark.slow
def test_a_rebuilding_driver_that_is_killed(learned: Path, tmp_path: Path) -> None:
    out, rng, log = Path(shutil.copytree(learned, tmp_path / "out")), random.Random(2), tmp_path / "log"
    asked, keep = sweep.frozen(out)
    before, measured = sweep.status(asked, keep), results(out)
    damage(out / "optuna.db", "cut")
    for _ in range(6):
        driver = forked("sweep", out, log=log)
        time.sleep(rng.uniform(0.1, 1.0))
        os.kill(driver, signal.SIGKILL)
        os.waitpid(driver, 0)
    assert sweep.sweep(asked, keep)["trials"] == before["trials"]
    assert results(out) == measured
    assert_once(out)


def test_a_stop_in_the_library_is_an_exception_that_says_the_same(
    learned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "WAIT_SECONDS", 0.2)
    asked, keep = sweep.frozen(Path(shutil.copytree(learned, tmp_path / "out")))
    with holding(keep.path("optuna.db"), 30), pytest.raises(Stopped, match="locked"):
        sweep.sweep(asked, keep)
