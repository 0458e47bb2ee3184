"""lr and batch at larger models: cells' smoothed optima, the way chosen by hold-outs, intervals, regret, bad tables."""

from __future__ import annotations

import numpy as np
import pytest

from tunnel import laws
from tunnel.backtests import backtest
from tunnel.laws import optimum
from tunnel.valleys import bowls, heldout, ways

LAW = {"lr": 0.9, "lr_N": -0.35, "lr_D": 0.05, "batch": 3.0, "batch_N": 0.0, "batch_D": 0.5}
FAR = {"N": np.array([1e9]), "D": np.array([4e10])}


def risen(x: np.ndarray, y: np.ndarray, skew: float = 1.0, ridge: float = 0.3) -> np.ndarray:
    """log loss above the best, x of log lr and y of log batch beside it: steeper to the right, lr ~ batch^ridge."""
    x = x - ridge * y
    return 0.02 * (np.expm1(skew * x) - skew * x) / skew**2 * 2 + 0.006 * y**2


def grid(sizes=(5e7, 1e8, 2e8, 4e8), lengths=(2e9, 8e9), lrs=8, batches=6, noise=5e-4, seed=0, skew=1.0):
    """Cells of lr × batch grids that do not lie about their optimum; a far corner has diverged."""
    rng = np.random.default_rng(seed)
    rows = []
    for n in sizes:
        for d in lengths:
            lr, batch = np.log(optimum.predict(LAW, {"N": [n], "D": [d]}))[0] + rng.uniform(-0.4, 0.4, 2)
            x, y = np.meshgrid(lr + 0.5 * np.arange(lrs) - 0.25 * lrs, batch + 0.6 * np.arange(batches) - 0.3 * batches)
            rows.append(np.stack([np.full(x.size, n), np.full(x.size, d), np.exp(x.ravel()), np.exp(y.ravel())]))
    n, d, lr, batch = np.concatenate(rows, axis=1)
    best = optimum.predict(LAW, {"N": n, "D": d})
    rise = risen(np.log(lr / best[:, 0]), np.log(batch / best[:, 1]), skew)
    loss = (1.8 + 400 / n**0.34 + 900 / d**0.3) * np.exp(rise + rng.normal(0, noise, len(n)))
    return laws.columns({"N": n, "D": d, "lr": lr, "batch_tokens": batch, "loss": np.where(rise > 0.2, np.nan, loss)})


# --- a cell's own surface


def cell(seed=0, noise=5e-4, skew=1.5):
    rng = np.random.default_rng(seed)
    x = np.stack([v.ravel() for v in np.meshgrid(np.arange(-2, 2.1, 0.5), np.arange(-2.4, 2.5, 0.6))], axis=1)
    return x + np.array([0.3, -0.2]), risen(x[:, 0] + 0.3, x[:, 1] - 0.2, skew) + rng.normal(0, noise, len(x))


def test_a_cells_optimum_is_that_of_its_smooth_surface_not_its_lowest_run():
    off, raw, low = [], [], []
    for seed in range(20):
        x, y = cell(seed)
        found = bowls.bowl(x, y, np.ones(len(y)), 0.01)
        assert not found.edge
        off.append(risen(*(found.best - [0.0, 0.0])))
        raw.append(risen(*x[y.argmin()]))
        low.append(y.min() - risen(*x[y.argmin()]))
    assert np.mean(off) < 0.3 * np.mean(raw)
    assert np.mean(low) < 0  # the winner's curse: the best run was lucky


def test_a_cubic_follows_what_a_parabola_does_not():
    x, y = cell(noise=0.0, skew=1.5)
    cubic = bowls.bowl(x, y, np.ones(len(y)), 0.02)
    few = np.flatnonzero(y < np.sort(y)[14])
    parabola = bowls.bowl(x[few], y[few], np.ones(len(few)), 0.02)
    assert len(cubic.a) == 10
    assert len(parabola.a) == 6
    assert risen(*cubic.best) < 1e-4


@pytest.mark.parametrize(("shift", "edge"), [((3.0, 0.0), "edge"), ((0.0, 3.5), "edge"), ((0.0, 0.0), "")])
def test_an_optimum_outside_what_was_tried_is_refused(shift, edge):
    x, y = cell(noise=1e-4)
    y = risen(x[:, 0] - shift[0], x[:, 1] - shift[1], 0.5)
    found = bowls.bowl(x, y, np.ones(len(y)), 0.02)
    assert bool(found.edge) == bool(edge)


def test_a_surface_rises_from_its_minimum_also_outside_its_box():
    x, y = cell()
    found = bowls.bowl(x, y, np.ones(len(y)), 0.01)
    at = found.best + np.array([[0.0, 0.0], [0.5, 0.0], [5.0, 0.0], [10.0, 0.0]])
    rise = found.rise(at)
    assert rise[0] == pytest.approx(0, abs=1e-6)
    assert (np.diff(rise) > 0).all()


def test_derivatives_of_a_polynomial():
    powers, rng = bowls.monomials(2, 3), np.random.default_rng(0)
    a, u = rng.normal(size=len(powers)), rng.normal(size=(5, 2))
    for k in range(2):
        step = np.eye(2)[k] * 1e-6
        slope = (bowls.value(powers, a, u + step) - bowls.value(powers, a, u - step)) / 2e-6
        assert bowls.value(*bowls.derived(powers, a, k), u) == pytest.approx(slope, rel=1e-6)


# --- the law


def off(answer):
    """The true relative loss given away by an answer at FAR."""
    best = optimum.predict(LAW, FAR)[0]
    return float(risen(np.log(answer["lr"][0] / best[0]), np.log(answer["batch_tokens"][0] / best[1])))


def test_many_runs_take_the_cells_way_and_give_little_away():
    report = optimum.report(grid(), FAR, draws=60)
    assert report["chosen_by"]["way"].startswith("cells")
    assert off(report["answer"]) < 3e-4
    best = optimum.predict(LAW, FAR)[0]
    for j, name in enumerate(("lr", "batch")):
        assert report["answer"][f"{name}_low"][0] < best[j] < report["answer"][f"{name}_high"][0]
    assert 0 < report["answer"]["regret_percent"][0] < 0.3
    folds = {(row["axis"], row["cases"]) for row in report["backtest"]}
    assert {("N", 2), ("N", 4)} <= folds  # the largest size left out, then the two largest
    assert not any(axis == "D" for axis, _ in folds)  # two lengths: one would show no power
    assert any(name.startswith("joint") for name in report["rejected"])


def test_hold_outs_choose_against_the_usual_way():
    """Skewed valleys mislead one parabola for all: cells win although the runs are few enough for the joint surface."""
    rows, _ = ways.rows_of(grid(sizes=(5e7, 1e8, 2e8), lengths=(2e9, 8e9), lrs=6, batches=4, skew=2.0, noise=2e-4))
    found = ways.all_of(rows, {w.near: ways.bowls_of(rows, w.near) for w in ways.WAYS})
    joint, cells = heldout.USUAL["joint"], heldout.USUAL["cells"]
    misses = {w: (m,) * 4 for w, m in {joint: miss(2.5e-3), cells: miss(1e-3)}.items()}
    scores = {w: heldout.score(m) for w, m in misses.items()}
    assert heldout.decide(100, found, scores, misses) == joint  # one fold: its errors may as well be three times these
    several = {w: tuple(miss(m[0].regret, str(i)) for i in range(4)) for w, m in misses.items()}
    assert heldout.decide(100, found, scores, several) == cells
    assert heldout.decide(100, found, {}, {w: () for w in found}) == joint
    assert heldout.decide(1000, found, {}, {w: () for w in found}) == cells


def miss(regret, fold="a"):
    return heldout.Miss("N", fold, 1e8, 1e9, np.zeros(2), regret, 0.0)


def test_cells_that_miss_their_optimum_do_not_move_the_line():
    table = grid(noise=2e-4)
    here = optimum.settings(table, FAR, draws=20)[1]
    first = (table["N"] == 5e7) & (table["D"] == 2e9)
    best = optimum.predict(LAW, {"N": [5e7], "D": [2e9]})[0]
    cut = laws.take(table, ~(first & (table["lr"] < best[0] * 2)))
    found, there, _ = optimum.settings(cut, FAR, draws=20)
    assert "1 of 8 cells refused" in found.reason
    assert np.log(there["lr"][0] / here["lr"][0]) == pytest.approx(0, abs=0.1)


def test_a_cell_whose_best_lies_at_its_edge_is_no_part_of_the_line():
    table = grid(noise=1e-4)
    first = (table["N"] == 5e7) & (table["D"] == 2e9)
    best = optimum.predict(LAW, {"N": [5e7], "D": [2e9]})[0]
    rows, _ = ways.rows_of(laws.take(table, ~(first & (table["lr"] < best[0] * 1.05))))
    bowls = ways.bowls_of(rows, 0.02)
    assert [b.edge != "" for b in bowls] == [True] + [False] * 7
    assert ways.cells(rows, bowls).index.tolist() == list(range(1, 8))


def test_an_interval_widens_with_distance_and_with_what_hold_outs_miss():
    table, asked = grid(), {"N": np.array([4e8, 4e9]), "D": np.array([8e9, 8e10])}
    _, plain, _ = optimum.settings(table, asked, draws=20)
    wander = table | {"lr": table["lr"] * np.exp(0.4 * np.sin(table["N"] / 1e7 + table["D"] / 1e8))}
    _, rough, _ = optimum.settings(wander, asked, draws=20)
    (near, far), (also_near, _) = (np.log(told["lr_high"] / told["lr_low"]) for told in (plain, rough))
    assert far > 1.5 * near
    assert also_near > 1.5 * near
    known = optimum.chosen(table, 1e-3)[1]
    missed = 100 * heldout.score(known.misses[known.way])
    growth = 1 + 2 / backtest.NEAR  # two decades of C beyond the table
    assert plain["regret_percent"][0] >= missed * 0.999
    assert plain["regret_percent"][1] >= missed * growth**2 * 0.999


def test_row_order_units_and_diverged_rows_change_nothing():
    table = grid()
    here = optimum.fit(table)
    order = np.random.default_rng(0).permutation(len(table["N"]))
    known = np.isfinite(table["loss"])
    for other in (laws.take(table, order[known[order]]), table | {"lr": table["lr"] * 7}):
        there = optimum.fit(other)
        scale = 7 if other["lr"][0] == table["lr"][0] * 7 else 1
        assert there.params["lr_N"] == pytest.approx(here.params["lr_N"], abs=1e-6)
        assert there.params["lr"] == pytest.approx(here.params["lr"] * scale, rel=1e-5)


def test_forks_of_one_trunk_are_drawn_together():
    table = grid(noise=2e-4)
    rows, _ = ways.rows_of(table | {"run": np.round(np.log(table["lr"]) * 100 + np.log(table["N"]) * 1e5)})
    cells = ways.cells(rows, ways.bowls_of(rows, 0.01))
    assert len(np.unique(cells.group)) == len(cells.best)  # no run has two readings
    shared, _ = ways.rows_of(table | {"run": np.tile(np.arange(len(table["N"]) // 8), 8)})
    assert len(np.unique(ways.cells(shared, ways.bowls_of(shared, 0.01)).group)) == 4  # a group per size


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (slice(0, 0), "0 rows"),
        (slice(0, 1), "varies"),
        (slice(0, 4), "4 rows"),
    ],
)
def test_too_few_rows_are_said(rows, reason):
    table = laws.take(laws.take(grid(), np.isfinite(grid()["loss"])), np.arange(2000)[rows])
    found, answer, ranges = optimum.settings(table, FAR)
    assert (found.status, ranges) == ("too few points", {})
    assert reason in found.reason
    assert np.isnan(answer["lr"]).all()


@pytest.mark.parametrize("column", ["lr", "batch_tokens"])
def test_one_setting_alone_is_found_where_the_other_is_held(column):
    table = grid()
    other = {"lr": "batch_tokens", "batch_tokens": "lr"}[column]
    middle = float(np.exp(np.log(table[other]).mean()))
    x = np.log(table[column] / optimum.predict(LAW, table)[:, int(column == "batch_tokens")])
    held = table | {other: np.full(len(x), middle), "loss": 2.5 * np.exp(0.02 * x**2)}
    found, answer, _ = optimum.settings(held, FAR, draws=20)
    best = optimum.predict(LAW, FAR)[0, int(column == "batch_tokens")]
    assert f"{other} does not vary" in found.reason
    assert answer[column][0] == pytest.approx(best, rel=0.02)
    assert answer[other][0] == pytest.approx(middle)


@pytest.mark.slow
def test_intervals_hold_nine_times_in_ten_beyond_the_table():
    inside, best = [], optimum.predict(LAW, FAR)[0]
    for seed in range(24):
        table = grid(seed=seed, noise=1e-3)
        answer = optimum.settings(table, FAR, draws=60)[1]
        inside += [
            answer[f"{k}_low"][0] < v < answer[f"{k}_high"][0] for k, v in zip(("lr", "batch"), best, strict=True)
        ]
    assert np.mean(inside) > 0.8  # of 48
