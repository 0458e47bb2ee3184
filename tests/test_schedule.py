"""The schedule's formulas, as tables."""

from __future__ import annotations

import itertools
import math

import pytest
from conftest import BATCH, run_spec, trunk_spec

from tunnel import schedule

B = 10  # tokens of a batch


@pytest.mark.parametrize(
    ("shape", "expected"),  # at x = 0, 1/4, 1/2, 1
    [
        ("1-sqrt", [1, 0.5, 1 - math.sqrt(0.5), 0]),
        ("linear", [1, 0.75, 0.5, 0]),
        ("cosine", [1, (2 + math.sqrt(2)) / 4, 0.5, 0]),
        ("exponential", [1, 2**-1.375, 2**-2.75, 2**-5.5]),  # half-life K/5.5: ends at 0.022 of the peak
    ],
)
@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_decay_shapes(shape: str, expected: list[float], floor: float) -> None:
    got = [schedule.decay_multiplier(1000 + x, 1000, 400, shape, floor) for x in (0, 100, 200, 400)]
    assert got == pytest.approx([floor + (1 - floor) * f for f in expected])


def test_every_shape_has_its_row_in_the_table_above() -> None:
    assert set(schedule.SHAPES) == {"1-sqrt", "linear", "cosine", "exponential"}
    assert schedule.SHAPES["exponential"](1.0) == pytest.approx(0.022, abs=5e-4)


@pytest.mark.parametrize("shape", schedule.SHAPES)
def test_decays_fall_from_one_and_stay_at_their_end(shape: str) -> None:
    values = [schedule.decay_multiplier(t, 100, 50, shape) for t in range(100, 151)]
    assert values[0] == 1
    assert all(a > b for a, b in itertools.pairwise(values))
    assert schedule.decay_multiplier(999, 100, 50, shape) == values[-1]


def test_warmup_is_s_plus_1_over_w() -> None:
    got = [schedule.warmup_multiplier(s * B, B, 4 * B) for s in range(6)]
    assert got == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert schedule.warmup_multiplier(0, B, 0) == 1


def test_the_phases_meet() -> None:
    """Step by step: warmup of 2, stable of 3, a linear decay of 5 from the token where it starts."""
    got = [schedule.multiplier(s * B, B, 2 * B, 5 * B, 5 * B, "linear") for s in range(10)]
    assert got == pytest.approx([0.5, 1, 1, 1, 1, 1.0, 0.8, 0.6, 0.4, 0.2])


def test_tokens_not_steps() -> None:
    """Where two batch sizes have consumed the same tokens they are at the same place of the decay."""
    for t in range(0, 400, 40):
        assert schedule.multiplier(400 + t, 10, 40, 400, 400, "1-sqrt") == schedule.multiplier(
            400 + t, 40, 40, 400, 400, "1-sqrt"
        )


def test_cosine_baseline_is_one_cosine_from_warmup_to_the_end() -> None:
    run = run_spec(trunk_spec(warmup=2 * BATCH), start=2, length=8, shape="cosine")
    got = [run.multiplier(s * BATCH) for s in range(10)]
    assert got == pytest.approx([0.5, 1.0, *((1 + math.cos(math.pi * k / 8)) / 2 for k in range(8))])


@pytest.mark.parametrize(
    ("tokens", "at_least", "expected"),
    [(100, 0, 100), (104, 0, 100), (105.1, 0, 110), (0.4, 0, 0), (0.4, 1, 10), (1e6 / 3, 0, 333_330)],
)
def test_lengths_are_rounded_once_to_whole_batches(tokens: float, at_least: int, expected: int) -> None:
    assert schedule.whole_batches(tokens, B, at_least) == expected
