"""What keeps a long sweep as quick at its end as at its start: the study in memory, running sums, the order of asks."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from sqlalchemy import event
from test_sampler import asker, drain, ladder, planned, search

from tunnel.folder import database
from tunnel.mirror import BEST, Mirror
from tunnel.sampler import Ask, Asker, states
from tunnel.study import Stage
from tunnel.sweeps import sweep
from tunnel.sweeps.queue import StageQueue

LR = {"lr": {"low": 1e-4, "high": 1.0}}
LISTED: list[dict[str, Any]] = [{"width": 32, "depth": 2, "lr": 0.01 * 1.5**i} for i in range(6)]


# the mirror


def trials_of(study: Any) -> list[dict[str, Any]]:
    """All that a study's readers may see."""
    seen = ("number", "state", "params", "distributions", "user_attrs", "intermediate_values", "value")
    return [{k: getattr(t, k) for k in seen} for t in study]


@pytest.mark.parametrize("name", ["cmaes", "ladder"])
def test_memory_and_database_hold_the_same_trials(tmp_path: Path, name: str) -> None:
    """After every way to end, in two sweeps, and one left running."""
    stage, listed = (ladder(), LISTED) if name == "ladder" else (search(name, 9), None)
    kinds = ["complete", "diverged", "failed", "pruned"]
    for _ in range(2):
        a = asker(tmp_path, stage, listed)
        for i in range(8):
            ask = a.ask(planned)
            if ask is None:
                break
            a.report(ask.number, 1000, 3.0)
            a.report(ask.number, 2000, 2.5 + i)
            a.tell(ask.number, kinds[i % 4], 2.5 + i if kinds[i % 4] == "complete" else None)  # type: ignore[arg-type]
        a.ask(planned)
        kept = optuna.load_study(study_name="s", storage=database.storage(tmp_path)).get_trials()
        assert trials_of(a.mirror.trials()) == trials_of(kept)
        assert not any(t.system_attrs for t in kept), "a sampler's pickles"


@pytest.mark.parametrize("name", ["sobol", "ladder"])
def test_a_trial_is_three_transactions_whatever_came_before(tmp_path: Path, name: str) -> None:
    """Asked, read, told."""
    stage, listed = (ladder(), LISTED) if name == "ladder" else (search(name, 6), None)
    a = asker(tmp_path, stage, listed)
    written: list[int] = []
    open_ones: set[int] = set()

    def execute(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if statement.startswith(("INSERT", "UPDATE", "DELETE")):
            open_ones.add(id(connection))

    def commit(connection: Any) -> None:
        if id(connection) in open_ones:
            open_ones.clear()
            written[-1] += 1

    kept = a.mirror.database
    assert isinstance(kept, optuna.storages.RDBStorage)
    event.listen(kept.engine, "before_cursor_execute", execute)
    event.listen(kept.engine, "commit", commit)
    for _ in range(6):
        written.append(0)
        ask = a.ask(planned)
        assert ask is not None
        a.report(ask.number, 1000, 2.0)
        a.tell(ask.number, "complete", 2.0)
    assert written == [3] * 6


def test_another_writer_is_found_at_once(tmp_path: Path) -> None:
    one, two = asker(tmp_path, search()), asker(tmp_path, search())
    one.ask()
    with pytest.raises(sweep.UserError, match="another process writes"):
        two.ask()


def test_a_window_holds_the_last_trials_and_the_best_before_them() -> None:
    mirror = Mirror(optuna.storages.InMemoryStorage(), "s", window=10)
    study = optuna.load_study(study_name="s", storage=mirror)
    for i in range(100):
        trial = study.ask()
        mirror.keep(trial.number)
        if i % 10 == 9:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        elif i < 95:
            study.tell(trial, (i * 37) % 100)
    seen = study.get_trials()
    assert [t.number for t in seen] == sorted(t.number for t in seen)
    assert [t.number for t in seen[-10:]] == list(range(90, 100))
    done = [t for t in mirror.trials()[:90] if t.value is not None]
    assert {t.number for t in seen[:-10]} == {t.number for t in sorted(done, key=lambda t: t.value or 0)[:BEST]}
    assert len(mirror.trials()) == 100


# samplers that begin anew


def test_cma_es_goes_on_around_the_best_after_a_restart(tmp_path: Path) -> None:
    """It keeps nothing of its own; begun anew in the middle of the space, it would be off by a factor of 50."""
    stage = search("cmaes", 45, LR | {"decay": {"low": 0.1, "high": 0.4}})
    first = asker(tmp_path, stage)
    for _ in range(30):
        answer(first, first.ask(), best=0.5)
    again = asker(tmp_path, stage)
    later = [answer(again, again.ask(), best=0.5) for _ in range(15)]
    assert sum(later) / 15 < math.log(4)


def answer(a: Asker, ask: Ask | None, best: float) -> float:
    """Tells of a bowl in lr; returns how far off it was, in logarithms."""
    assert ask is not None
    off = abs(math.log(float(ask.params["lr"]) / best))
    a.tell(ask.number, "complete", 2 + off**2)
    return off


# fans, their order, and the sums over them


def fanned() -> tuple[Stage, list[dict[str, Any]]]:
    """Two shapes, the costly one first, whose fans lie too high."""
    text = {"name": "s", "kind": "ladder", "shapes": [[64, 4], [32, 2]], "rungs": {"tokens": [1000]}, "widen": 2}
    listed = [{"width": w, "depth": d, "lr": lr} for w, d in ((64, 4), (32, 2)) for lr in (0.04, 0.02, 0.08)]
    return Stage.model_validate(text), listed


def test_what_a_fan_adds_goes_before_all_that_waits(tmp_path: Path) -> None:
    stage, listed = fanned()
    asks = [(a.params["width"], a.params["lr"]) for a in drain(asker(tmp_path, stage, listed))]
    assert asks == [(w, lr) for w in (64, 32) for lr in (0.04, 0.02, 0.08, 0.01, 0.005)]


def test_a_sweep_in_pieces_asks_what_an_undisturbed_one_asks(tmp_path: Path) -> None:
    stage, listed = fanned()
    listed = listed[:3]
    whole = drain(asker(tmp_path / "whole", stage, listed))
    for _ in whole:
        a = asker(tmp_path / "pieces", stage, listed)
        answer(a, a.ask(), best=0.01)
    a = asker(tmp_path / "pieces", stage, listed)
    assert a.ask() is None
    assert a.planned == len(whole) == 5
    found = [t["params"] for t in states(tmp_path / "pieces", "s")]
    assert sorted(p["lr"] for p in found) == sorted(x.params["lr"] for x in whole)


def test_the_sums_that_run_are_the_sums_over_all(
    study_file: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every ask and end of a sweep whose fan widens itself, and where a sweep goes on."""
    study = study_file(
        ("trials = 4", "trials = 2"),
        ("[[32, 2], [64, 4]]", "[[32, 2]]"),
        ("fan = [0.5, 1, 2]", "fan = [0.2, 0.3, 0.45]"),
    )
    shown: list[tuple[float, float, int]] = []
    recount = StageQueue.recount

    def checked(self: StageQueue) -> None:
        recount(self)
        listed = self.asker.listed is not None
        free = [self.trial(self.asker.candidates[c] or {}, s) if listed else self.middle for c, s in self.asker.free]
        rest = [*self.running.values(), *free]
        shown.append((self.live.total, self.live.done + sum(self.flops(t) for t in rest), self.live.planned))

    monkeypatch.setattr(StageQueue, "recount", checked)
    asked, keep = sweep.opened(study, tmp_path / "out")
    sweep.sweep(asked, keep)
    planned = {p for _, _, p in shown}
    assert len(planned) > 2, "the fan widened"
    longer = sweep.study.parse(study.read_text().replace('"100k"] }', '"100k", "200k"] }'), study)
    sweep.sweep(longer, keep)
    for total, expected, _ in shown:
        assert total == pytest.approx(expected)


def test_what_0_3_left_waiting_is_asked_anew(tmp_path: Path) -> None:
    """It enqueued a candidate on disk before it asked for it, and could be killed in between."""
    old = optuna.create_study(study_name="s", storage=database.storage(tmp_path))
    old.enqueue_trial(LISTED[0])
    a = asker(tmp_path, ladder(), LISTED[:2])
    a.reconcile(planned, lambda _: None)
    assert [x.params for x in drain(a)] == LISTED[:2]
    assert [t["state"] for t in states(tmp_path, "s")] == ["failed", "complete", "complete"]
