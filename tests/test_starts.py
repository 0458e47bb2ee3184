"""What stands in the way of a start is said in one line, and who only looks writes nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import TINY

from tunnel.errors import UserError
from tunnel.folder import environment
from tunnel.folder.store import Store
from tunnel.sweeps import sweep

NO_FILE: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a folder": Path.mkdir,
    "a device": lambda path: path.symlink_to("/dev/null"),
}


@pytest.mark.parametrize("what", NO_FILE)
def test_what_is_no_file_is_no_lock(tmp_path: Path, what: str) -> None:
    NO_FILE[what](tmp_path / "driver.lock")
    for start in (Store(tmp_path).driver().__enter__, Store(tmp_path).take_over):
        with pytest.raises(UserError, match=r"driver\.lock: is no file, so it cannot be locked"):
            start()


RAYLET = "from ray._private import services; services.RAYLET_EXECUTABLE = '/bin/false'"
FAILS = [
    pytest.param("", {"RAY_TMPDIR": "{long}"}, "OSError: validate_socket_filename failed", id="a path too long"),
    pytest.param(RAYLET, {}, "Exception: The current node timed out", id="no raylet", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("before", "env", "says"), FAILS)
def test_where_ray_does_not_start_it_is_said(tmp_path: Path, before: str, env: dict[str, str], says: str) -> None:
    """In one line that can be resumed; no process of Ray's is left, nor its handler of SIGTERM."""
    code = f"""{before}
import signal
from tunnel.errors import Stopped
from tunnel.sweeps import cluster
own = signal.getsignal(signal.SIGTERM)
try:
    cluster.joined(None)
except Stopped as e:
    print(e)
assert signal.getsignal(signal.SIGTERM) == own
"""
    long = tmp_path / ("x" * 100)
    long.mkdir()
    env = {**os.environ, **{k: v.format(long=long) for k, v in env.items()}}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"Ray did not start here ({says}")
    assert done.stdout.endswith("); the same command tries it again\n")
    assert done.stdout.count("\n") == 1


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("starts")
    (folder / "tiny.toml").write_text(TINY)
    asked, keep = sweep.opened(folder / "tiny.toml", folder / "out")
    sweep.sweep(asked, keep)
    return keep.root


def test_who_looks_at_an_empty_database_leaves_it_empty(swept: Path, tmp_path: Path) -> None:
    asked, keep = sweep.frozen(Path(shutil.copytree(swept, tmp_path / "out")))
    before = sweep.status(asked, keep)
    keep.path("optuna.db").write_bytes(b"")
    found = sweep.status(asked, keep)
    assert keep.path("optuna.db").stat().st_size == 0
    assert (found["trials"]["complete"], found["readings"]) == (0, before["readings"])
    assert sweep.sweep(asked, keep)["trials"] == before["trials"], "asked anew, measured no more"


@pytest.mark.parametrize("kept", [True, False])  # of 0.3 and before there are the records' versions alone
def test_other_versions_are_seen(
    swept: Path, tmp_path: Path, kept: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = Store(shutil.copytree(swept, tmp_path / "out"))
    if not kept:
        shutil.rmtree(keep.path(environment.FOLDER))
    sweep.began(keep)
    assert ("goes on under other versions" in caplog.text) == (not kept)  # then the tunnel's own is not known
    assert "numpy" not in caplog.text
    other = {**environment.versions(), "numpy": "99"}
    monkeypatch.setattr(environment, "versions", lambda: other)
    sweep.began(keep)
    assert "→ 99" in caplog.text
