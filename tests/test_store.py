"""A study's folder: nothing half-written, nothing silently wrong, one driver."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import BATCH, run_spec, trunk_spec

from tunnel.errors import UserError
from tunnel.folder import lock, store
from tunnel.folder.store import Store
from tunnel.run import Record, RunSpec

ARRAYS = {"model.w": np.arange(6, dtype=np.float32).reshape(2, 3).T, "rng": np.array([1, 2], dtype=np.uint8)}


def record(
    run: RunSpec, loss: float | None = 2.0, started: str = "2026-01-01T00:00:00+00:00", **changed: Any
) -> Record:
    return Record(
        **{
            "fingerprint_of": run.fingerprint,
            "run": run,
            "stage": "ladder",
            "trial": 0,
            "status": "complete" if loss is not None else "diverged",
            "N": 100,
            "D": run.tokens,
            "C": 6.0 * 100 * run.tokens,
            "flops": 7.0 * 100 * run.tokens,
            "loss": loss,
            "bpb": None,
            "tokens_trained": run.tokens,
            "started": started,
            "seconds": 1.5,
            "host": "here",
            **changed,
        }
    )


# writing


def test_what_is_written_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    store.write_json(path, {"a": 1})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for step in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, step, full)
            with pytest.raises(OSError, match="No space"):
                store.write_json(path, {"a": 2})
        assert store.read_json(path) == {"a": 1}
        assert os.listdir(tmp_path) == ["a.json"]


def test_json_has_no_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Out of range"):
        store.write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert os.listdir(tmp_path) == []


def test_records_come_back_oldest_first(tmp_path: Path) -> None:
    trunk = trunk_spec(weight_decay=0.1)
    runs = [run_spec(trunk, 8 * i, 2) for i in (1, 2, 3)]
    written = [record(r, 2.0 - i / 10, f"2026-01-0{3 - i}T00:00:00+00:00") for i, r in enumerate(runs)]
    keep = Store(tmp_path)
    for r in written:
        keep.write_record(r)
    assert keep.records() == written[::-1]
    assert keep.record(runs[0].fingerprint) == written[0]
    assert keep.record("0" * 16) is None


@pytest.mark.parametrize("content", [b"", b'{"fingerprint_of": "ab', b"\xff\x00", b"[]", b"null"])
def test_a_record_that_was_cut_is_named_and_set_aside(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    keep, run = Store(tmp_path), run_spec(trunk_spec(), 8, 2)
    keep.write_record(record(run))
    path = tmp_path / "records" / f"{run.fingerprint}.json"
    path.write_bytes(content)
    for read in (keep.records, keep.readings, lambda: keep.record(run.fingerprint)):
        with pytest.raises(UserError, match=f"{path}: is not a record; `tunnel sweep` sets it aside"):
            read()
    with keep.driver():
        assert keep.records() == []
    assert path.with_suffix(".unreadable").read_bytes() == content
    assert len(caplog.records) == 1
    keep.write_record(record(run))
    assert keep.record(run.fingerprint) == record(run)


def test_a_record_of_another_version_or_run_stays_and_is_refused(tmp_path: Path) -> None:
    keep, run = Store(tmp_path), run_spec(trunk_spec(), 8, 2)
    keep.write_record(record(run))
    path = tmp_path / "records" / f"{run.fingerprint}.json"
    text = path.read_text()
    for changed, rule in (
        (text.replace('"host"', '"machine"'), "of this version"),
        (text.replace(run.fingerprint, "0" * 16), "another run's"),
    ):
        path.write_text(changed)
        with keep.driver(), pytest.raises(UserError, match=rule):
            keep.records()
        assert path.read_text() == changed


def test_readings_are_the_records_as_a_table(tmp_path: Path) -> None:
    trunk = trunk_spec(shape=(48, 3), seed=4)
    keep = Store(tmp_path)
    assert list(keep.readings().columns) == [*store.READING, "shared"]
    runs = run_spec(trunk, 8, 2), run_spec(trunk, 16, 4)
    keep.write_record(record(runs[0]))
    keep.write_record(record(runs[1], None, diverged_at=5 * BATCH))
    table = keep.write_readings()
    assert len(table) == 2  # a diverged run is no gap
    row = table.set_index("fingerprint").loc[runs[0].fingerprint]
    expected = {
        "N": 100,
        "D": 10 * BATCH,
        "loss": 2.0,
        "run": trunk.fingerprint,
        "width": 48,
        "depth": 3,
        "N_embed": 100 + 256 * 48,
        "warmup": 4 * BATCH,
        "decay": pytest.approx(0.2),
        "seed": 4,
        "seq_len": 32,
        "rules": "minicpm",
    }
    assert {k: row[k] for k in expected} == expected
    import pandas as pd

    assert list(pd.read_parquet(tmp_path / "readings.parquet").columns) == [*store.READING, "shared"]


# the chain


def chained(path: Path) -> list[dict[str, Any]]:
    return [store.append(path, {"forecast": f}) for f in (1.5, 1.6, 1.7)]


def test_a_chain_gives_back_what_was_appended(tmp_path: Path) -> None:
    path = tmp_path / "forecasts.jsonl"
    assert store.chain(path) == []
    entries = chained(path)
    assert store.chain(path) == entries
    assert [e["forecast"] for e in entries] == [1.5, 1.6, 1.7]


@pytest.mark.parametrize(
    "damage",
    [
        lambda lines: [lines[0].replace("1.5", "1.4"), *lines[1:]],
        lambda lines: lines[1:],
        lambda lines: [lines[0], lines[2]],
        lambda lines: [lines[1], lines[0], lines[2]],
        lambda lines: [lines[0], lines[0], *lines[1:]],
    ],
    ids=["edited", "first gone", "middle gone", "swapped", "repeated"],
)
def test_a_changed_chain_is_found(tmp_path: Path, damage: Callable[[list[str]], list[str]]) -> None:
    path = tmp_path / "forecasts.jsonl"
    chained(path)
    path.write_text("\n".join(damage(path.read_text().splitlines())) + "\n")
    with pytest.raises(UserError, match=r"forecasts\.jsonl: line \d: the hash chain is broken"):
        store.chain(path)


# checkpoints


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    keep = Store(tmp_path)
    keep.save_state("t", 256, ARRAYS, {"tokens": 256})
    arrays, meta = keep.load_state("t", 256) or ({}, {})
    assert meta == {"tokens": 256}
    assert all(np.array_equal(arrays[k], v) and arrays[k].dtype == v.dtype for k, v in ARRAYS.items())
    assert keep.load_state("t", 255) is None
    assert keep.load_state("other", 256) is None


@pytest.mark.parametrize(("up_to", "found"), [(127, None), (128, 128), (300, 256), (9999, 1024)])
def test_the_last_state_before(tmp_path: Path, up_to: int, found: int | None) -> None:
    keep = Store(tmp_path)
    for tokens in (128, 256, 1024):
        keep.save_state("t", tokens, ARRAYS, {"tokens": tokens})
    state = keep.load_state("t", up_to)
    assert (state and state[1]["tokens"]) == found


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def flipped(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 4
    path.write_bytes(raw)


@pytest.mark.parametrize("file", ["state.safetensors", "meta.json", "manifest.json"])
@pytest.mark.parametrize("damage", [truncated, flipped, Path.unlink, lambda p: p.write_bytes(b"")])
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, file: str, damage: Callable[[Path], Any]) -> None:
    keep = Store(tmp_path)
    for tokens in (128, 256):
        keep.save_state("t", tokens, ARRAYS, {"tokens": tokens})
    damage(keep.checkpoint("t", 256) / file)
    state = keep.load_state("t", 256)
    assert state is not None
    assert state[1] == {"tokens": 128}
    keep.save_state("t", 256, ARRAYS, {"tokens": 256})  # its place is free again
    again = keep.load_state("t", 256)
    assert again is not None
    assert again[1] == {"tokens": 256}


def test_a_checkpoint_holds_no_pickle(tmp_path: Path) -> None:
    keep = Store(tmp_path)
    keep.save_state("t", 1, ARRAYS, {"tokens": 1})
    assert sorted(p.name for p in keep.checkpoint("t", 1).iterdir()) == [
        "manifest.json",
        "meta.json",
        "state.safetensors",
    ]


def test_curves_are_continued_where_they_were_cut(tmp_path: Path) -> None:
    keep = Store(tmp_path)
    keep.write_curve("c", [(10, 3.0, 1.0, 0.5), (20, 2.0, 1.0, 0.5), (30, 9.0, 1.0, 0.5)])
    keep.write_curve("c", [(30, 1.5, 1.0, 0.5), (40, 1.0, 1.0, 0.5)], after=20)
    curve = keep.curve("c")
    assert curve is not None
    assert list(curve.tokens) == [10, 20, 30, 40]
    assert list(curve.loss) == [3.0, 2.0, 1.5, 1.0]
    assert keep.curve("none") is None


def test_an_earlier_fork_leaves_no_hole_in_its_trunk_s_curve(tmp_path: Path) -> None:
    """A sibling goes on from an earlier checkpoint and forks before the trunk's end."""
    keep = Store(tmp_path)
    keep.write_curve("c", [(t, 2.0, 1.0, 0.5) for t in range(1, 11)])
    keep.write_curve("c", [(t, 2.0, 1.0, 0.5) for t in range(4, 7)], after=3)
    curve = keep.curve("c")
    assert curve is not None
    assert list(curve.tokens) == list(range(1, 11))


# the driver

HOLD = """
import sys, time
from tunnel.folder.store import Store
with Store(sys.argv[1]).driver():
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_study_has_one_driver_and_a_dead_one_loses_it(tmp_path: Path) -> None:
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(UserError, match=f"pid {other.pid} on {socket.gethostname()} since"),
            Store(tmp_path).driver(),
        ):
            pass
        assert other.poll() is None
    finally:
        other.send_signal(signal.SIGKILL)
        other.wait()
    assert (tmp_path / "driver.lock").exists()
    with Store(tmp_path).driver():
        assert json.loads((tmp_path / "driver.lock").read_text())["pid"] == os.getpid()
    assert not (tmp_path / "driver.lock").exists()


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_the_lock_is_given_back_whatever_happens(tmp_path: Path, error: type[BaseException] | None) -> None:
    try:
        with Store(tmp_path).driver():
            if error is not None:
                raise error
    except KeyboardInterrupt:
        pass
    assert not (tmp_path / "driver.lock").exists()


def elsewhere(folder: Path) -> Path:
    path = folder / "driver.lock"
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "since": "2026-01-01T00:00:00+00:00"}))
    return path


def test_a_lock_of_another_host_stands_where_hosts_share_a_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = elsewhere(tmp_path)
    with Store(tmp_path).driver():
        pass  # this disk is ours alone: the folder was copied, or the host was renamed
    elsewhere(tmp_path)
    monkeypatch.setattr(lock, "LOCAL", frozenset())
    with (
        pytest.raises(UserError, match=r"pid 1 on elsewhere since .* \(\d+ min\); if it is dead: --takeover"),
        Store(tmp_path).driver(),
    ):
        pass
    assert store.other_driver(path) == {"host": "elsewhere", "pid": 1, "since": "2026-01-01T00:00:00+00:00"}


@pytest.mark.parametrize("lives", [True, False])
def test_a_takeover_is_from_the_dead_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lives: bool) -> None:
    """The other host is played by a process that touches the lock, as a living driver does."""
    path = elsewhere(tmp_path)
    monkeypatch.setattr(lock, "LOCAL", frozenset())
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(lock, "WATCH_SECONDS", 0.6)
    touch = f"import os, time\nfor _ in range(100):\n os.utime({str(path)!r}); time.sleep(0.1)"
    other = subprocess.Popen([sys.executable, "-c", touch if lives else ""])
    try:
        with pytest.raises(UserError, match="it lives") if lives else nullcontext():
            Store(tmp_path).take_over()
        assert path.exists() == lives
    finally:
        other.kill()
        other.wait()


def test_a_takeover_from_a_living_process_here_is_refused(tmp_path: Path) -> None:
    Store(tmp_path).take_over()  # from nobody
    with Store(tmp_path).driver(), pytest.raises(UserError, match=f"pid {os.getpid()} on"):
        Store(tmp_path).take_over()


def test_a_driver_whose_lock_was_taken_ends(tmp_path: Path) -> None:
    """It was cut off and is back: at its next beat it sees that the lock is no longer its own."""
    fast = HOLD.replace("with", "from tunnel.folder import lock\nlock.BEAT_SECONDS = 0.05\nwith", 1)
    other = subprocess.Popen(
        [sys.executable, "-c", fast, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    before = (tmp_path / "driver.lock").stat().st_mtime_ns
    time.sleep(0.3)
    assert (tmp_path / "driver.lock").stat().st_mtime_ns > before
    (tmp_path / "driver.lock").unlink()
    elsewhere(tmp_path)
    _, told = other.communicate(timeout=10)
    assert (other.returncode, told) == (75, "stopped: another sweep took over this study\n")
    assert store.other_driver(tmp_path / "driver.lock") is not None


def test_a_lock_that_a_dying_process_left_empty_holds_nobody(tmp_path: Path) -> None:
    (tmp_path / "driver.lock").write_text("")
    with Store(tmp_path).driver():
        pass
