"""Successive halving: who goes on, what is kept of those that do not, and the same after a restart."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from conftest import BATCH, run_spec, trunk_spec
from test_store import record
from test_sweep import killed

from tunnel import sampler
from tunnel.folder import database
from tunnel.run import Record, Trial
from tunnel.sweeps import sweep
from tunnel.valleys.halving import Halving, losses

RUNGS = [(8, 2), (16, 4), (32, 8)]  # decay start and length, in steps


def trial(lr: float = 0.01, **changed: object) -> Trial:
    trunk = trunk_spec(lr=lr, **changed)  # type: ignore[arg-type]
    return Trial(stage="s", number=0, runs=tuple(run_spec(trunk, *r) for r in RUNGS))


def measured(t: Trial, *found: float | None) -> dict[str, Record]:
    return {r.fingerprint: record(r, loss) for r, loss in zip(t.runs, found, strict=False)}


def test_losses_are_of_whole_rungs_the_best_decay_of_each() -> None:
    trunk = trunk_spec()
    two = Trial(stage="s", number=0, runs=(run_spec(trunk, 8, 2), run_spec(trunk, 9, 1), run_spec(trunk, 16, 4)))
    assert losses(two, {}) == {}
    assert losses(two, measured(two, 3.0)) == {}, "one of the rung's two decays is out"
    assert losses(two, measured(two, 3.0, 2.5)) == {10 * BATCH: 2.5}
    assert losses(two, measured(two, None, 2.5, 2.0)) == {10 * BATCH: 2.5, 20 * BATCH: 2.0}
    assert losses(two, measured(two, None, None)) == {10 * BATCH: math.inf}


def passed(eta: int | None, *found: float | None) -> list[bool]:
    """Trials that come to the first rung one after the other: whether each goes on from there."""
    judge, answers = Halving(eta), []
    for i, loss in enumerate(found):
        t = trial(0.01 + i / 1000)
        judge.add(t, measured(t, loss))
        answers.append(judge.goes_on(t, measured(t, loss)))
    return answers


@pytest.mark.parametrize(
    ("eta", "found", "answers"),
    [
        (2, (3.0, 2.0, 2.5, 4.0, 1.0), (True, True, True, False, True)),
        (3, (3.0, 2.0, 2.5, 4.0, 1.0), (True, True, False, False, True)),
        (None, (3.0, 9.0, None), (True, True, True)),
        (2, (None, 9.0, 8.0, None, 10.0), (False, True, True, False, False)),  # diverged: no rival, and out
        (2, (math.nextafter(3.0, 4), 3.0, 3.0), (True, True, True)),
    ],
)
def test_one_in_eta_goes_on(eta: int | None, found: tuple[float | None, ...], answers: tuple[bool, ...]) -> None:
    assert passed(eta, *found) == list(answers)


@pytest.mark.parametrize("other", [{"shape": (64, 2)}, {"rules": "completep"}, {"batch_tokens": 2 * BATCH}])
def test_only_what_is_alike_is_compared(other: dict[str, object]) -> None:
    judge, bad, good = Halving(2), trial(), trial(0.02, **other)
    judge.add(good, measured(good, 1.0))
    judge.add(bad, measured(bad, 9.0))
    assert judge.goes_on(bad, measured(bad, 9.0))


def test_each_rung_is_judged_by_itself_and_the_last_never() -> None:
    judge, first, second = Halving(2), trial(), trial(0.02)
    judge.add(first, measured(first, 3.0, 2.0, 1.0))
    judge.add(second, measured(second, 2.0, 3.0, 9.0))
    assert judge.goes_on(second, measured(second, 2.0))
    assert not judge.goes_on(second, measured(second, 2.0, 3.0))
    assert judge.goes_on(second, measured(second, 2.0, 3.0, 9.0))


# on the calibration body

HALVED = (
    ("trials = 4\n  tokens", "trials = 9\n  #"),
    (
        '[[stage]]\nname = "calibrate"',
        '[[stage]]\nhalving = 3\nrungs = { tokens = ["50k", "100k", "200k"] }\nname = "calibrate"',
    ),
    ("low = 1e-3, high = 1e-1", "low = 1e-3, high = 0.9"),  # diverges above 0.3
    ("fan = [0.5, 1, 2]\n", ""),
    ("[stage.budget]", '[stage.sampler]\n  name = "sobol"\n  [stage.budget]'),  # asks the same after a restart
)


def outcome(folder: Path) -> list[tuple[str, float | None]]:
    return [(t["state"], t["value"]) for t in sampler.states(folder, "calibrate") if t["state"] != "failed"]


def test_stopped_trials_keep_their_readings_and_a_restart_decides_the_same(
    study_file: Callable[..., Path], tmp_path: Path
) -> None:
    study = study_file(*HALVED)
    asked, keep = sweep.opened(study, tmp_path / "whole")
    found = sweep.sweep(asked, keep)
    trials = found["trials"]
    assert trials["pruned"] >= 3
    assert trials["diverged"] >= 1
    assert trials["complete"] + trials["pruned"] + trials["diverged"] == trials["planned"] == 11
    assert found["state"] == "complete"
    assert found["eta_seconds"] == 0
    readings = keep.readings().query("stage == 'calibrate'")
    stopped = [t for t in sampler.states(keep.root, "calibrate") if t["state"] == "pruned"]
    assert all(t["measured"] and len(t["measured"]) < 3 for t in stopped)
    assert {fp for t in stopped for fp in t["measured"]} <= set(readings[readings.status == "complete"].fingerprint)
    assert all(math.isfinite(t["value"]) for t in stopped)
    dead = readings[readings.status == "diverged"]
    assert set(dead.D) == {dead.D.min()}, "a diverged trial goes no further than the rung that shows it"

    rng = random.Random(0)
    while killed(study, tmp_path / "killed", rng):
        pass
    asked, keep = sweep.opened(study, tmp_path / "killed")
    again = sweep.sweep(asked, keep)
    assert again["trials"] == trials
    assert outcome(keep.root) == outcome(tmp_path / "whole")
    more = sweep.sweep(*sweep.opened(study, tmp_path / "killed"))
    assert more["trials"] == trials
    assert len(keep.records()) == found["readings"] + len(dead)


@pytest.mark.slow
def test_on_ray_trials_are_stopped_and_fans_widen(study_file: Callable[..., Path], tmp_path: Path) -> None:
    """In a process of its own: Ray stays in the one that started it."""
    study = study_file(*HALVED[:3], HALVED[4], ("fan = [0.5, 1, 2]", "fan = [0.2, 0.3, 0.45]"), ('"inline"', '"ray"'))
    call = [sys.executable, "-m", "tunnel.cli", "sweep", str(study), "--json"]
    out = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, timeout=400)
    assert out.returncode == 0, out.stderr
    trials = json.loads(out.stdout)["trials"]
    assert trials["pruned"] >= 2
    assert trials["planned"] > 9 + 6
    assert trials["complete"] + trials["pruned"] + trials["diverged"] == trials["planned"]


def test_a_stopped_trial_is_not_begun_again_when_a_rung_is_added(
    study_file: Callable[..., Path], tmp_path: Path
) -> None:
    study = study_file(*HALVED)
    asked, keep = sweep.opened(study, tmp_path / "out")
    before = sweep.sweep(asked, keep)["trials"]
    text = study.read_text().replace('"200k"]', '"200k", "400k"]')
    longer = asked.model_copy(update={"stage": (sweep.study.parse(text, study).stage[0], *asked.stage[1:])})
    found = sweep.status(longer, keep)
    assert found["trials"]["complete"] == before["complete"] - (9 - before["pruned"] - before["diverged"])
    assert found["state"] != "complete"
    after = sweep.sweep(longer, keep)["trials"]
    assert after["pruned"] >= before["pruned"]
    assert sum(after[s] for s in ("complete", "pruned", "diverged")) == after["planned"] == before["planned"]
    retried = [t for t in sampler.states(keep.root, "calibrate") if t["retry_of"] is not None]
    assert {t["state"] for t in retried} <= {"complete", "pruned"}
    assert len(retried) == 9 - before["pruned"] - before["diverged"]
    assert optuna.load_study(study_name="calibrate", storage=database.storage(keep.root)).best_value > 0
