"""Faults that are really caused: damaged checkpoints, kills at every step of a write, two sweeps on one study."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import BATCH, run_spec, trunk_spec

from tunnel.folder.store import Store
from tunnel.run import Record, Trial
from tunnel.training import data, forks

# 6: a damaged checkpoint is found by its hash, and the one before is used


def cut(raw: bytes, at: float) -> bytes:
    return raw[: int(at * len(raw))]


def flip(raw: bytes, at: float) -> bytes:
    """One bit."""
    changed = bytearray(raw)
    changed[min(int(at * len(raw)), len(raw) - 1)] ^= 1 << int(at * 1000) % 8
    return bytes(changed)


def zeroed(raw: bytes, at: float) -> bytes:
    """From there on zeros, as a disk leaves them after a power cut."""
    return raw[: int(at * len(raw))] + bytes(len(raw) - int(at * len(raw)))


FILES = ["state.safetensors", "meta.json", "manifest.json"]
PLACES = [0.0, 0.001, 0.3, 0.77, 0.999]


def losses(trial: Trial, folder: Path, corpus: data.Corpus) -> list[float | None]:
    return [e.loss for e in forks.grow(trial, Store(folder), corpus) if isinstance(e, Record)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, corpus: data.Corpus) -> tuple[Path, Trial, list[Any]]:
    """A trunk with checkpoints at 4 and 8 steps, and what a later fork of it must reach."""
    trunk, folder = trunk_spec(shape=(16, 1)), tmp_path_factory.mktemp("undisturbed")
    losses(Trial(stage="s", number=0, runs=(run_spec(trunk, 4, 2), run_spec(trunk, 8, 2))), folder / "before", corpus)
    later = Trial(stage="s", number=1, runs=(run_spec(trunk, 12, 2),))
    return folder / "before", later, losses(later, folder / "scratch", corpus)


@pytest.mark.fault(6)
@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", [cut, flip, zeroed])
def test_a_damaged_checkpoint_is_never_trained_on(
    undisturbed: tuple[Path, Trial, list[Any]], tmp_path: Path, corpus: data.Corpus, file: str, damage: Callable
) -> None:
    """At five places of every file of the last checkpoint; then of all of them, so that only the start is left."""
    before, later, expected = undisturbed
    for n, place in enumerate(PLACES):
        keep = Store(tmp_path / str(n))
        copy(before, keep.root)
        names = [p.name for p in keep.checkpoints(later.trunk.fingerprint)]
        assert [int(n) // BATCH for n in names] == [4, 8]
        for name in names[1:] if n else names:
            path = keep.root / "trunks" / later.trunk.fingerprint / name / file
            path.write_bytes(damage(path.read_bytes(), place))
        state = keep.load_state(later.trunk.fingerprint, 8 * BATCH)
        assert (state[1]["tokens"] // BATCH if state else None) == (4 if n else None)
        assert losses(later, keep.root, corpus) == expected


def copy(a: Path, b: Path) -> None:
    import shutil

    shutil.copytree(a, b)


@pytest.mark.fault(6)
@pytest.mark.parametrize(
    "manifest",
    ["{}", "[]", "null", '{"state.safetensors": 1}', '{"../../../etc/passwd": "0"}', "\0", '{"a": ' * 50],
    ids=["empty", "list", "null", "one file", "another file", "binary", "deep"],
)
def test_a_manifest_vouches_for_its_two_files_and_nothing_else(tmp_path: Path, manifest: str) -> None:
    keep = Store(tmp_path)
    keep.save_state("t", 128, {"w": np.ones(3)}, {"tokens": 128})
    (keep.checkpoint("t", 128) / "manifest.json").write_text(manifest)
    assert keep.load_state("t", 128) is None


# 7: a kill at every step of a write leaves the old or the new, complete

KILL = """
import json, os, signal, sys
import numpy as np
from tunnel.folder import store
from tunnel.run import Record
from tunnel.folder.store import Store

folder, what, old, new = sys.argv[1:]
keep, events = Store(folder), {"open", "shutil.rmtree"}
events |= {f"os.{name}" for name in ("rename", "link", "mkdir", "remove", "rmdir", "chmod")}
rows = lambda text: [(i, float(len(text)), 1.0, 0.5) for i in range(1, 40)]
write = {
    "state": lambda text: keep.save_state("t", 128, {"w": np.full(999, len(text))}, {"tokens": 128, "text": text}),
    "record": lambda text: keep.write_record(Record.model_validate_json(text)),
    "curve": lambda text: keep.write_curve("c", rows(text)),
    "readings": lambda text: (keep.write_record(Record.model_validate_json(text)), keep.write_readings()),
    "chain": lambda text: store.append(keep.root / "forecasts.jsonl", {"text": text}),
}[what]
if what in ("state", "curve"):
    import pandas, pyarrow.parquet, safetensors.numpy  # once, not in every child

def child(step):
    pid = os.fork()
    if pid == 0:
        left = step
        def count(*_):
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        synced = os.fsync
        os.fsync = lambda fd: (count(), synced(fd))
        sys.addaudithook(lambda event, args: count() if event in events and str(folder) in str(args) else None)
        write(new)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

for line in sys.stdin:  # a step per line: the folder is as the test wants it
    if line == "old\\n":
        write(old)
        print("written", flush=True)
    else:
        print(child(int(line)), flush=True)
"""


def told(process: subprocess.Popen[str], line: object) -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{line}\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


def content(keep: Store, what: str) -> Any:
    """What a reader finds; raises where it finds half of something."""
    if what == "state":
        state = keep.load_state("t", 128)
        return state and (state[1]["text"], float(state[0]["w"].sum()))
    if what == "curve":
        curve = keep.curve("c")
        assert (curve is None) == (not list(keep.root.glob("curves/*.parquet")))
        return None if curve is None else (len(curve), float(curve.loss.iloc[0]))
    if what == "readings":
        import pandas as pd

        path = keep.root / "readings.parquet"
        return pd.read_parquet(path).stage.tolist() if path.exists() else None
    if what == "chain":
        from tunnel.folder import store

        return [e["text"] for e in store.chain(keep.root / "forecasts.jsonl")]
    return [r.stage for r in keep.records()]


@pytest.mark.fault(7)
@pytest.mark.parametrize("what", ["state", "record", "curve", "readings", "chain"])
def test_a_kill_at_any_step_leaves_the_old_or_the_new(tmp_path: Path, what: str) -> None:
    """A forked child kills itself before the k-th file operation of a write, for every k until it gets through."""
    from test_store import record

    texts = ["first", "the second"]
    if what in ("record", "readings"):
        stages = {"first": 8, "second": 12}  # a record is written once: the second is another run's
        texts = [record(run_spec(trunk_spec(), at, 2), stage=name).model_dump_json() for name, at in stages.items()]
    process = subprocess.Popen(
        [sys.executable, "-c", KILL, str(tmp_path), what, *texts],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    keep, seen, left, killed = Store(tmp_path), [], 0, 0
    try:
        for begun in (False, True) if what != "state" else (False,):  # over nothing, over an old one
            if begun:
                discard_all(tmp_path)
                assert told(process, "old") == "written"
            before = content(keep, what)
            for step in range(1, 100):
                ended = told(process, step)
                if ended == "0":
                    break
                assert ended == str(-signal.SIGKILL)
                killed += 1
                left += len(keep.unfinished())
                after = content(keep, what)
                if after != before:
                    seen.append(after)
                    discard_all(tmp_path)
                    if begun:
                        assert told(process, "old") == "written"
                with keep.driver():
                    assert not keep.unfinished()  # the next sweep's start
                assert not list(tmp_path.rglob(".saving-*"))
            seen.append(content(keep, what))
            assert seen[-1] != before
            assert seen == [seen[-1]] * len(seen)
            seen.clear()
    finally:
        process.kill()
        process.wait()
    assert killed > 3  # the kills were real, and some of them in the middle
    assert left or what == "chain"  # whose lines are added in place: tests/test_audit.py cuts one anywhere


def discard_all(folder: Path) -> None:
    from tunnel.folder.files import discard

    for path in folder.iterdir():
        discard(path)


# 12: two sweeps on one study

RACE = """
import os, sys, time
from pathlib import Path
from tunnel.errors import UserError
from tunnel.folder.store import Store

folder = Path(sys.argv[1])
for line in sys.stdin:
    try:
        with Store(folder).driver():
            os.close(os.open(folder / "inside", os.O_CREAT | os.O_EXCL))  # fails where another one is inside
            print("won", flush=True)
            sys.stdin.readline()
            (folder / "inside").unlink()
        print("left", flush=True)
    except UserError as e:
        print(e, flush=True)
"""

SPIN = """
import fcntl, os, random, sys, time
from pathlib import Path
from tunnel.errors import UserError
from tunnel.folder.store import Store

flock, folder, won = fcntl.flock, Path(sys.argv[1]), 0
fcntl.flock = lambda *a: (time.sleep(random.random() / 1000), flock(*a))  # as if another process had the core
for _ in range(int(sys.argv[2])):
    try:
        with Store(folder).driver():
            os.close(os.open(folder / "inside", os.O_CREAT | os.O_EXCL))
            (folder / "inside").unlink()
            won += 1
    except UserError:
        pass
print(won)
"""


@pytest.fixture
def racers(tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    begun: list[subprocess.Popen[str]] = []

    def begin() -> subprocess.Popen[str]:
        call = [sys.executable, "-c", RACE, str(tmp_path)]
        begun.append(subprocess.Popen(call, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        return begun[-1]

    yield begin
    for process in begun:
        process.kill()
        process.wait()


def say(process: subprocess.Popen[str], line: str = "") -> None:
    assert process.stdin is not None
    process.stdin.write(line + "\n")
    process.stdin.flush()


def hear(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.fault(12)
def test_of_two_that_race_exactly_one_wins(tmp_path: Path, racers: Callable[[], subprocess.Popen[str]]) -> None:
    """Three hundred rounds; before every other one, a dead driver's lock lies there."""
    both, rng, winners = [racers(), racers()], random.Random(0), [0, 0]
    for i in range(300):
        if i % 2:
            dead = {"host": "here", "pid": 2**22 + 1, "since": "2026-01-01"}
            (tmp_path / "driver.lock").write_text(json.dumps(dead))
        for process in rng.sample(both, 2):
            say(process)
        answers = [hear(p) for p in both]
        assert answers.count("won") == 1, answers
        winner = answers.index("won")
        winners[winner] += 1
        loser = answers[1 - winner]
        assert "another sweep holds this study: " in loser
        if "just began" not in loser and "2026-01-01" not in loser:
            assert f"pid {both[winner].pid} on" in loser
        say(both[winner])
        assert hear(both[winner]) == "left"
    assert min(winners) > 0


@pytest.mark.fault(12)
def test_giving_back_and_taking_never_meet(tmp_path: Path) -> None:
    """Three processes take the study and give it back as fast as they can: never are two inside."""
    call = [sys.executable, "-c", SPIN, str(tmp_path), "300"]
    spinning = [subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for process in spinning:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert int(out) > 0
    assert not (tmp_path / "driver.lock").exists()


@pytest.mark.fault(12)
def test_the_dead_lose_the_study_at_once(tmp_path: Path, racers: Callable[[], subprocess.Popen[str]]) -> None:
    first = racers()
    for _ in range(3):
        say(first)
        assert hear(first) == "won"
        first.send_signal(signal.SIGKILL)
        first.wait()
        (tmp_path / "inside").unlink()
        first = racers()
    say(first)
    assert hear(first) == "won"
