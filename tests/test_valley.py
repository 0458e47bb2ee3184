"""Minima that were put in are found again, with intervals that say how well."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tunnel.valleys import regret, valley

Array = np.ndarray
LR0, A, B = math.log(0.02), -0.06, -0.12  # log lr* = LR0 + A·log(N/1e5) + B·log(D/1e5)
E = 0.4  # and + E·log(batch/512)


def best_lr(n: float, d: float) -> float:
    return LR0 + A * math.log(n / 1e5) + B * math.log(d / 1e5)


def best_loss(n: float, d: float) -> float:
    return 0.5 + 30 / n**0.34 + 50 / d**0.32


def fans(
    factors: tuple[float, ...] = (0.5, 1, 2),
    h: float = 0.03,
    noise: float = 0.0,
    seed: int = 0,
    batches: tuple[int, ...] = (512,),
    skew: float = 0.0,
) -> dict[str, Array]:
    """Four shapes on a path, four rungs, a fan each around lr 0.02; log loss is a parabola in log lr, or leans.

    lr* moves with the batch by the power E; at each batch the loss has a level of its own.
    """
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for i, (width, depth) in enumerate([(32, 2), (48, 3), (64, 4), (80, 5)]):
        n = 12.0 * depth * width**2
        for f, batch in ((f, b) for b in batches for f in factors):
            for d in (6.25e4, 1.25e5, 2.5e5, 5e5):
                x = math.log(0.02 * f)
                off = x - best_lr(n, d) - E * math.log(batch / 512)
                y = math.log(best_loss(n, d)) + h * float(valley.bend(np.array(off), skew)) + noise * rng.normal()
                y += 0.003 * math.log(batch / 512) ** 2
                rows.append(
                    {
                        "N": n,
                        "D": d,
                        "width": width,
                        "depth": depth,
                        "lr": math.exp(x),
                        "loss": math.exp(y),
                        "run": f"{i} {f} {batch}",
                        "batch_tokens": float(batch),
                    }
                )
    return {k: np.array([r[k] for r in rows]) for k in rows[0]}


# surface


@pytest.mark.parametrize("at", [None, 5e5])
def test_a_surface_finds_the_minima_and_their_drift(at: float | None) -> None:
    s = valley.surface(fans(), at=at)
    assert s.curved
    assert len(s.log_loss) == 16
    for i in range(16):
        n, d = float(s.cells["N"][i]), float(s.cells["D"][i])
        assert s.log_loss[i] == pytest.approx(math.log(best_loss(n, d)), abs=1e-3)
        assert float(s.log_lr(n, d)) == pytest.approx(best_lr(n, d), abs=0.02)
    assert s.h == pytest.approx(np.full(16, 0.03), rel=0.02)
    assert (s.b, s.c) == pytest.approx((A, B), abs=0.01)


def test_noise_moves_a_minimum_by_no_more_than_it_must() -> None:
    n, d = 12.0 * 5 * 80**2, 5e5
    found = [valley.by_rung(fans(noise=0.002, seed=i)) for i in range(20)]
    off = [float(s.log_lr(n, d)) - best_lr(n, d) for s in found]
    low = [s.log_loss[(s.cells["N"] == n) & (s.cells["D"] == d)][0] - math.log(best_loss(n, d)) for s in found]
    assert abs(np.mean(off)) < 0.1
    assert np.std(off) < 0.2
    assert abs(np.mean(low)) < 0.002


@pytest.mark.parametrize("h", [-0.03, 0.0])
def test_a_surface_that_does_not_turn_up_is_not_curved(h: float) -> None:
    s = valley.surface(fans(h=h))
    if h < 0:
        assert not s.curved
        assert s.log_loss == pytest.approx(valley.surface(fans(h=h)).log_loss)
    assert bool((s.h >= 0).all())
    assert np.isfinite(s.log_loss).all()


def test_a_single_rate_gives_the_readings_themselves() -> None:
    table = fans(factors=(1.0,))
    s = valley.surface(table)
    assert not s.curved
    assert sorted(s.log_loss) == pytest.approx(sorted(np.log(table["loss"])))


def test_trunks_are_drawn_whole_and_the_same_for_a_seed() -> None:
    table = fans(noise=0.003)
    draws, again = valley.bootstrap(table, 30, seed=1), valley.bootstrap(table, 30, seed=1)
    assert [d.log_loss.tolist() for d in draws] == [d.log_loss.tolist() for d in again]
    spread = np.std([d.log_loss for d in draws], axis=0)
    assert bool((spread < 0.02).all())
    assert bool((spread > 1e-5).all())


@pytest.mark.parametrize("batches", [(512, 2048), (256, 512, 1024)])
def test_a_surface_finds_how_the_minima_move_with_the_batch(batches: tuple[int, ...]) -> None:
    table = fans(factors=(0.5, 0.71, 1, 1.41, 2), batches=batches)
    s = valley.by_rung(table)
    assert len(s.log_loss) == 16 * len(batches)
    assert s.e == pytest.approx(E, abs=0.01)
    n, d = float(table["N"].max()), 5e5
    for batch in batches:
        assert float(s.log_lr(n, d, batch)) == pytest.approx(best_lr(n, d) + E * math.log(batch / 512), abs=0.03)
    i = int(np.flatnonzero((s.cells["N"] == n) & (s.cells["D"] == d) & (s.cells["batch_tokens"] == batches[-1]))[0])
    assert s.dips[i] == pytest.approx(float(s.log_lr(n, d, batches[-1])))
    assert valley.surface(fans()).e == 0.0


def test_a_cell_s_intervals_hold_lr_and_loss() -> None:
    """90% intervals of 16 cells in 4 ladders: 3 lrs a shape leave few degrees of freedom, which `widening` pays for."""
    lr, loss = [], []
    for seed in range(4):
        table = fans(noise=0.003, seed=seed)
        s, draws, wide = valley.by_rung(table), valley.bootstrap(table, 60), valley.widening(table)
        for i in range(16):
            n, d = float(s.cells["N"][i]), float(s.cells["D"][i])
            ends = valley.interval(float(s.dips[i]), np.array([x.dips[i] for x in draws if x.curved]), wide)
            lr.append(ends[0] <= best_lr(n, d) <= ends[1])
            ends = valley.interval(float(s.log_loss[i]), np.array([x.log_loss[i] for x in draws]), wide)
            loss.append(ends[0] <= math.log(best_loss(n, d)) <= ends[1])
    assert np.mean(lr) >= 0.75
    assert np.mean(loss) >= 0.75
    assert valley.widening(fans(factors=(0.25, 0.35, 0.5, 0.71, 1, 1.41, 2))) < wide


def test_a_ladder_whose_large_shapes_stop_early_knows_as_much() -> None:
    """Every trunk counts at its own last rung, though one shape alone reaches the longest."""
    whole = fans()
    reached = whole["D"] * whole["N"] <= 1.01 * whole["D"].max() * whole["N"].min()
    short = {k: v[reached] for k, v in whole.items()}
    assert len(np.unique(short["N"])) > 1
    assert len(np.unique(short["N"][short["D"] == short["D"].max()])) == 1
    shapes = np.isin(whole["N"], short["N"])
    assert valley.widening(short) == valley.widening({k: v[shapes] for k, v in whole.items()})


def test_rounding_to_batches_makes_no_rungs() -> None:
    table = {"D": np.array([99_840.0, 100_352, 200_704, 199_680]), "batch_tokens": np.array([512.0, 2048, 2048, 512])}
    assert valley.rungs_of(table).tolist() == [0, 0, 1, 1]
    assert valley.rungs_of({**table, "batch_tokens": np.full(4, 512.0)}).tolist() == [0, 1, 3, 2]


# the lr whose expected loss is least


@pytest.mark.parametrize("skew", [0.0, 1.0])
def test_a_skewed_valley_is_seen_in_wide_fans(skew: float) -> None:
    factors = (0.25, 0.35, 0.5, 0.71, 1, 1.41, 2)
    found = regret.skew(fans(factors, noise=0.0015, skew=skew), draws=30)
    assert found.value == pytest.approx(skew, abs=0.4)
    assert found.seen == (skew > 0)
    s = valley.by_rung(fans(factors, skew=1.0), skew=1.0)
    n, d = 12.0 * 5 * 80**2, 5e5
    assert float(s.log_lr(n, d)) == pytest.approx(best_lr(n, d), abs=0.02)


def test_short_fans_claim_no_skew() -> None:
    assert regret.skew(fans(noise=0.003, skew=1.0)) == regret.Skew(0.0, 0.0, 0.0)


@pytest.mark.parametrize("skew", [-1.0, 0.0, 1.5])
def test_the_safest_lr_is_the_least_of_the_expected_loss(skew: float) -> None:
    rng = np.random.default_rng(0)
    known = regret.Posterior(-4.0, -4.0 + 0.3 * rng.normal(size=200), rng.uniform(0.02, 0.06, 200), skew)
    grid = np.linspace(-5, -3, 2001)
    assert known.safest() == pytest.approx(grid[np.argmin([known.regret(x) for x in grid])], abs=2e-3)
    assert np.sign(round(known.safest() - known.at, 1)) == -np.sign(skew)


def test_a_posterior_is_carried_to_another_batch() -> None:
    known = regret.Posterior(-4.0, np.full(4000, -4.0), np.ones(4000), 0.0)
    far = regret.moved(known, 0.5, 0.2)
    assert far.at == -3.5
    assert far.interval() == pytest.approx((-3.7, -3.3), abs=0.02)


# bowl


def trials(n: int, noise: float = 0.0, seed: int = 0) -> tuple[dict[str, Array], Array]:
    """A search over lr and decay whose best is at lr 0.014, decay 0.2; warmup does nothing."""
    rng = np.random.default_rng(seed)
    x = {"lr": rng.uniform(-5.5, -3, n), "decay": rng.uniform(-2.3, -0.9, n), "warmup": rng.uniform(-4, -2, n)}
    y = 0.6 + 0.04 * (x["lr"] - math.log(0.014)) ** 2 + 0.05 * (x["decay"] - math.log(0.2)) ** 2
    return x, y + noise * rng.normal(size=n)


def test_a_bowl_finds_its_bottom() -> None:
    found = valley.bowl(*trials(40))
    for name, at in (("lr", 0.014), ("decay", 0.2)):
        assert found[name].curved
        assert found[name].at == pytest.approx(math.log(at), abs=1e-6)
        assert found[name].low <= found[name].at + 1e-9
        assert found[name].high >= found[name].at - 1e-9


def test_a_bowl_s_interval_holds_the_truth_nine_times_in_ten() -> None:
    found = [valley.bowl(*trials(40, 0.005, seed))["lr"] for seed in range(20)]
    inside = sum(dip.low <= math.log(0.014) <= dip.high for dip in found)
    assert inside >= 14  # of 20: a 90% interval misses that often once in a thousand
    assert all(dip.high - dip.low < math.log(2) for dip in found)


def test_a_setting_that_does_nothing_or_a_hill_is_not_believed() -> None:
    x, y = trials(40, 0.005)
    assert not valley.bowl({"lr": x["lr"]}, 0.6 - 0.04 * (x["lr"] + 4) ** 2)["lr"].curved
    dip = valley.bowl(x, y)["warmup"]
    assert not dip.curved or dip.high - dip.low > 0.5


def test_too_few_readings_or_no_variation_find_nothing() -> None:
    x, y = trials(7)
    assert valley.bowl(x, y) == {}
    x, y = trials(20)
    assert "decay" not in valley.bowl({**x, "decay": np.full(20, -1.6)}, y)


def test_two_settings_that_trade_are_found_jointly() -> None:
    """lr and decay with a cross term: apart, each is found off its place; forks of a trunk are drawn together."""
    rng = np.random.default_rng(0)
    lr = np.repeat(np.linspace(-5.2, -3.2, 7), 4)
    decay = np.tile(np.log([0.05, 0.1, 0.2, 0.4]), 7)
    dx, dz = lr - math.log(0.014), decay - math.log(0.15)
    y = 0.6 + 0.04 * dx**2 + 0.03 * dz**2 + 0.03 * dx * dz + np.repeat(rng.normal(0, 0.002, 7), 4)
    run = np.repeat(np.arange(7), 4)
    found = valley.basin({"lr": lr, "decay": decay}, y, run, ("lr", "decay"))
    assert found is not None
    assert found.dips["decay"].at == pytest.approx(math.log(0.15), abs=0.1)
    assert found.dips["lr"].at == pytest.approx(math.log(0.014), abs=0.1)
    assert found.low == pytest.approx(0.6, abs=0.004)
    assert found.dips["lr"].low <= math.log(0.014) <= found.dips["lr"].high
    rows = valley.basin({"lr": lr, "decay": decay}, y, None, ("lr", "decay"))
    assert rows is not None
    assert rows.dips["lr"].at == found.dips["lr"].at
    assert rows.dips["lr"].high - rows.dips["lr"].low < found.dips["lr"].high - found.dips["lr"].low
    off = lr > -4.4  # a fan that lies to one side of the minimum: without the cross term decay is off its place
    alone, both = (valley.basin({"lr": lr[off], "decay": decay[off]}, y[off], None, c) for c in (None, ("lr", "decay")))
    assert alone is not None
    assert both is not None
    assert abs(both.dips["decay"].at - math.log(0.15)) < 0.1 < abs(alone.dips["decay"].at - math.log(0.15))


# parabola


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        ([-1, 0, 1], [1, 0, 1], (0, 0)),
        ([-5, -4.5, -4, -3], [4.0, 2.25, 1.0, 0.0], (-3, 0)),
        ([0, 1, 3], [3.0, 1.5, 1.5], (2, 1)),
        ([0, 1], [1, 0], None),
        ([0, 0, 1], [1, 1, 0], None),
        ([-1, 0, 1], [0, 1, 0], None),
    ],
)
def test_parabolas(x: list[float], y: list[float], expected: tuple[float, float] | None) -> None:
    found = valley.parabola(np.array(x, float), np.array(y, float))
    assert found == (expected and pytest.approx(expected, abs=1e-9))
