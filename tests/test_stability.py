"""Where training breaks and how far it scatters: truths that were put in are found again."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tunnel.quantiles import chi_square, student
from tunnel.valleys import stability

SIZES = (1e4, 1e5, 1e6, 1e7)
GRID = np.geomspace(1e-3, 10, 27)


def table(a: float, b: float, sizes: tuple[float, ...] = SIZES) -> dict[str, np.ndarray]:
    """Every lr of the grid at every size; above exp(a)·N^b it diverged."""
    n, lr = (v.ravel() for v in np.meshgrid(sizes, GRID, indexing="ij"))
    return {"N": n, "lr": lr, "status": np.where(lr > math.exp(a) * n**b, "diverged", "complete")}


@pytest.mark.parametrize("b", [-0.3, 0.0, -0.1])
def test_the_law_of_lr_max_is_found(b: float) -> None:
    a = math.log(0.2) - b * math.log(1e5)
    found = stability.lr_max(table(a, b))
    assert found.status == "fitted"
    assert found.b == pytest.approx(b, abs=0.06)
    for n in (*SIZES, 1e8):
        low, high = found.interval(n) or (0, 0)
        truth = math.exp(a) * n**b
        assert found.at(n) == pytest.approx(truth, rel=0.5)
        assert low / 1.3 <= truth <= high * 1.3


def test_each_bracket_holds_its_truth() -> None:
    found = stability.lr_max(table(math.log(0.2), 0.0))
    for b in found.brackets:
        assert b.high is not None
        assert b.low <= 0.2 < b.high
        assert b.low < (b.at or 0) < b.high


@pytest.mark.parametrize(
    ("sizes", "a", "status", "at"), [(SIZES, 10.0, "none diverged", None), ((1e5,), math.log(0.2), "one shape", 0.2)]
)
def test_little_evidence_is_a_status(sizes: tuple[float, ...], a: float, status: str, at: float | None) -> None:
    found = stability.lr_max(table(a, 0.0, sizes))
    assert found.status == status
    assert found.at(1e7) == (None if at is None else pytest.approx(at, rel=0.25))
    assert (found.interval(1e7) is None) == (at is None)


def test_one_seed_that_diverged_is_enough() -> None:
    found = stability.lr_max(
        {"N": [1e5] * 4, "lr": [0.1, 0.2, 0.2, 0.4], "status": ["complete", "complete", "diverged", "complete"]}
    )
    assert (found.brackets[0].low, found.brackets[0].high) == (0.1, 0.2)
    found = stability.lr_max({"N": [1e5], "lr": [0.4], "status": ["diverged"]})
    assert (found.brackets[0].low, found.brackets[0].high) == (0.2, 0.4)


@pytest.mark.parametrize("noise", [0.0005, 0.006])
def test_the_noise_floor_is_found_and_its_interval_holds_it(noise: float) -> None:
    inside = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        losses = [2 * (1 + 0.01 * i) * (1 + noise * rng.normal(size=3)) for i in range(4)]
        far = 3 * (1 + 0.2 * rng.normal(size=3))  # a valley's wall scatters more, and says nothing of the floor
        floor = stability.noise_floor([*losses, far])
        assert floor is not None
        assert (floor.freedom, floor.seeds) == (8, 3)
        inside += floor.low <= noise <= floor.high
    assert 46 <= inside <= 60  # 54 expected of a 90% interval


def test_one_seed_has_no_floor() -> None:
    assert stability.noise_floor([np.array([2.0]), np.array([2.1])]) is None


@pytest.mark.parametrize("effect", [1.0, 1.5])
def test_the_seeds_needed_do_see_the_effect(effect: float) -> None:
    """In units of the noise: of simulated pairs of samples, at least 80% are told apart at one-sided 5%."""
    n = stability.seeds_needed(effect, 1.0)
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2000, n)), effect + rng.normal(size=(2000, n))
    seen = (b.mean(1) - a.mean(1)) / math.sqrt(2 / n) > 1.645
    assert 0.77 < seen.mean() < 0.9
    fewer = (b[:, : n // 2].mean(1) - a[:, : n // 2].mean(1)) / math.sqrt(2 / (n // 2)) > 1.645
    assert fewer.mean() < 0.7


@pytest.mark.parametrize(("p", "free", "t", "chi"), [(0.95, 2, 2.920, 5.991), (0.95, 10, 1.812, 18.307)])
def test_quantiles_are_those_of_the_tables(p: float, free: float, t: float, chi: float) -> None:
    assert student(p, free) == pytest.approx(t, rel=1e-3)
    assert chi_square(p, free) == pytest.approx(chi, rel=1e-3)
