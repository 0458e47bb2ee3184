"""Disks without room: what was saved stays, and the same command goes on."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from killing import assert_intact, assert_tidy, results, tunnel

from tunnel.errors import UserError
from tunnel.export._write import write
from tunnel.folder.store import Store
from tunnel.sweeps import sweep

# 5: full disks


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def fill(disk: Path, left: int) -> None:
    """Leaves so many bytes of room."""
    ballast = disk / "ballast"
    ballast.unlink(missing_ok=True)
    at = os.statvfs(disk)
    with open(ballast, "wb") as f:
        os.posix_fallocate(f.fileno(), 0, at.f_bavail * at.f_frsize - left)


@pytest.mark.slow
@pytest.mark.fault(5)
def test_a_disk_that_is_full_wherever_it_is(study_file: Callable[..., Path], tmp_path: Path, disk: Path) -> None:
    """Ever a little more room: another write finds none, each time, and nothing is lost."""
    study, out, log, lines = study_file(), disk / "out", tmp_path / "log", []
    whole = sweep.sweep(*sweep.opened(study, tmp_path / "whole"))
    fill(disk, 256 * 1024)  # the database's tables, and a little more
    for room in (0, 4, 8, 12, 16, 24, 32, 48):
        stopped = tunnel("sweep", study, "--out", out, log=log)
        assert stopped.code == 75, stopped
        assert "no space" in stopped.line, stopped
        lines.append(stopped.line)
        assert_intact(out)
        results(out)  # all whole
        fill(disk, room * 1024)
    assert any("optuna.db" in line for line in lines), lines
    assert any("optuna.db" not in line for line in lines), lines
    (disk / "ballast").unlink()
    again = tunnel("sweep", study, "--out", out, "--json", log=log)
    assert again.code == 0, again
    assert json.loads(again.said)["trials"] == whole["trials"]
    assert results(out) == results(tmp_path / "whole")
    assert_tidy(out)


@pytest.mark.fault(5)
def test_a_full_disk_at_a_checkpoint_and_an_export(disk: Path) -> None:
    keep, arrays = Store(disk), {"w": np.zeros(100_000)}
    keep.save_state("t", 128, {"w": np.ones(9)}, {"tokens": 128})
    bundle = {"config.yaml": "a: 1\n" * 50_000, "model.txt": "b" * 400_000}
    write({"config.yaml": "a: 0\n"}, disk / "bundle", {}, force=False)
    fill(disk, 300 * 1024)
    with pytest.raises(OSError, match="space"):
        keep.save_state("t", 256, arrays, {"tokens": 256})
    with pytest.raises(UserError, match="space"):
        write(bundle, disk / "bundle", {}, force=True)
    assert (disk / "bundle/config.yaml").read_text() == "a: 0\n"
    assert sorted(p.name for p in disk.iterdir()) == ["ballast", "bundle", "trunks"]
    state = keep.load_state("t", 999)
    assert state is not None
    assert state[1]["tokens"] == 128
    (disk / "ballast").unlink()
    keep.save_state("t", 256, arrays, {"tokens": 256})
    write(bundle, disk / "bundle", {}, force=True)
    assert keep.peek("t", 256) is not None
    assert (disk / "bundle/model.txt").stat().st_size == 400_000


@pytest.mark.slow
@pytest.mark.fault(5)
def test_a_database_that_may_not_grow(study_file: Callable[..., Path], tmp_path: Path) -> None:
    study, out, log = study_file(("trials = 4", "trials = 40")), tmp_path / "out", tmp_path / "log"

    def small_files() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (120_000, 120_000))  # its tables fit, and some trials

    stopped = tunnel("sweep", study, "--out", out, log=log, before=small_files)
    assert (stopped.code, "no space" in stopped.line, "optuna.db" in stopped.line) == (75, True, True), stopped
    assert_intact(out)
    assert json.loads(tunnel("sweep", study, "--out", out, "--json", log=log).said)["state"] == "complete"
