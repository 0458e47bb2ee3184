"""The forms kaplan, shape and isoflop, what a fit minimises, and what is told beside a fit."""

from __future__ import annotations

import numpy as np
import pytest

from tunnel import laws
from tunnel.backtests import doubts
from tunnel.backtests.backtest import Candidate
from tunnel.laws import MISFITS, Misfit, chinchilla, isoflop, kaplan, shape

N, D = (v.ravel() for v in np.meshgrid(np.geomspace(1e7, 1e9, 6), np.geomspace(1e9, 1e11, 6)))
TRUTH = {"E": 1.8, "A": 400.0, "B": 900.0, "alpha": 0.34, "beta": 0.29}
KAPLAN = {"E": 1.5, "A": 5e8, "B": 1e10, "alpha": 0.24, "beta": 0.3}


def table(loss, noise=0.0, **more):
    return {"N": N, "D": D, "loss": loss * np.exp(np.random.default_rng(0).normal(0, noise, len(N)))} | more


def direct(noise=0.0):
    return table(1.8 + 400 / N**0.34 + 900 / D**0.29, noise)


def budgets(noise=0.0, sizes=9):
    """Six budgets about the optimum of TRUTH."""
    c = np.repeat(np.geomspace(1e18, 1e20, 6), sizes)
    best = np.array([chinchilla.optimal(TRUTH, x)[0] for x in c])
    n = best * np.tile(np.geomspace(0.2, 5, sizes), 6)
    loss = chinchilla.predict(TRUTH, {"N": n, "D": c / 6 / n})
    return {"N": n, "D": c / 6 / n, "loss": loss * np.exp(np.random.default_rng(1).normal(0, noise, len(n)))}


def shapes(noise=0.0):
    width, depth, d = (np.ravel(v) for v in np.meshgrid([128.0, 192, 256, 512], [2.0, 4, 8, 16], [1e8, 4e8, 2e9]))
    loss = 1.5 + 2 * (width / 128) ** -0.5 + 0.8 * (depth / 2) ** -0.6 + 0.7 * (d / 1e8) ** -0.3
    rng = np.random.default_rng(0)
    n = 12 * width**2 * depth
    return {"width": width, "depth": depth, "N": n, "D": d, "loss": loss * np.exp(rng.normal(0, noise, len(n)))}


def test_kaplans_norm_is_recovered():
    found = kaplan.fit(table(kaplan.predict(KAPLAN, {"N": N, "D": D})))
    assert found.status == "converged"
    assert found.params == pytest.approx(KAPLAN, rel=1e-3)


def test_kaplans_formula_is_the_papers():
    n, d = 3e8, 2e10
    written = ((KAPLAN["A"] / n) ** (0.24 / 0.3) + KAPLAN["B"] / d) ** 0.3 + 1.5
    assert kaplan.predict(KAPLAN, {"N": [n], "D": [d]})[0] == pytest.approx(written)


def test_shape_finds_the_terms_that_vary():
    rows = shapes()
    found = shape.fit(rows)
    assert [found.params[f"a_{k}"] for k in ("width", "depth", "D")] == pytest.approx([0.5, 0.6, 0.3], rel=1e-3)
    assert found.params["c_N"] == pytest.approx(0, abs=1e-9)
    one = laws.take(rows, rows["depth"] == 4)
    fixed = shape.fit(one)
    assert (fixed.params["c_depth"], fixed.params["a_depth"]) == (0, 0)
    assert shape.predict(fixed.params, one) == pytest.approx(one["loss"], rel=1e-3)


def test_shape_says_what_it_lacks():
    assert "width" in shape.answers(direct(), {"N": [1e9], "D": [1e10]})
    assert "targets have no width" in shape.answers(shapes(), {"N": [1e9], "D": [1e10]})
    assert shape.fit(direct()).status == "too few points"


def test_isoflop_finds_the_path_of_the_minima():
    found = isoflop.fit(budgets())
    assert found.status == "converged"
    n, d = isoflop.optimal(found.params, 1e21)
    best = chinchilla.optimal(TRUTH, 1e21)
    assert [n, d] == pytest.approx(list(best), rel=0.05)
    ahead = {"N": best[0][None], "D": best[1][None]}
    assert isoflop.predict(found.params, ahead) == pytest.approx(chinchilla.predict(TRUTH, ahead), rel=2e-3)
    assert isoflop.answers(budgets(), ahead) == ""
    assert "off the budgets" in isoflop.answers(budgets(), {"N": ahead["N"] * 20, "D": ahead["D"] / 20})


def test_isoflop_uses_the_readings_near_the_minima_alone():
    rows = budgets()
    spoilt = rows | {"loss": rows["loss"] * np.where(np.tile(np.arange(9), 6) % 8 == 0, 1.2, 1.0)}  # the far ends
    assert isoflop.fit(spoilt).params == pytest.approx(isoflop.fit(rows).params, rel=1e-6)


def test_isoflop_refuses_budgets_without_a_minimum():
    rows = budgets()
    falling = laws.take(rows, np.tile(np.arange(9) < 4, 6) | (np.arange(54) >= 9))  # the first has its left side only
    found = isoflop.fit(falling)
    assert "edge" in found.reason
    assert found.usable
    one_sided = laws.take(rows, np.tile(np.arange(9) < 4, 6))
    assert isoflop.fit(one_sided).status == "too few points"


@pytest.mark.parametrize("name", ["chinchilla", "kaplan", "frontier", "isoflop", "shape"])
def test_a_refit_of_the_same_rows_is_the_fit(name):
    law = laws.get(name)
    rows = {"shape": shapes, "isoflop": budgets}.get(name, direct)(0.003)
    rows = laws.take(laws.columns(rows), law.select(rows))
    found = law.fit(rows)
    own = np.array([found.params[p] for p in law.PARAMS])
    for draw in law.refit(rows, found, np.ones((2, len(rows["N"])))):
        again = dict(zip(law.PARAMS, draw, strict=True))
        assert law.predict(again, rows) == pytest.approx(law.predict(dict(found.params), rows), rel=1e-5)
    losses = law.refit(rows, found, losses=2 * rows["loss"][None])[0]
    assert len(losses) == len(own)
    doubled = law.predict(dict(zip(law.PARAMS, losses, strict=True)), rows)
    assert doubled == pytest.approx(2 * law.predict(dict(found.params), rows), rel=1e-4)


@pytest.mark.parametrize("name", [n for n in laws.names() if laws.get(n).KIND == "loss"])
@pytest.mark.parametrize("misfit", MISFITS)
def test_every_law_takes_every_misfit(name, misfit):
    rows = shapes(0.003) if name == "shape" else budgets(0.003)
    found = laws.get(name).fit(rows, MISFITS[misfit])
    assert found.status in laws.STATUSES
    assert found.delta == MISFITS[misfit]


def test_least_squares_is_a_huber_of_no_end():
    rows = direct(0.01)
    squares, wide = chinchilla.fit(rows, MISFITS["squares"]), chinchilla.fit(rows, 10.0)
    assert squares.objective == pytest.approx(wide.objective, rel=1e-9)
    left = np.log(rows["loss"] / chinchilla.predict(squares.params, rows))
    assert squares.objective == pytest.approx((left**2).sum() / 2)


def test_an_envelope_lies_along_the_best_tuned_readings():
    rows = direct()
    lost = rows | {"loss": rows["loss"] * np.exp(np.random.default_rng(3).exponential(0.02, 36))}
    ask = {"N": np.array([3e8]), "D": np.array([3e10])}
    errors = {
        k: abs(np.log(chinchilla.predict(chinchilla.fit(lost, m).params, ask) / chinchilla.predict(TRUTH, ask))[0])
        for k, m in MISFITS.items()
    }
    assert errors["envelope"] < 0.5 * min(errors["huber"], errors["squares"])
    below = np.mean(lost["loss"] < chinchilla.predict(chinchilla.fit(lost, MISFITS["envelope"]).params, lost))
    assert below < 0.25


def test_a_floor_that_the_data_does_not_show_is_zero():
    """log E would creep to minus infinity: a fit must reach the bound, and say so."""
    found = chinchilla.fit(table(3 / N**0.02 + 60 / D**0.15))
    assert found.params["E"] == 0
    assert "E = 0" in found.reason


def test_a_pinned_floor_stays_and_costs():
    rows = direct(0.005)
    free = chinchilla.fit(rows)
    for floor in (1.0, 2.0):
        held = chinchilla.FORM.fit(rows, 1e-3, floor)
        assert held.params["E"] == pytest.approx(floor)
        assert held.objective > free.objective


def test_a_floor_in_doubt_is_reported_with_its_spread():
    near = np.geomspace(1e8, 2e8, 6)
    rows = {"N": np.repeat(near, 4), "D": np.tile(np.geomspace(1e9, 4e9, 4), 6)}
    loss = chinchilla.predict(TRUTH, rows) * np.exp(np.random.default_rng(0).normal(0, 0.01, 24))
    rows |= {"loss": loss}
    found = chinchilla.fit(rows)
    assert "E" in found.ranges
    ask = {"N": np.array([1e11]), "D": np.array([1e12])}
    told = doubts.spread(Candidate("chinchilla"), rows, found, ask)
    assert {w["floor"] for w in told} == {"free", *found.ranges["E"]}
    assert len({w["loss"] for w in told}) == 2
    predicted = [w["predicted"][0] for w in told]
    assert min(predicted) < chinchilla.predict(TRUTH, ask)[0] < max(predicted)
    assert doubts.spread(Candidate("chinchilla"), direct(), chinchilla.fit(direct()), None) == []


def test_the_count_that_the_law_holds_in_is_the_stabler():
    n, d = (v.ravel() for v in np.meshgrid(np.geomspace(1e7, 1e9, 4), np.geomspace(1e9, 1e11, 4)))
    whole = n + 3e7 * (n / 1e7) ** 0.4
    rows = {"N": n, "D": d, "loss": 1.8 + 400 / whole**0.34 + 900 / d**0.29, "N_embed": whole}
    found = doubts.counts(Candidate("chinchilla"), rows)
    assert found["N"]["stabler"] == "with embeddings"
    assert "C" not in found
    assert doubts.counts(Candidate("chinchilla"), {k: rows[k] for k in ("N", "D", "loss")}) == {}


def test_misfits_add_up():
    r, w = np.array([0.0005, -0.0005, 0.01, -0.01]), np.ones(4)
    assert Misfit().total(r, w) == pytest.approx(2 * (0.0005**2 / 2) + 2 * 1e-3 * (0.01 - 5e-4))
    assert Misfit(np.inf).total(r, w) == pytest.approx((r**2).sum() / 2)
    assert Misfit(above=0.0).total(r, w) == pytest.approx(Misfit().total(r, w) / 2)
