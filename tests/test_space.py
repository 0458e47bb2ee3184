"""Ranges and amounts of study files."""

from __future__ import annotations

from typing import Any

import pytest

from tunnel.space import DIMENSIONS, Choice, Range, amount, parse_space, whole


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("500k", 500_000),
        ("90M", 90_000_000),
        ("1.1T", 1_100_000_000_000),
        ("2.5 B", 2_500_000_000),
        ("1e3", 1000),
        (7, 7),
        ("2.3M", 2_300_000),
    ],
)
def test_amounts_carry_units(text: object, tokens: int) -> None:
    assert whole(text) == tokens
    assert isinstance(whole(text), int)


@pytest.mark.parametrize("text", ["90m", "M", "", "1.2.3", "1e5e5", "-5", "ten", "5KB"])
def test_what_is_no_amount(text: str) -> None:
    with pytest.raises(ValueError, match="must be a number"):
        amount(text)


@pytest.mark.parametrize(
    ("space", "parsed"),
    [
        ({"lr": {"low": 1e-3, "high": 1e-1}}, {"lr": Range(1e-3, 1e-1, log=True)}),  # lr is log on its own
        ({"decay": {"low": 0.1, "high": 0.4}}, {"decay": Range(0.1, 0.4)}),
        ({"decay": {"low": 0.1, "high": 0.4, "log": True}}, {"decay": Range(0.1, 0.4, log=True)}),
        ({"width": {"low": 32, "high": 64, "step": 16}}, {"width": Range(32, 64, step=16)}),
        ({"depth": {"low": 1, "high": 6}}, {"depth": Range(1, 6, step=1)}),
        ({"decay_shape": ["linear", "1-sqrt"]}, {"decay_shape": Choice(("linear", "1-sqrt"))}),
        ({"warmup": 0.05, "batch_tokens": "64k"}, {"warmup": 0.05, "batch_tokens": 64_000}),
        ({"min_ratio": 0, "weight_decay": 0}, {"min_ratio": 0, "weight_decay": 0}),
    ],
)
def test_spaces(space: dict[str, Any], parsed: dict[str, Any]) -> None:
    assert parse_space(space) == parsed


@pytest.mark.parametrize(
    ("space", "rule"),
    [
        ({"learning_rate": 0.1}, "space.learning_rate is not a setting; choices: lr, warmup"),
        ({"lr": {"low": 0.1, "high": 0.1}}, "space.lr: low 0.1 must be below high 0.1"),
        ({"lr": {"low": 0.2, "high": 0.1}}, "must be below high"),
        ({"lr": {"low": 0.1}}, "space.lr needs low and high"),
        ({"lr": {"low": 0.1, "high": 1, "steps": 3}}, "got low, high, steps"),
        ({"lr": {"low": 0, "high": 1}}, "lr must be above 0; got 0"),
        ({"lr": -1.0}, "lr must be above 0"),
        ({"lr": float("nan")}, "lr must be"),
        ({"lr": float("inf")}, "lr must be"),
        ({"lr": {"low": 1e-3, "high": float("inf")}}, "lr must be"),
        ({"lr": "0.01"}, "lr must be a number; got '0.01'"),
        ({"lr": True}, "lr must be a number; got True"),
        ({"lr": {"low": 1e-3, "high": 1e-1, "step": 2}}, "space.lr.step belongs to whole numbers"),
        ({"warmup": {"low": 0, "high": 0.1, "log": True}}, "a log range starts above 0"),
        ({"width": {"low": 32, "high": 64, "step": 0}}, "space.width.step must be a whole number above 0"),
        ({"width": {"low": 32, "high": 64, "step": 16, "log": True}}, "log and step exclude each other"),
        ({"width": 32.5}, "width must be a whole number"),
        ({"decay_shape": "sqrt"}, "decay_shape 'sqrt' is unknown; choices: 1-sqrt, linear, cosine, exponential"),
        ({"decay_shape": {"low": 0, "high": 1}}, "has no order"),
        ({"decay": []}, "space.decay is empty"),
        ({"decay": 1.5}, "decay must be above 0 and at most 1; got 1.5"),
        ({"decay": 0.9, "warmup": 0.1}, "warmup 0.1 + decay 0.9 must be below 1"),
        ({"decay": {"low": 0.1, "high": 0.9}, "warmup": {"low": 0.01, "high": 0.2}}, "must be below 1"),
    ],
)
def test_bad_spaces(space: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValueError, match="(?i)" + rule.replace("+", r"\+").replace("(", r"\(")):
        parse_space(space)


def test_every_dimension_says_what_it_means() -> None:
    assert all(
        row.meaning and (row.unit or row.kind == "choice" or name == "beta2") for name, row in DIMENSIONS.items()
    )
