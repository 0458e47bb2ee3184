"""Minima that were put in are found again, with intervals that say how well."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tunnel import valley

Array = np.ndarray
LR0, A, B = math.log(0.02), -0.06, -0.12  # log lr* = LR0 + A·log(N/1e5) + B·log(D/1e5)


def best_lr(n: float, d: float) -> float:
    return LR0 + A * math.log(n / 1e5) + B * math.log(d / 1e5)


def best_loss(n: float, d: float) -> float:
    return 0.5 + 30 / n**0.34 + 50 / d**0.32


def fans(
    factors: tuple[float, ...] = (0.5, 1, 2), h: float = 0.03, noise: float = 0.0, seed: int = 0
) -> dict[str, Array]:
    """Four shapes on a path, four rungs, a fan each around lr 0.02; log loss is a parabola in log lr."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for i, (width, depth) in enumerate([(32, 2), (48, 3), (64, 4), (80, 5)]):
        n = 12.0 * depth * width**2
        for f in factors:
            for d in (6.25e4, 1.25e5, 2.5e5, 5e5):
                x = math.log(0.02 * f)
                y = math.log(best_loss(n, d)) + h * (x - best_lr(n, d)) ** 2 + noise * rng.normal()
                rows.append(
                    {
                        "N": n,
                        "D": d,
                        "width": width,
                        "depth": depth,
                        "lr": math.exp(x),
                        "loss": math.exp(y),
                        "run": f"{i} {f}",
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
