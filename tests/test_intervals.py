"""Rows outside the laws, the choice of rows, form and loss by hold-outs, and intervals that hold."""

from __future__ import annotations

import numpy as np
import pytest

from tunnel import laws
from tunnel.backtests import backtest, intervals, noise, rows
from tunnel.backtests.backtest import Candidate

N, D = (v.ravel() for v in np.meshgrid(np.geomspace(1e7, 3e8, 6), np.geomspace(1e9, 3e10, 6), indexing="ij"))


def surface(n, d):
    return 1.8 + 400 / n**0.34 + 900 / d**0.29


def grid(**changed):
    return laws.columns({"N": N, "D": D, "loss": surface(N, D)} | changed)


def budgets(noise=0.002, seed=0, far=0.0):
    """IsoFLOP budgets, 9 sizes each; `far` is how much faster the loss rises away from a minimum than the law's."""
    rng = np.random.default_rng(seed)
    c = np.repeat(np.geomspace(1e17, 1e19, 7), 9)
    off = np.tile(np.linspace(-1.6, 1.6, 9), 7)
    best = 2.0 * (c / 1e17) ** 0.5 * 1e7
    n = best * np.exp(off)
    loss = surface(n, c / 6 / n) * np.exp(far * off**4 + rng.normal(0, noise, len(c)))
    return laws.columns({"N": n, "D": c / 6 / n, "loss": loss})


# --- rows


def raised(row, by):
    loss = surface(N, D)
    loss[row] *= by
    return loss


MARKED = {
    "nothing": (grid(), set(), "", False),
    "a spike": (grid(loss=raised(20, 1.12)), {20}, "above that of", False),
    "a collapse": (grid(loss=raised(35, 3.0)), {35}, "above that of", True),
    "under 500 steps": (grid(batch_tokens=np.full(36, 4e6)), set(np.flatnonzero(D < 2e9)), "steps, under 500", False),
    "warmup": (grid(warmup=np.full(36, 4e8)), set(np.flatnonzero(D < 1.6e9)), "warmup is 1/2.5", False),
    "data": (grid(unique_tokens=np.full(36, 5e9)), set(np.flatnonzero(D > 2e10)), "repeated 6 times", False),
    "transient": (
        grid(loss=np.where(D < 1.1e9, surface(N, 2.1e9) * 1.001, surface(N, D))),
        set(np.flatnonzero(D < 1.1e9)),
        "falls faster later",
        False,
    ),
}


@pytest.mark.parametrize("case", MARKED)
def test_rows_outside_the_laws_are_marked_with_the_reason(case):
    table, wanted, reason, outlier = MARKED[case]
    found = rows.marks(table)
    assert {m.row for m in found} == wanted
    assert all(reason in m.reason and m.outlier == outlier for m in found)
    assert np.flatnonzero(rows.marked(table)).tolist() == sorted(wanted)
    assert rows.outliers(table).sum() == (len(wanted) if outlier else 0)
    assert len(rows.window("unmarked rows").rows(table)) == 36 - len(wanted)
    assert len(rows.ALL.rows(table)) == 36


@pytest.mark.parametrize("case", ["a spike", "transient"])
def test_marks_do_not_depend_on_units_or_row_order(case):
    table, wanted, _, _ = MARKED[case]
    order = np.random.default_rng(0).permutation(36)
    other = laws.columns({"N": table["N"][order] / 1e9, "D": table["D"][order] / 1e9, "loss": table["loss"][order] / 2})
    assert {int(order[m.row]) for m in rows.marks(other)} == wanted


HOSTILE = {
    "nothing": {"N": [], "D": [], "loss": []},
    "one": {"N": [1e9], "D": [1e10], "loss": [2.5]},
    "NaN and infinite": {"N": [np.nan, 1e8, 1e9], "D": [1e9, np.inf, 1e9], "loss": [2, 2, -1]},
    "a zero batch": {"N": [1e8, 1e9], "D": [1e9, 1e9], "loss": [3, 2], "batch_tokens": [0, 0], "warmup": [0, np.nan]},
    "no loss": {"N": [1e8], "D": [1e9]},
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_rows_are_no_error(case):
    table = laws.columns(HOSTILE[case])
    assert rows.marks(table) == ()
    assert noise.typical(table, ~rows.outliers(table)) == 0.0
    for window in rows.WINDOWS:
        window.rows(table)
    choice = backtest.choose(table, {"N": np.array([1e10]), "D": np.array([1e11])})
    assert choice.cases == 0


def test_a_window_keeps_what_lies_near_the_best_at_its_cost():
    table = budgets(noise=0)
    lowest = np.repeat(table["loss"].reshape(7, 9).min(axis=1), 9)
    assert rows.excess(table) == pytest.approx(np.log(table["loss"] / lowest), abs=1e-12)
    for window in (w for w in rows.WINDOWS if np.isfinite(w.within)):
        kept = window.rows(table)
        assert set(kept) == set(np.flatnonzero(table["loss"] <= lowest * np.exp(window.within)))
        assert len(kept) < 63


def test_noise_is_what_repeats_differ_by():
    rng = np.random.default_rng(0)
    twice = grid()
    table = {k: np.tile(v, 20) for k, v in twice.items()}
    table["loss"] = table["loss"] * np.exp(rng.normal(0, 0.004, 720))
    assert noise.typical(table, ~rows.outliers(table)) == pytest.approx(0.004, rel=0.08)
    others = table | {"lr": np.repeat(np.arange(1.0, 21), 36)}  # other settings are no repeats
    assert noise.typical(others, ~rows.outliers(table)) == 0.0


def seeded(spread, seed):
    """The grid at four seeds, whose log loss scatters by `spread` per row of the grid."""
    rng = np.random.default_rng(seed)
    table = {k: np.tile(v, 4) for k, v in grid().items()}
    table["loss"] = table["loss"] * np.exp(np.tile(spread, 4) * rng.normal(size=len(table["N"])))
    return laws.columns(table)


WEIGHTED = next(w for w in rows.WINDOWS if w.by_noise)


def test_rows_weigh_by_the_noise_that_their_repeats_show():
    """Small models scatter more: the weights recover how much, and the fit is nearer the truth for it."""
    spread = 0.02 * (N / N.min()) ** -0.7
    plain, weighted = [], []
    for seed in range(12):
        table = seeded(spread, seed)
        w = noise.weights(table, np.ones(len(table["N"]), bool))
        power = np.polyfit(np.log(table["N"]), np.log(np.clip(w, 1 / 15, 15)), 1)[0]
        assert power == pytest.approx(1.4, abs=0.4)
        target = {"N": np.array([1e10]), "D": np.array([1e12])}
        for window, errors in ((rows.WINDOWS[1], plain), (WEIGHTED, weighted)):
            fit = Candidate("chinchilla", window).fit(table, target)
            errors.append(np.log(laws.get("chinchilla").predict(fit.params, target)[0] / surface(1e10, 1e12)))
    assert np.mean(np.square(weighted)) < 0.7 * np.mean(np.square(plain))


def test_rows_weigh_alike_where_the_noise_does_not_move_or_nothing_repeats():
    everywhere = np.ones(4 * len(N), bool)
    moved = sum(bool((noise.weights(seeded(0.004 + 0 * N, s), everywhere) != 1).any()) for s in range(40))
    assert moved <= 6  # 5% of 40 are expected
    alone = grid()
    assert (noise.weights(alone, np.ones(len(N), bool)) == 1).all()
    assert WEIGHTED.of(alone).keys() == rows.WINDOWS[1].of(alone).keys()


# --- the choice


def test_rows_are_chosen_by_backtest_and_forecast_better():
    """The law holds near the minima alone: the choice sees it in the smaller budgets, and the larger ones agree."""
    table = budgets(far=0.012)
    small = table["C"] < 2e18
    lowest = rows.excess(table) < 1e-9
    asked = laws.take(table, ~small & lowest)
    where = {k: asked[k] for k in ("N", "D", "C")}
    seen = laws.take(table, small)
    choice = backtest.choose(seen, where, among=("chinchilla",))
    assert choice.candidate.window.within <= 0.05
    assert {c.window.name for c, _ in choice.tried} >= {"all rows", choice.candidate.window.name}
    assert len({c.loss for c, _ in choice.tried}) == 3

    def off(which):
        value = laws.get("chinchilla").predict(which.fit(seen).params, where)
        return np.abs(np.log(value / asked["loss"])).mean()

    assert off(choice.candidate) < 0.75 * off(Candidate("chinchilla"))


def test_where_the_law_holds_everywhere_all_rows_are_kept():
    table = grid()
    target = {"N": np.array([3e9]), "D": np.array([3e11])}
    choice = backtest.choose(table, target, among=("chinchilla",))
    assert choice.candidate == Candidate("chinchilla")
    assert max(score for _, score in choice.tried) < 1e-5


def test_a_window_too_narrow_for_the_smaller_fits_leaves_the_comparison():
    wide, narrow = Candidate("chinchilla"), Candidate("chinchilla", rows.WINDOWS[-1])
    misses = [backtest.Miss("chinchilla", "C", "fold", row, 0.01, 0.1) for row in range(6)]
    found = backtest._common({wide: tuple(misses), narrow: tuple(misses[:4])})
    assert set(found) == {wide}
    assert len(found[wide]) == 6


def test_most_of_the_targets_decide_which_hold_outs_are_like_them():
    table = grid()
    longer = {"N": np.full(3, 1e8), "D": np.array([1e11, 1e11, 1e12])}
    assert backtest.question(table, longer) == "D"
    mixed = {"N": np.array([1e8, 1e9, 1e9]), "D": np.array([1e11, 1e10, 1e11])}
    assert backtest.question(table, mixed) == "C"


# --- intervals


def test_rivals_widen_the_interval_by_how_far_they_lie():
    table = budgets(noise=0.003)
    target = {"N": np.array([3e9]), "D": np.array([3e11])}
    alone = intervals.forecast("chinchilla", table, target, draws=50)
    other = Candidate("chinchilla", rows.WINDOWS[-1])
    beside = intervals.forecast("chinchilla", table, target, draws=50, rivals={other: 1.0})
    value = laws.get("chinchilla").predict(other.fit(table).params, target)
    far = float(np.abs(np.log(value / alone.value))[0])
    assert far > 0
    assert beside.value == alone.value
    half = [float(np.log(f.high / f.value)[0]) for f in (alone, beside)]
    assert half[1] ** 2 - half[0] ** 2 == pytest.approx((intervals.RIVALS * far) ** 2 / 2)


def test_what_repeats_and_residuals_tell_is_in_the_interval():
    table = grid()
    twice = {k: np.tile(v, 2) for k, v in table.items()}
    twice["loss"] = twice["loss"] * np.exp(np.repeat([0.01, -0.01], 36))
    target = {"N": np.array([3e8]), "D": np.array([3e10])}
    exact, noisy = (intervals.forecast("chinchilla", t, target, draws=20) for t in (table, twice))
    assert exact.parts["noise"] < 1e-5
    assert noisy.parts["noise"] == pytest.approx(1.4826 * 0.01 * 2**0.5, rel=0.05)
    assert float(np.log(noisy.high / noisy.value)[0]) > 0.02


@pytest.mark.slow
def test_ninety_percent_hold_on_simulated_ladders_by_choice():
    """4 shapes × 4 rungs, seed noise 0.3%, and a shape of 3 times the size: at least 85% of 40 inside, none absurd."""
    rng = np.random.default_rng(3)
    n, d = (v.ravel() for v in np.meshgrid(2e4 * 2.6 ** np.arange(5), 1e6 * 2.0 ** np.arange(4), indexing="ij"))
    inside, width = [], []
    for _ in range(40):
        a, b = rng.uniform(0.2, 0.5, 2)
        loss = (1.2 + (n / 2e4) ** -a + 0.8 * (d / 1e6) ** -b) * np.exp(rng.normal(0, 0.003, 20))
        table = {"N": n[:16], "D": d[:16], "loss": loss[:16], "run": np.repeat(np.arange(4.0), 4)}
        target = {"N": n[19:], "D": d[19:]}
        choice = backtest.choose(table, target, among=("floor", "size"))
        found = intervals.of_choice(choice, table, target, draws=40)
        inside.append(found.low[0] <= loss[19] <= found.high[0])
        width.append(np.log(found.high[0] / found.low[0]) / 2)
    assert np.mean(inside) >= 0.85
    assert np.median(width) <= 0.04
