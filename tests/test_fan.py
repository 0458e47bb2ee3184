"""The fan: loss, optimum and regret in one fit; recovered truths, derivatives, invariances, bad tables."""

from __future__ import annotations

import numpy as np
import pytest

from tunnel import laws
from tunnel.backtests import backtest, intervals
from tunnel.fitting import powers
from tunnel.laws import Misfit, fan

TRUTH = {
    "E": 1.8, "A": 400.0, "B": 900.0, "alpha": 0.34, "beta": 0.29, "h": 0.05,
    "lr": 0.05, "lr_N": -0.3, "lr_D": -0.05, "lr_B": 0.3, "batch": 2.0**18,
}  # fmt: skip
FAR = {"N": np.array([1e9, 3e9]), "D": np.array([1e11, 1e11])}


def table(noise=1e-3, seed=0, batches=(2.0**17, 2.0**18, 2.0**19), factors=(0.25, 0.5, 1, 2, 4)):
    axes = ([1e7, 3e7, 1e8, 3e8], [1e9, 4e9, 1.6e10], factors, batches)
    n, d, factor, batch = (v.ravel() for v in np.meshgrid(*axes))
    own = {"N": n, "D": d, "batch_tokens": batch}
    own["lr"] = 1.2 * factor * fan.best_lr(TRUTH, {"N": n, "D": d})
    loss = fan.predict(TRUTH, own) * np.exp(np.random.default_rng(seed).normal(0, noise, len(n)))
    return laws.columns(own | {"loss": loss})


@pytest.mark.parametrize("batches", [(2.0**17, 2.0**18, 2.0**19), (2.0**18,)])
def test_truth_is_recovered(batches):
    found = fan.fit(table(0.0, batches=batches))
    assert found.status == "converged"
    assert found.objective < 1e-20
    truth = TRUTH | ({} if len(batches) > 1 else {"lr_B": 0.0})
    assert found.params == pytest.approx(truth, rel=1e-4)


def test_no_batch_column_is_one_batch():
    known = table(batches=(2.0**18,))
    without = {k: v for k, v in known.items() if k != "batch_tokens"}
    here, there = fan.fit(known), fan.fit(without)
    assert there.params["batch"] == 1.0
    assert {**there.params, "batch": 0} == pytest.approx({**here.params, "batch": 0}, rel=1e-6)


def test_targets_without_lr_are_answered_at_its_best_and_no_lr_is_better():
    p = fan.fit(table()).params
    best = fan.best_lr(p, FAR)
    least = fan.predict(p, FAR)
    assert fan.predict(p, FAR | {"lr": best}) == pytest.approx(least, rel=1e-12)
    for off in (0.5, 2.0):
        assert (fan.predict(p, FAR | {"lr": best * off}) > least + 0.01).all()
    part = FAR | {"lr": np.array([np.nan, best[1] * 2])}  # a target whose lr is left empty
    assert fan.predict(p, part)[0] == pytest.approx(least[0])


def test_derivatives_are_those_of_the_objective():
    z, centre, y, w = fan.logs_of(table(1e-2))
    theta = fan.engine(TRUTH, centre)[None]
    here = powers.evaluate(fan.MODEL, theta, z, y, w, Misfit(0.5))
    for j in range(theta.shape[1]):
        step = 1e-6 * (np.arange(theta.shape[1]) == j)
        up, down = (powers.evaluate(fan.MODEL, theta + s, z, y, w, Misfit(0.5)) for s in (step, -step))
        assert (up.f - down.f) / 2e-6 == pytest.approx(here.g[:, j], rel=1e-4, abs=1e-7)
        assert (up.g - down.g)[0] / 2e-6 == pytest.approx(here.h[0, j], rel=1e-3, abs=1e-5)


def test_engine_and_natural_units_cancel():
    _, centre, _, _ = fan.logs_of(table())
    theta = fan.engine(TRUTH, centre)
    back = fan.natural(theta[None], centre + 0, TRUTH["batch"])[0]
    assert dict(zip(fan.PARAMS, back, strict=True)) == pytest.approx(TRUTH, rel=1e-12)
    elsewhere = fan.engine(TRUTH, centre + 1.0)  # another centre, as of a thinned table: the same law
    again = fan.natural(elsewhere[None], centre + 1.0, TRUTH["batch"])[0]
    assert again == pytest.approx(back, rel=1e-12)


def test_units_and_row_order_change_nothing():
    own = table()
    here = fan.fit(own)
    order = np.random.default_rng(0).permutation(len(own["N"]))
    there = fan.fit(laws.take(own, order) | {"lr": own["lr"][order] * 1e3, "N": own["N"][order] / 1e6})
    assert there.objective == pytest.approx(here.objective, rel=1e-6)
    for k in ("alpha", "beta", "lr_N", "lr_D", "lr_B", "h", "E"):
        assert there.params[k] == pytest.approx(here.params[k], rel=1e-4), k


def test_a_refit_of_the_same_rows_is_the_fit_and_weights_count_as_repeats():
    own = table()
    found = fan.fit(own)
    n = len(own["N"])
    draws = fan.refit(own, found, np.stack([np.ones(n), np.where(np.arange(n) < 40, 2.0, 1.0)]))
    assert draws[0] == pytest.approx(list(found.params.values()), rel=1e-3)
    twice = fan.fit(laws.take(own, np.r_[np.arange(n), np.arange(40)]))
    assert draws[1] == pytest.approx(list(twice.params.values()), rel=2e-3)


def test_diverged_rows_are_no_part_of_the_fit():
    own = table()
    here = fan.fit(own)
    bad = laws.take(own, np.arange(3)) | {"lr": own["lr"][:3] * 50, "loss": np.array([11.0, np.nan, np.inf])}
    both = {k: np.concatenate([own[k], bad[k]]) for k in own}
    assert fan.fit(both).params == pytest.approx(here.params, rel=1e-6)


def test_hold_outs_prefer_the_fan_where_rows_differ_in_lr():
    own = table(batches=(2.0**18,), factors=(0.5, 1, 2))
    missed = {"chinchilla": [], "fan": []}
    for fold in backtest.holdouts(own, ("N", "D")):
        for name, seen in missed.items():
            seen += [abs(m.error) for m in backtest.misses(name, own, fold, fold.test)]
    assert len(missed["fan"]) == len(missed["chinchilla"]) >= 9  # the largest size left out; fewer levels fit no fan
    assert np.mean(missed["fan"]) < 0.5 * np.mean(missed["chinchilla"])


def test_regret_at_the_best_is_what_its_uncertainty_costs():
    own = table(3e-3)
    found = fan.fit(own)
    known = fan.posterior(own, found, FAR)
    beside = fan.beside(own, found, FAR)
    for i, p in enumerate(known):
        low, high = p.interval()
        assert low < p.at < high
        assert beside["lr_low"][i] < beside["lr_best"][i] < beside["lr_high"][i]
        spread = np.mean((p.draws - p.at) ** 2) * found.params["h"] / fan.predict(found.params, FAR)[i]
        assert p.regret(p.at) == pytest.approx(spread, rel=0.2)
        assert p.regret(p.at + np.log(2)) > 10 * p.regret(p.at)
        assert p.safest() == pytest.approx(p.at, abs=high - low)


@pytest.mark.slow
def test_intervals_of_lr_hold_nine_times_in_ten():
    inside, best = [], fan.best_lr(TRUTH, FAR)
    for seed in range(40):
        own = table(2e-3, seed)
        found = fan.beside(own, fan.fit(own), FAR)
        inside += list((found["lr_low"] <= best) & (best <= found["lr_high"]))
    assert np.mean(inside) > 0.8


@pytest.mark.parametrize(
    ("change", "status", "reason"),
    [
        (lambda t: laws.take(t, np.arange(0)), "too few points", "0 rows"),
        (lambda t: laws.take(t, np.arange(9)), "too few points", "9 rows"),
        (lambda t: {k: v for k, v in t.items() if k != "lr"}, "too few points", "0 rows"),
        (lambda t: t | {"lr": np.full(len(t["N"]), 1e-3)}, "too few points", "lr has 1 distinct"),
        (lambda t: t | {"N": np.full(len(t["N"]), 1e8)}, "too few points", "N has 1 distinct"),
        (lambda t: t | {"loss": -t["loss"]}, "too few points", "0 rows"),
        (lambda t: t | {"loss": 2 * fan.predict(TRUTH, FAR)[0] - t["loss"] + 3}, "flat", "no curvature"),
        (lambda t: t | {"lr": t["lr"] * 0 + np.geomspace(1e-3, 1e-2, len(t["N"]))}, None, ""),
    ],
)
def test_bad_tables_get_a_status_and_a_reason(change, status, reason):
    found = fan.fit(change(table()))
    assert found.status in ({status} if status else laws.STATUSES)
    assert reason in found.reason
    assert found.usable == all(np.isfinite(v) for v in found.params.values())


def test_a_valley_whose_bottom_was_not_tried_is_said():
    found = fan.fit(table(factors=(3, 5, 8)))
    assert (found.status, "widen" in found.reason) == ("bound hit", True)


def test_the_bootstrap_is_one_batch_and_covers_the_fit():
    own = table()
    found = fan.fit(own)
    ranges = intervals.bootstrap("fan", own, found, draws=100).ranges()
    for k in ("E", "alpha", "h", "lr_N", "lr_B"):
        assert ranges[k][0] < found.params[k] < ranges[k][1]
    assert ranges["batch"] == pytest.approx((2.0**18, 2.0**18))
