"""Fans that widen by themselves: where, how often, and never before everything that decides is known."""

from __future__ import annotations

import math
from typing import Any

import pytest

from tunnel.valleys.fans import widened

INF = math.inf


def fan(*lrs: float, **rest: Any) -> list[dict[str, Any]]:
    return [{"width": 32, "depth": 2, "lr": lr, **rest} for lr in lrs]


def bowl(best: float) -> Any:
    return lambda c, seed: 2 + math.log2(c["lr"] / best) ** 2 + 0.001 * seed


def run(listed: list[dict[str, Any]], loss: Any, most: int = 2, seeds: tuple[int, ...] = (0,)) -> list[float]:
    """As a sweep asks: what is added is measured, until nothing more is added."""
    known: dict[tuple[float, int], float] = {(c["lr"], s): loss(c, s) for c in listed for s in seeds}
    while True:
        more = widened(listed, seeds, lambda c, s, known=known: known.get((c["lr"], s)), most)
        new = {(c["lr"], s): loss(c, s) for c in more for s in seeds} | known
        if new == known:
            return [c["lr"] for c in more]
        known = new


@pytest.mark.parametrize(
    ("best", "most", "added"),
    [
        (2.0, 2, []),  # between its neighbours
        (1.4, 2, [0.5]),  # nearest to the lower edge: one more shows the other side
        (0.3, 2, [0.5, 0.25]),  # two more, and their minimum lies inside
        (0.01, 2, [0.5, 0.25]),  # still at the edge, and no more is allowed
        (0.01, 0, []),
        (16.0, 3, [8.0, 16.0, 32.0]),
    ],
)
def test_a_fan_grows_beyond_the_edge_where_its_best_lies(best: float, most: int, added: list[float]) -> None:
    assert run(fan(1.0, 2.0, 4.0), bowl(best), most) == pytest.approx(added)


def test_an_uneven_fan_keeps_its_neighbours_ratio() -> None:
    assert run(fan(1.0, 3.0, 4.0), bowl(0.1), 1) == pytest.approx([1 / 3])
    assert run(fan(1.0, 3.0, 4.0), bowl(99.0), 1) == pytest.approx([16 / 3])


@pytest.mark.parametrize(
    ("losses", "added"),
    [
        ({1.0: 2.0, 2.0: 2.1, 4.0: INF}, [0.5]),
        ({1.0: 2.2, 2.0: 2.1, 4.0: INF}, []),  # the diverged lr closes its side
        ({1.0: INF, 2.0: INF, 4.0: INF}, [0.5]),  # a valley, if there is one, lies lower
        ({1.0: 2.2, 2.0: 2.1, 4.0: None}, []),  # not known yet
        ({1.0: 2.0, 2.0: 2.1, 4.0: None}, []),
        ({1.0: 2.0, 2.0: 2.0, 4.0: 2.0}, [0.5]),
    ],
)
def test_diverged_and_unknown(losses: dict[float, float | None], added: list[float]) -> None:
    assert [c["lr"] for c in widened(fan(1.0, 2.0, 4.0), [0], lambda c, s: losses.get(c["lr"]), 2)] == added


def test_the_mean_over_seeds_decides_and_one_diverged_seed_closes() -> None:
    losses = {(1.0, 0): 2.0, (1.0, 1): 2.6, (2.0, 0): 2.2, (2.0, 1): 2.2, (4.0, 0): 2.3, (4.0, 1): 2.3}
    lrs = fan(1.0, 2.0, 4.0)
    assert widened(lrs, [0], lambda c, s: losses.get((c["lr"], s)), 2) == fan(0.5)
    assert widened(lrs, [0, 1], lambda c, s: losses.get((c["lr"], s)), 2) == []
    assert widened(lrs, [0, 1, 2], lambda c, s: losses.get((c["lr"], s)), 2) == []
    losses[1.0, 1] = INF
    assert widened(lrs, [0, 1], lambda c, s: losses.get((c["lr"], s)), 2) == []


def test_groups_are_apart_and_two_lrs_are_no_fan() -> None:
    listed = [*fan(1.0, 2.0, 4.0, rules="minicpm"), *fan(1.0, 2.0, 4.0, rules="completep"), *fan(1.0, 2.0, width=64)]
    best = {"minicpm": 0.9, "completep": 9.0}
    more = widened(listed, [0], lambda c, s: bowl(best.get(c.get("rules"), 0.1))(c, s) if c["lr"] >= 1 else None, 2)
    assert [(c["rules"], c["lr"]) for c in more if "rules" in c] == [
        ("minicpm", 0.5),
        ("completep", 8.0),
        ("completep", 16.0),
    ]
    assert len(more) == 3
