"""Hands: a worker's trials share their steps, and end as if each had been alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import TRAINED, run_spec, trunk_spec, write_corpus

from tunnel.run import Record, Trial
from tunnel.sweeps import rerun, sweep
from tunnel.sweeps.hands import Hands

STUDY = (
    'question = "Do packs keep their promise?"'
    + TRAINED
    + """[train]
lr = 0.01
batch_tokens = 256
decay = 0.25
[resources]
backend = "{backend}"
pack = {pack}
[[stage]]
name = "ladder"
kind = "ladder"
shapes = [[16, 1], [24, 1]]
widen = 0
fan = [1, 2, 5000]
rungs = {{ tokens = {rungs} }}
"""
)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder, 20)
    return folder


def written(folder: Path, texts: Path, pack: int, backend: str = "inline", rungs: str = '["4k", "8k"]') -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "packs.toml"
    path.write_text(STUDY.format(corpus=texts, pack=pack, backend=backend, rungs=rungs))
    return path


def results(folder: Path) -> dict[str, Record]:
    read = (Record.model_validate_json(p.read_text()) for p in (folder / "records").glob("*.json"))
    return {r.fingerprint_of: r for r in read}


def bits(folder: Path) -> dict[str, Any]:
    return {k: (r.status, r.loss, r.final) for k, r in results(folder).items()}


def test_a_sweep_in_packs_ends_with_the_trials_of_one_without(tmp_path: Path, texts: Path) -> None:
    """Bit for bit, with one that diverges in every pack; and so is `rerun`."""
    found = {}
    for pack in (1, 2, 3):
        folder = tmp_path / str(pack)
        asked, keep = sweep.opened(written(folder, texts, pack), folder / "out")
        found[pack] = sweep.sweep(asked, keep)
        if pack == 3:
            for status in ("complete", "diverged"):
                run = next(r.fingerprint_of for r in results(keep.root).values() if r.status == status)
                assert rerun.rerun(asked, keep, run)["equal"]
    assert found[1]["trials"] == found[3]["trials"]
    assert (found[1]["trials"]["complete"], found[1]["trials"]["diverged"]) == (4, 2)
    assert {r.packed for r in results(tmp_path / "1/out").values()} == {1}
    assert {r.packed for r in results(tmp_path / "3/out").values()} == {3}
    assert bits(tmp_path / "1/out") == bits(tmp_path / "2/out") == bits(tmp_path / "3/out")


class Listed:
    """A queue that hands out a list."""

    def __init__(self, trials: list[Trial]) -> None:
        self.trials = trials

    def next(self) -> Trial | None:
        return self.trials.pop(0) if self.trials else None

    def left(self) -> int:
        return len(self.trials)

    def handed(self, numbers: Sequence[int]) -> None:
        assert numbers


@pytest.mark.parametrize(
    ("shapes", "pack", "workers", "hands"),
    [
        ("aaabbb", 0, 1, ["a", "a", "a", "b", "b", "b"]),
        ("aaabbb", 1, 1, ["a", "a", "a", "b", "b", "b"]),
        ("aaabbb", 3, 1, ["aaa", "bbb"]),
        ("aaaabb", 3, 1, ["aaa", "a", "bb"]),
        ("ababaa", 9, 1, ["a", "b", "a", "b", "aa"]),
        ("aaaaaa", 6, 2, ["aaa", "aa", "a"]),  # evenly: no worker waits for the other
        ("dda", 3, 1, ["d", "d", "a"]),  # dropout does not pack
    ],
)
def test_what_is_in_a_hand(shapes: str, pack: int, workers: int, hands: list[str]) -> None:
    made: dict[str, Any] = {"a": {}, "b": {"shape": (64, 2)}, "d": {"dropout": 0.1}}
    trials = [
        Trial(stage="s", number=i, runs=(run_spec(trunk_spec(lr=0.01 + i, **made[s]), 4, 2),))
        for i, s in enumerate(shapes)
    ]
    handed, found = Hands(Listed(list(trials)), pack, workers), []
    while hand := handed.next():
        found.append(hand)
    assert ["".join(shapes[t.number] for t in hand) for hand in found] == hands
    assert [t.number for hand in found for t in hand] == list(range(len(shapes)))


def test_who_was_in_a_worker_that_died_is_handed_out_alone() -> None:
    """So that one trial that kills its worker does not take the others with it each time."""
    trials = [Trial(stage="s", number=i, runs=(run_spec(trunk_spec(seed=i), 4, 2),)) for i in range(4)]
    hands = Hands(Listed(trials[2:]), 4)
    hands.again += trials[:2]
    assert [[t.number for t in hands.next()] for _ in range(4)] == [[1], [0], [2, 3], []]


@pytest.mark.slow
@pytest.mark.fault(1)
def test_a_worker_killed_in_the_middle_of_a_pack(tmp_path: Path, texts: Path) -> None:
    """Every one of its trials ends with the bits of an undisturbed sweep, and the sweep with the planned trials."""
    rungs = '["16k", "100k"]'
    asked, keep = sweep.opened(written(tmp_path / "inline", texts, 3, rungs=rungs), tmp_path / "undisturbed")
    sweep.sweep(asked, keep)
    study, folder = written(tmp_path / "ray", texts, 3, "ray", rungs), tmp_path / "killed"
    call = [sys.executable, "-m", "tunnel.cli", "sweep", str(study), "--out", str(folder)]
    driver = subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        end = time.monotonic() + 300
        while len(results(folder)) < 3:
            assert driver.poll() is None, driver.communicate()
            assert time.monotonic() < end
            time.sleep(0.02)
        killed = workers_of(driver.pid)
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        _, said = driver.communicate(timeout=400)
    finally:
        driver.kill()
    assert killed
    assert driver.returncode == 0, said
    assert bits(folder) == bits(tmp_path / "undisturbed")


def workers_of(driver: int) -> list[int]:
    """The training processes that descend from one driver."""
    from test_sweep import workers_of as found

    return found(driver)
