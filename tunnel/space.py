"""What can be searched: one row of `DIMENSIONS` each, and the ranges a study file gives them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tunnel.schedule import SHAPES

Scalar = int | float | str


@dataclass(frozen=True)
class Dimension:
    """One setting that a stage may fix or search."""

    kind: Literal["float", "int", "choice"]
    unit: str
    low: float = 0.0  # a value must be above it ...
    high: float = math.inf  # ... and at most this
    log: bool = False  # always searched on a log scale
    meaning: str = ""
    choices: tuple[str, ...] = ()  # of a choice; none: names, which the study knows


class Table(dict[str, Dimension]):
    """Rows by name; what is there for each of several sources, such as `decay_mix.code`, has one row for all."""

    def __missing__(self, name: str) -> Dimension:
        first, dot, _ = name.partition(".")
        if not dot:
            raise KeyError(name)
        return self[first]


LAYER_MAPS = ("uniform", "last")
LESSON = ("teacher", "temperature", "soft_weight", "hidden_weight", "layer_map")  # what a `distill` stage sets
DIMENSIONS: dict[str, Dimension] = Table(
    {
        "lr": Dimension("float", "per step", log=True, meaning="peak learning rate at the base shape"),
        "warmup": Dimension("float", "fraction of the shortest rung, or tokens", -1e-9, meaning="length of the warmup"),
        "decay": Dimension("float", "fraction of a rung", high=1.0, meaning="length of the decay"),
        "decay_shape": Dimension("choice", "", meaning="shape of the decay", choices=tuple(SHAPES)),
        "half_life": Dimension("float", "fraction of the decay", log=True, meaning="half-life of an exponential decay"),
        "min_ratio": Dimension("float", "of the peak", -1e-9, 1.0, meaning="multiplier at the decay's end"),
        "batch_tokens": Dimension("int", "tokens", log=True, meaning="batch"),
        "weight_decay": Dimension("float", "AdamW's lambda", -1e-9, meaning="weight decay at the base shape"),
        "beta2": Dimension("float", "", high=1.0, meaning="Adam's second beta"),
        "width": Dimension("int", "channels", meaning="width d"),
        "depth": Dimension("int", "layers", meaning="depth L"),
        "flops": Dimension("float", "FLOPs", log=True, meaning="full FLOPs of a trial, from which its tokens follow"),
        "decay_mix": Dimension(
            "float", "of the decay's sequences", -1e-9, 1.0, meaning="a source's share in the decay"
        ),
        "rules": Dimension("choice", "", meaning="rule of transfer, with its open switches: minicpm+depth_lr"),
        "experts": Dimension("int", "of a layer", meaning="experts in place of a feed-forward network; 1: dense"),
        "top_k": Dimension("int", "experts", meaning="experts that a token goes through"),
        "granularity": Dimension("int", "to a network", meaning="how many experts are as wide as the dense network"),
        "balance": Dimension("float", "of the loss", -1e-9, meaning="weight of the experts' balance loss"),
        "upcycle_at": Dimension(
            "float", "fraction of the shortest rung, or tokens", meaning="where a dense trunk becomes a mixture"
        ),
        "masking": Dimension("choice", "", meaning="what an encoder hides as a whole", choices=("words", "tokens")),
        "task": Dimension("choice", "", meaning="what finished models are tuned on: a [[task]]"),
        "model": Dimension("choice", "", meaning="the finished model that is tuned"),
        "teacher": Dimension("choice", "", meaning="whom a student learns from: a stage, or a [[teacher]]"),
        "temperature": Dimension("float", "times", log=True, meaning="temperature of both models' logits"),
        "soft_weight": Dimension("float", "of temperature² · cross-entropy", -1e-9, meaning="weight of soft targets"),
        "hidden_weight": Dimension("float", "of the mean square", -1e-9, meaning="weight of the hidden states"),
        "layer_map": Dimension("choice", "", meaning="the teacher's layers that a student's match", choices=LAYER_MAPS),
    }
)
MIX = "decay_mix"
SHAPE = ("width", "depth")
MIXTURE = ("experts", "top_k", "granularity")
BODY = (*SHAPE, *MIXTURE, "upcycle_at")  # what is trained, not how: never handed on
SCALES = (*SHAPE, "flops")  # what makes a trial large and dear; all others are settings
RULES = ("minicpm", "completep", "standard")
# What no source settles, on top of a rule, after a "+" (SCIENCE §3, open): a tied embedding scaled as a hidden weight
# is, lr × sqrt(L_base/L), weight decay left unscaled.
SWITCHES = ("tied", "depth_lr", "fixed_decay")
UNITS = {"k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}


@dataclass(frozen=True)
class Range:
    """A range to search: ends included; `step` for integers."""

    low: float
    high: float
    log: bool = False
    step: int | None = None


@dataclass(frozen=True)
class Choice:
    """Values without an order."""

    values: tuple[Scalar, ...]


Axis = Range | Choice


def amount(value: object) -> object:
    """90e6 from "90M": numbers in a study file may carry k, M, B or T."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*([0-9.]+(?:e[+-]?\d+)?)\s*([kMBT]?)\s*", value)
        if not match:
            raise ValueError('must be a number, or one with a unit such as "500k", "90M", "1.1T"')
        try:
            return float(match[1]) * UNITS.get(match[2], 1)
        except ValueError as e:
            raise ValueError('must be a number, or one with a unit such as "500k", "90M", "1.1T"') from e
    if isinstance(value, bool):  # Python's true is 1
        raise ValueError("must be a number")
    return value


def whole(value: object) -> object:
    """An amount that must be whole: "2.3M" is, but for float's last digits; 32.5 stays what it is, to be refused."""
    value = amount(value)
    near = isinstance(value, float) and value < 1e18 and math.isclose(value, round(value), rel_tol=1e-12)
    return round(value) if near else value  # type: ignore[call-overload]


def parse_space(space: dict[str, Any]) -> dict[str, Axis | Scalar]:
    """A stage's space table: {low, high, log, step} is a range, a list a choice, anything else a fixed value.

    `decay_mix` has such a value per source, and becomes a setting for each: `decay_mix.code`.
    """
    parsed: dict[str, Axis | Scalar] = {}
    for name, value in by_source(space).items():
        if name.partition(".")[0] not in DIMENSIONS or (name.partition(".")[0] == MIX) != ("." in name):
            raise ValueError(f"space.{name} is not a setting; choices: {', '.join(DIMENSIONS)}")
        if isinstance(value, dict):
            parsed[name] = parse_range(name, value)
        elif isinstance(value, list | tuple):
            if not value:
                raise ValueError(f"space.{name} is empty")
            parsed[name] = Choice(tuple(check_scalar(name, v) for v in value))
        else:
            parsed[name] = check_scalar(name, value)
    longest = {k: v.high if isinstance(v, Range) else v for k, v in parsed.items() if not isinstance(v, Choice)}
    check_lengths(longest.get("warmup", 0.0), longest.get("decay", 0.0))
    check_shares({k: v for k, v in longest.items() if k.startswith(f"{MIX}.")})
    return parsed


def by_source(table: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with `decay_mix = { code = 0.3 }` as `decay_mix.code`: 0.3."""
    found = {k: v for k, v in table.items() if k != MIX}
    mix = table.get(MIX) or {}
    if not isinstance(mix, Mapping):
        raise ValueError(f"{MIX} needs a share for each source: {{ name = 0.3 }}")
    return found | {f"{MIX}.{source}": v for source, v in mix.items()}


def mix_of(values: Mapping[str, Any]) -> dict[str, float]:
    """The inverse, of settings: the shares above 0 by source, in alphabetical order."""
    shares = {k.removeprefix(f"{MIX}."): float(v) for k, v in sorted(values.items()) if k.startswith(f"{MIX}.")}
    return {k: v for k, v in shares.items() if v > 0}


def check_shares(shares: Mapping[str, object]) -> None:
    """The shares of a decay's sources leave nothing below 0 for the trunk's data."""
    total = sum(v for v in shares.values() if isinstance(v, int | float))
    if total > 1 + 1e-9:
        raise ValueError(f"{MIX}: the largest shares sum to {total:.3g}; at most 1")


def parse_range(name: str, table: dict[str, Any]) -> Range:
    row = DIMENSIONS[name]
    unknown = set(table) - {"low", "high", "log", "step"}
    if unknown or not {"low", "high"} <= set(table):
        raise ValueError(f"space.{name} needs low and high, and may have log and step; got {', '.join(table)}")
    if row.kind == "choice":
        raise ValueError(f"space.{name} has no order: give a list of values")
    low, high = (check_scalar(name, table[k]) for k in ("low", "high"))
    assert not isinstance(low, str)
    assert not isinstance(high, str)
    if low >= high:
        raise ValueError(f"space.{name}: low {low} must be below high {high}")
    step = table.get("step")
    if row.kind == "int":
        step = 1 if step is None else step
        if not isinstance(step, int) or step < 1:
            raise ValueError(f"space.{name}.step must be a whole number above 0; got {step!r}")
    elif step is not None:
        raise ValueError(f"space.{name}.step belongs to whole numbers")
    log = table.get("log", row.log)
    if log and low <= 0:
        raise ValueError(f"space.{name}: a log range starts above 0; got low {low}")
    if log and step is not None and step > 1:
        raise ValueError(f"space.{name}: log and step exclude each other")
    return Range(low, high, bool(log), step)


def check_scalar(name: str, value: object) -> Scalar:
    row = DIMENSIONS[name]
    if name == "rules":
        return check_rules(value)
    if row.kind == "choice":
        if not isinstance(value, str) or (row.choices and value not in row.choices):
            raise ValueError(f"{name} {value!r} is unknown; choices: {', '.join(row.choices) or 'a name'}")
        return str(value)
    if row.kind == "int":
        value = whole(value)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or (row.kind == "int" and not isinstance(value, int)):
        raise ValueError(f"{name} must be a {'whole ' if row.kind == 'int' else ''}number; got {value!r}")
    assert isinstance(value, int | float)
    if not (row.low < value <= row.high and math.isfinite(value)):
        most = f" and at most {row.high:g}" if math.isfinite(row.high) else ""
        least = f"{'at least' if row.low < 0 else 'above'} {max(row.low, 0):g}"
        raise ValueError(f"{name} must be {least}{most}; got {value}")
    return value


def check_rules(value: object) -> str:
    """A rule's name, with its switches in alphabetical order: one rule has one spelling."""
    rule, *switches = str(value).split("+")
    if rule not in RULES or not set(switches) <= set(SWITCHES) or len(set(switches)) < len(switches):
        raise ValueError(f"rules {value!r} is unknown; choices: {', '.join(RULES)}, each with +{', +'.join(SWITCHES)}")
    return "+".join([rule, *sorted(switches)])


def check_lengths(warmup: object, decay: object) -> None:
    """Warmup as a fraction and decay must leave a stable phase; a warmup of 1 or more is in tokens."""
    if not isinstance(warmup, int | float) or not isinstance(decay, int | float):
        return
    if decay >= 1 or (warmup < 1 and warmup + decay >= 1):
        raise ValueError(f"warmup {warmup} + decay {decay} must be below 1: nothing is left for the stable phase")
