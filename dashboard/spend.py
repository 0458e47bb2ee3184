"""What a budget of compute buys: N, D, hours, money and the expected loss, by the recommendation's own law. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dashboard import whatif
from tunnel import laws
from tunnel.study.money import Price

AS_TARGET, OPTIMAL = "as the target grows", "compute-optimal"
TIMES = tuple(2.0 ** (i / 2) for i in range(-12, 13))  # the target's compute  *assumed*


@dataclass(frozen=True)
class Spent:
    """A budget and what it buys; `seconds` at the target's pace, `beyond` in decades of the largest reading's C."""

    C: float
    N: float
    D: float
    seconds: float
    cost: float
    loss: float
    beyond: float


def ways(told: Mapping[str, Any], fit: Mapping[str, Any] | None) -> dict[str, Mapping[str, Any]]:
    """How a budget may be split: a law with its params, and the path it is followed on."""
    found: dict[str, Mapping[str, Any]] = {}
    path = told.get("path")
    if path and known(path["params"]):
        found[AS_TARGET] = path
    both = whatif.splits(fit)[0] if fit else None
    if both is not None:
        found[OPTIMAL] = {"law": "chinchilla", "params": both}
    return found


def known(params: Mapping[str, Any]) -> bool:
    return bool(params) and all(v is not None and math.isfinite(v) for v in params.values())


def split(params: Mapping[str, float], flops: float) -> tuple[float, float]:
    """Compute-optimal N and D by the law of both."""
    n, d = laws.get("chinchilla").optimal(params, flops)
    return float(n), float(d)


def spent(told: Mapping[str, Any], way: Mapping[str, Any], times: float, price: Price | None) -> Spent:
    """What so many times the target's compute buys on one of its `ways`."""
    target = told["target"]
    c = 6.0 * target["N"] * target["tokens"] * times
    if "share" in way:
        n, d = way["N"] * times ** way["share"], way["D"] * times ** (1 - way["share"])
    else:
        n, d = split(way["params"], c)
    where = {"N": np.array([n]), "D": np.array([d]), "C": np.array([c])}
    loss = float(laws.get(way["law"]).predict(way["params"], where)[0])
    seconds = target["seconds"] * times
    cost = float(price.cost(seconds)) if price else target["cost"] * times
    return Spent(c, n, d, seconds, cost, loss, math.log10(told["compute_ratio"] * times))


def curve(told: Mapping[str, Any], way: Mapping[str, Any], times: Sequence[float], price: Price | None) -> list[Spent]:
    return [spent(told, way, t, price) for t in times]
