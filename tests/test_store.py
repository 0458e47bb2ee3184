"""A study's folder: nothing half-written, nothing silently wrong, one driver."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import BATCH, run_spec, trunk_spec

from tunnel import store
from tunnel.errors import UserError
from tunnel.run import Record, RunSpec
from tunnel.store import Store

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


def test_readings_are_the_records_as_a_table(tmp_path: Path) -> None:
    trunk = trunk_spec(shape=(48, 3), seed=4)
    keep = Store(tmp_path)
    assert list(keep.readings().columns) == store.READING
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

    assert list(pd.read_parquet(tmp_path / "readings.parquet").columns) == store.READING


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


# the driver

HOLD = """
import sys, time
from tunnel.store import Store
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


def test_a_driver_on_another_host_is_taken_to_live(tmp_path: Path) -> None:
    (tmp_path / "driver.lock").write_text(json.dumps({"host": "elsewhere", "pid": 1, "since": "today"}))
    with pytest.raises(UserError, match="pid 1 on elsewhere"), Store(tmp_path).driver():
        pass


def test_a_lock_that_a_dying_process_left_empty_holds_nobody(tmp_path: Path) -> None:
    (tmp_path / "driver.lock").write_text("")
    with Store(tmp_path).driver():
        pass
