"""The sampler that knows costs: what it finds, what it leaves alone, and that it is asked like any other."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from tunnel import tuned
from tunnel.families.synthetic import TRUTH
from tunnel.sampler import Ask, Asker, states
from tunnel.space import Axis, Choice, Range
from tunnel.study import Stage
from tunnel.sweeps import sweep
from tunnel.valleys import front
from tunnel.valleys.cube import Cube, spread

SPACE: dict[str, Any] = {
    "lr": {"low": 1e-3, "high": 1e-1},
    "decay": {"low": 0.05, "high": 0.5},
    "flops": {"low": 1e13, "high": 1e15},
}
AXES: dict[str, Axis] = {
    "lr": Range(1e-3, 1e-1, log=True),
    "decay": Range(0.1, 0.5),
    "decay_shape": Choice(("1-sqrt", "linear", "cosine")),
    "width": Range(32, 100, step=16),
    "flops": Range(1e12, 1e15, log=True),
}


def stage(trials: int = 30, space: dict[str, Any] | None = None, **budget: Any) -> Stage:
    return Stage.model_validate(
        {
            "name": "s",
            "kind": "search",
            "space": space or SPACE,
            "budget": {"trials": trials, **budget},
            "sampler": {"name": "pareto"},
        }
    )


def loss(params: dict[str, Any], noise: float = 0.0) -> float:
    """A bowl whose bottom moves with the FLOPs; diverges above 0.06."""
    x, c = math.log(params["lr"] / 0.01), math.log(params["flops"] / 1e15)
    bowl = 0.05 * (x + 0.1 * c) ** 2 + 0.02 * math.log(params["decay"] / 0.15) ** 2
    return math.inf if params["lr"] > 0.06 else 2 - 0.05 * c + bowl + noise


def drained(a: Asker, noise: float = 0.0) -> list[Ask]:
    asks = []
    while (ask := a.ask()) is not None:
        asks.append(ask)
        found = loss(ask.params, noise * float(np.random.default_rng([ask.number, ask.seed]).normal()))
        a.tell(ask.number, "diverged" if found == math.inf else "complete", None if found == math.inf else found)
    return asks


# settings and scales as numbers


def test_a_candidate_is_what_it_is_coded_as() -> None:
    cube = Cube(AXES, {"flops": 1e16})
    for place in cube.places(3):
        for u in cube.pool(3)[:20]:
            params = cube.params(u, place)
            assert set(params) == set(AXES)
            assert np.allclose(cube.u(params), u)
            assert cube.params(cube.u(params), place) == pytest.approx(params)
            assert params["width"] in (32, 48, 64, 80, 96)
            assert np.exp(cube.s(params)) == pytest.approx([params["width"] / 100, params["flops"] / 1e16])


@pytest.mark.parametrize("d", [1, 2, 5])
def test_points_fill_the_cube(d: int) -> None:
    points = spread(d, 128, 0)
    assert ((points >= 0) & (points < 1)).all()
    for column in points.T:  # no tenth of any side is left out
        assert set((column * 10).astype(int)) == set(range(10))


# the front


def readings(count: int, seed: int, noise: float = 1e-4) -> front.Readings:
    """A bowl that moves by 0.05 of the cube per log scale, read at three sizes below the goal."""
    rng = np.random.default_rng(seed)
    u, s = spread(2, count, seed), -rng.integers(1, 4, count)[:, None].astype(float)
    best = 0.5 - 0.05 * s
    y = 1 - 0.1 * s[:, 0] + 0.4 * ((u - best) ** 2).sum(1) + noise * rng.normal(size=count)
    return front.Readings(u, s, y)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_best_at_the_goal_is_found_beyond_the_readings(seed: int) -> None:
    read = readings(40, seed)
    at = front.best(front.fit(read), spread(2, 128, 0), np.random.default_rng(0))
    assert np.allclose(at, 0.5, atol=0.04), "at the largest size that was read it lies at 0.55"


def test_readings_in_another_order_or_at_another_loss_say_the_same() -> None:
    read, order = readings(30, 0), np.random.default_rng(1).permutation(30)
    pool = spread(2, 128, 0)
    one, other, higher = (
        front.best(front.fit(r), pool, np.random.default_rng(0))
        for r in (
            read,
            front.Readings(read.u[order], read.s[order], read.y[order]),
            front.Readings(read.u, read.s, read.y + 1.0),
        )
    )
    assert np.allclose(one, other, atol=1e-4)
    assert np.allclose(one, higher, atol=1e-4)


def test_a_diverged_run_keeps_the_best_away() -> None:
    """The loss falls towards u = 1, but all beyond 0.7 diverges: with that told, the front turns up before it."""
    u = spread(1, 30, 0)
    fine = u[:, 0] < 0.7
    y = np.where(fine, 1 - 0.1 * u[:, 0], math.inf)
    pool, zero = spread(1, 128, 1), np.zeros((30, 1))
    told = front.best(front.fit(front.Readings(u, zero, y)), pool, np.random.default_rng(0))
    left_out = front.Readings(u[fine], zero[fine], y[fine])
    assert told[0] < 0.75
    assert front.best(front.fit(left_out), pool, np.random.default_rng(0))[0] > 0.9


def test_a_reading_is_worth_more_near_the_goal_and_never_less_than_nothing() -> None:
    known = front.fit(readings(12, 0, 0.003))
    u = spread(2, 64, 5)
    goals = spread(2, 32, 6)
    near, far = (known.gain(u, np.array([[s]]), np.zeros(64), goals, np.roll(np.arange(64), 1)) for s in (-0.1, -3.0))
    assert (near >= 0).all()
    assert near.mean() > far.mean() > 0


def test_what_is_dear_is_asked_less() -> None:
    known, pool = front.fit(readings(12, 0, 0.003)), spread(2, 128, 0)
    scales = [np.array([-3.0]), np.array([-1.0])]
    chosen = [
        front.next_place(known, scales, np.array([1.0, dear]), pool, np.random.default_rng(0))[1] for dear in (1.0, 1e6)
    ]
    assert chosen == [1, 0]


# as Optuna's sampler


def test_it_finds_the_goal_s_best_from_trials_that_cost_a_fraction(tmp_path: Path) -> None:
    asks = drained(Asker(tmp_path, stage(20), None, 0), noise=0.002)
    spent = sum(float(a.params["flops"]) for a in asks)
    assert spent < 0.5 * 20 * 1e15
    lrs = [float(a.params["lr"]) for a in asks if a.params["flops"] < 1e14]
    assert len(lrs) > 10
    late = np.median([abs(math.log(float(a.params["lr"]) / 0.013)) for a in asks[12:]])
    assert late < 0.5 * math.log(100) / 2, "it asks around the front"


def test_where_all_costs_the_same_it_closes_in(tmp_path: Path) -> None:
    space = {"lr": SPACE["lr"], "decay": SPACE["decay"], "width": {"low": 32, "high": 64, "step": 16}, "depth": 2}
    a = Asker(tmp_path, stage(14, space, flops=1e15), None, 0)
    while (ask := a.ask()) is not None:
        found = loss({**ask.params, "flops": 1e15})
        a.tell(ask.number, "diverged" if found == math.inf else "complete", found)
    best = min(t["value"] for t in states(tmp_path, "s") if t["value"] is not None)
    assert best < 2.02


def test_the_same_candidate_is_measured_again_at_another_seed(tmp_path: Path) -> None:
    """One setting of two values at one cost: nothing else is left than to beat the noise."""
    space = {"decay_shape": ["1-sqrt", "linear"]}
    a = Asker(tmp_path, stage(5, space, tokens=1e6, seeds=(0, 1)), None, 0)
    rng, asks = np.random.default_rng(0), []
    while (ask := a.ask()) is not None:
        asks.append(ask)
        a.tell(ask.number, "complete", 2 + (ask.params["decay_shape"] == "linear") * 0.01 + 0.01 * float(rng.normal()))
    assert len(asks) == 10
    first = [(a.params["decay_shape"], a.seed) for a in asks[::2]]
    assert len(set(first)) == len(first), "else the same run would be taken for another reading"
    assert {t["seed"] for t in states(tmp_path, "s")} == {0, 1}, "others count it where it was planned"
    assert Asker(tmp_path, stage(5, space, tokens=1e6, seeds=(0, 1)), None, 0).ask() is None


# in a study file


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sampler": {"name": "tpe"}}, "knows no cost"),
        ({"budget": {"trials": 4, "flops": 1e15}}, "exactly one"),
        ({"space": {**SPACE, "flops": 1e15}}, "must be a range"),
        ({"space": {"lr": SPACE["lr"], "width": {"low": 32, "high": 64}}, "budget": {"tokens": 1e6}}, "in flops"),
    ],
)
def test_what_a_study_may_not_ask(changes: dict[str, Any], said: str) -> None:
    table = {"name": "s", "kind": "search", "space": SPACE, "budget": {"trials": 4}, "sampler": {"name": "pareto"}}
    Stage.model_validate(table)
    with pytest.raises(ValidationError, match=said):
        Stage.model_validate({**table, **changes})


STUDY = """
question = "Which lr and decay, at which cost?"
family = "synthetic"
[model]
head_dim = 16
base_width = 64
base_depth = 4
seq_len = 128
[train]
batch_tokens = 131_072
[resources]
backend = "inline"
[[target]]
name = "big"
width = 512
depth = 32
tokens = "64M"
[[stage]]
name = "search"
kind = "search"
  [stage.space]
  width = { low = 64, high = 128, step = 64 }
  depth = 4
  lr = { low = 1e-3, high = 1.0 }
  decay = { low = 0.05, high = 0.5 }
  flops = { low = 1e13, high = 2e14 }
  [stage.budget]
  trials = 16
  [stage.sampler]
  name = "pareto"
"""


def test_a_study_s_stage_hands_on_the_settings_of_its_dear_end(tmp_path: Path) -> None:
    """The calibration body's own truth, with lrs that diverge; a second sweep asks nothing."""
    path = tmp_path / "study.toml"
    path.write_text(STUDY)
    asked, keep = sweep.opened(path, tmp_path / "out")
    done = sweep.sweep(asked, keep)
    assert done["trials"]["complete"] + done["trials"]["diverged"] == 16
    assert done["trials"]["diverged"] > 0
    rows = keep.readings()
    found = tuned.best(asked.stage[0], rows)
    dear = rows[rows.width == rows.width.max()].iloc[0]
    truth = TRUTH.best_lr(dear.N, 2e14 / (dear.flops / dear.D))
    assert set(found) == {"lr", "decay"}
    assert abs(math.log(float(found["lr"].value) / truth)) < 0.5
    assert float(found["lr"].low) <= float(found["lr"].value) <= float(found["lr"].high)  # type: ignore[arg-type]
    before = len(states(keep.root, "search"))
    assert sweep.sweep(asked, keep)["trials"] == done["trials"]
    assert len(states(keep.root, "search")) == before
