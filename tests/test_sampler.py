"""Optuna behind the asker: exactly the planned trials, whoever died in between."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path
from typing import Any

import optuna
import pytest
from conftest import run_spec, trunk_spec
from test_store import record

from tunnel.run import Record, Trial
from tunnel.sampler import Ask, Asker, states
from tunnel.space import Choice, Range
from tunnel.study import Sampler, Stage

NAMES = list(Sampler.model_fields["name"].annotation.__args__)  # type: ignore[union-attr]
SPACE: dict[str, Any] = {
    "lr": {"low": 1e-3, "high": 1e-1},
    "decay": {"low": 0.1, "high": 0.4},
    "depth": {"low": 1, "high": 6},
    "width": {"low": 32, "high": 64, "step": 16},
    "decay_shape": ["1-sqrt", "linear"],
}


def search(
    name: str = "tpe", trials: int = 6, space: dict[str, Any] | None = None, seeds: tuple[int, ...] = (0,)
) -> Stage:
    return Stage.model_validate(
        {
            "name": "s",
            "kind": "search",
            "space": space or SPACE,
            "budget": {"trials": trials, "flops": 1e9, "seeds": seeds},
            "sampler": {"name": name},
        }
    )


def ladder(seeds: tuple[int, ...] = (0,)) -> Stage:
    return Stage.model_validate(
        {"name": "s", "kind": "ladder", "shapes": [[32, 2]], "rungs": {"tokens": [1000]}, "budget": {"seeds": seeds}}
    )


def asker(folder: Path, stage: Stage, candidates: Any = None) -> Asker:
    return Asker(folder, stage, candidates, 0)


def drain(a: Asker, outcome: Any = None) -> list[Ask]:
    """Asks and answers until nothing is left; the answer is a bowl in lr, or what `outcome` says."""
    asks = []
    while (ask := a.ask()) is not None:
        asks.append(ask)
        assert len(asks) < 100
        kind = outcome(ask) if outcome else "complete"
        a.tell(ask.number, kind, 2 + math.log(float(ask.params["lr"]) / 0.01) ** 2 if kind == "complete" else None)
    return asks


def planned(params: Any, seed: int) -> Trial:
    """A candidate's trunk with two rungs."""
    trunk = trunk_spec(lr=float(params["lr"]), seed=seed)
    return Trial(stage="s", number=0, runs=(run_spec(trunk, 8, 2), run_spec(trunk, 16, 4)))


# asking


@pytest.mark.parametrize("name", NAMES)
def test_every_sampler_asks_as_often_as_planned_and_within_the_ranges(tmp_path: Path, name: str) -> None:
    """Ten trials, one in four of them diverged: past every sampler's random start."""
    stage = search(name, 10, SPACE)
    asks = drain(asker(tmp_path, stage), lambda ask: "diverged" if ask.number % 4 == 3 else "complete")
    assert len(asks) == 10
    for ask in asks:
        assert set(ask.params) == set(SPACE)
        for key, axis in stage.axes.items():
            value = ask.params[key]
            if isinstance(axis, Choice):
                assert value in axis.values
                continue
            assert isinstance(axis, Range)
            assert not isinstance(value, str)
            assert axis.low <= value <= axis.high * (1 + 1e-9)
            assert axis.step is None or (value - axis.low) % axis.step == 0
    found = states(tmp_path, "s")
    assert [t["state"] for t in found].count("diverged") == 2
    assert [t["state"] for t in found].count("complete") == 8


def test_a_grid_smaller_than_the_trials_goes_on(tmp_path: Path) -> None:
    space = {"depth": {"low": 1, "high": 2}, "lr": {"low": 1e-3, "high": 1e-1}}
    asks = drain(asker(tmp_path, search("grid", 12, space)))
    assert len(asks) == 12
    assert len({(a.params["depth"], a.params["lr"]) for a in asks}) == 10  # two depths, five points of lr


def test_what_is_told_is_learned_from(tmp_path: Path) -> None:
    asks = drain(asker(tmp_path, search("tpe", 20, {"lr": {"low": 1e-4, "high": 1.0}})))
    assert min(abs(math.log(float(a.params["lr"]) / 0.01)) for a in asks[8:]) < math.log(2)


def test_seeds_repeat_a_candidate(tmp_path: Path) -> None:
    asks = drain(asker(tmp_path, search("sobol", 4, seeds=(0, 1, 5))))
    assert [a.seed for a in asks] == [0, 1, 5] * 4
    assert len({tuple(a.params.items()) for a in asks}) == 4
    assert all(asks[i].params == asks[i - i % 3].params for i in range(12))


def test_more_trials_and_seeds_add_to_what_was_asked(tmp_path: Path) -> None:
    first = drain(asker(tmp_path, search("sobol", 3)))
    more = drain(asker(tmp_path, search("sobol", 5, seeds=(0, 1))))
    assert len(more) == 5 * 2 - 3
    assert [a.params for a in more if a.seed == 1][:3] == [a.params for a in first]


LISTED: list[dict[str, Any]] = [
    {"width": 64, "depth": 4, "lr": 0.01},
    {"width": 32, "depth": 2, "lr": 0.005},
    {"width": 32, "depth": 2, "lr": 0.01},
]


@pytest.mark.parametrize("seeds", [(0,), (0, 3)])
def test_a_ladder_asks_its_list_in_order(tmp_path: Path, seeds: tuple[int, ...]) -> None:
    asks = drain(asker(tmp_path, ladder(seeds), LISTED))
    assert [a.params for a in asks] == [c for c in LISTED for _ in seeds]
    assert drain(asker(tmp_path, ladder(seeds), LISTED)) == []


def test_a_ladder_that_grows_asks_what_is_new(tmp_path: Path) -> None:
    """A revision adds a shape; the costly ones come first, so it is no longer where it was in the list."""
    drain(asker(tmp_path, ladder(), LISTED))
    new = {"width": 96, "depth": 6, "lr": 0.01}
    assert [a.params for a in drain(asker(tmp_path, ladder(), [new, *LISTED]))] == [new]


# restarts


@pytest.mark.parametrize("name", NAMES)
def test_a_sweep_that_is_begun_again_repeats_no_question(tmp_path: Path, name: str) -> None:
    asks = []
    for _ in range(4):  # a new process for every trial
        a = asker(tmp_path, search(name, 4))
        ask = a.ask()
        assert ask is not None
        a.tell(ask.number, "complete", 2.0)
        asks.append(ask)
    assert len({tuple(a.params.items()) for a in asks}) == 4
    assert asker(tmp_path, search(name, 4)).ask() is None


def test_what_failed_for_good_is_asked_again_as_it_was_by_the_next_sweep_only(tmp_path: Path) -> None:
    first = drain(asker(tmp_path, search(trials=4)), lambda ask: "failed" if ask.number == 1 else "complete")
    assert len(first) == 4, "asking it again at once would never end where the machine fails every time"
    again = drain(asker(tmp_path, search(trials=4)))
    assert [a.params for a in again] == [first[1].params]
    assert [t["state"] for t in states(tmp_path, "s")] == ["complete", "failed", "complete", "complete", "complete"]


@pytest.mark.parametrize("measured", ["all", "some", "none", "diverged"])
def test_what_a_dead_driver_left_running_is_settled_from_records(tmp_path: Path, measured: str) -> None:
    dead = asker(tmp_path, search(trials=3))
    done, left = dead.ask(), dead.ask(planned)
    assert done is not None
    assert left is not None
    dead.tell(done.number, "complete", 2.0)
    trial = planned(left.params, left.seed)
    losses = {"all": (3.0, 2.5), "some": (3.0,), "none": (), "diverged": (None, None)}[measured]
    records: dict[str, Record] = {r.fingerprint: record(r, x) for r, x in zip(trial.runs, losses, strict=False)}
    records |= {r.fingerprint: record(r, 2.0) for r in planned(done.params, done.seed).runs}
    dead.report(left.number, trial.runs[0].tokens, 3.0)

    alive = asker(tmp_path, search(trials=3))
    alive.reconcile(planned, records.get)
    alive.reconcile(planned, records.get)  # nothing is left to settle
    rest = drain(alive)
    if measured in ("all", "diverged"):
        assert len(rest) == 1
    else:
        assert len(rest) == 2
        assert (rest[0].params, rest[0].seed) == (left.params, left.seed)
    final = [t["state"] for t in states(tmp_path, "s") if t["state"] != "failed"]
    expected = "diverged" if measured == "diverged" else "complete"
    assert sorted(final) == sorted(["complete", "complete", expected])


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    ("owner", "name"),
    [(optuna.Study, "enqueue_trial"), (optuna.Study, "ask"), (optuna.storages.RDBStorage, "create_new_trial")],
)
def test_a_driver_killed_while_it_asks_loses_no_candidate(tmp_path: Path, owner: type, name: str, when: str) -> None:
    child = os.fork()
    if child == 0:
        point = getattr(owner, name)

        def die(*args: Any, **kwargs: Any) -> None:
            if when == "after":
                point(*args, **kwargs)
            os.kill(os.getpid(), signal.SIGKILL)

        dying = asker(tmp_path, ladder(), LISTED)
        setattr(owner, name, die)
        dying.ask()
        os._exit(1)  # it was to be killed
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    alive = asker(tmp_path, ladder(), LISTED)
    alive.reconcile(planned, lambda _: None)
    assert [a.params for a in drain(alive)] == LISTED
    assert sorted(t["state"] for t in states(tmp_path, "s") if t["state"] != "failed") == ["complete"] * 3


# what others read


def test_states_before_and_after(tmp_path: Path) -> None:
    assert states(tmp_path, "s") == []
    a = asker(tmp_path, search(trials=2))
    assert states(tmp_path, "other") == []
    one, two = a.ask(planned), a.ask()
    assert one is not None
    assert two is not None
    trial = planned(one.params, one.seed)
    a.tell(one.number, "diverged")
    first, second = states(tmp_path, "s")
    assert first["runs"] == [r.fingerprint for r in trial.runs]
    assert (first["state"], first["value"], first["params"]) == ("diverged", None, one.params)
    assert (second["state"], second["candidate"], second["seed"]) == ("running", 1, 0)


def test_a_driver_that_died_before_it_told_has_told_nothing(tmp_path: Path) -> None:
    first = asker(tmp_path, search())
    ask = first.ask()
    assert ask is not None
    first.asked[ask.number].set_user_attr("diverged", True)  # and then it is killed
    assert [t["state"] for t in states(tmp_path, "s")] == ["running"]
    asker(tmp_path, search()).reconcile(lambda params, seed: Trial(stage="s", number=0, runs=()), lambda fp: None)
    assert [t["state"] for t in states(tmp_path, "s")] == ["failed"]
