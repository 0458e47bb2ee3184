"""What a difference in loss is worth in compute: near a law's floor, half a percent of the loss is a lot of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from tunnel import laws

FARTHEST = math.log(1e6)  # of compute, either way: a difference worth more is worth more than anybody has  *assumed*
HALVINGS = 60  # of that range: to the double's precision  *derived*

Path = Mapping[str, Any]  # law, params, N, D, share: as a forecast keeps it


def path(law: str, params: Mapping[str, float | None], n: float, d: float, last: tuple[float, float]) -> dict[str, Any]:
    """The way through the target: more compute goes to N and D as it did from the largest reading (N, D) to the target.

    `share`: the part of log compute that N gets; all of it for a law that holds at the target's D.
    """
    by_n, by_d = (max(math.log(to / since), 0.0) for to, since in zip((n, d), last, strict=True))
    share = by_n / (by_n + by_d) if by_n + by_d > 0 else 0.5
    return {"law": law, "params": dict(params), "N": n, "D": d, "share": 1.0 if laws.holds_at_one_d(law) else share}


def compute_percent(way: Path | None, loss: float | None) -> float | None:
    """By how much other compute, in %, the law gives this loss (nats per token): above 0 where it is below the law's.

    None where no compute does within a factor of a million, below the law's floor say; or where there is no law.
    """
    if way is None or loss is None or any(v is None for v in way["params"].values()):
        return None
    law = laws.get(way["law"])

    def left(log: float) -> float:
        """The law's loss less the one asked, where log compute is so much more."""
        n, d = way["N"] * math.exp(log * way["share"]), way["D"] * math.exp(log * (1 - way["share"]))
        where = {"N": np.array([n]), "D": np.array([d]), "C": np.array([6 * n * d])}
        return float(law.predict(way["params"], where)[0]) - loss

    try:
        low, high = -FARTHEST, FARTHEST
        if not left(low) >= 0 >= left(high):
            return None
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if left(middle) > 0 else (low, middle)
    except (KeyError, ValueError, ArithmeticError):  # a law of more than N, D and C
        return None
    return 100 * math.expm1((low + high) / 2)


def interval(way: Path | None, forecast: float, low: float, high: float) -> dict[str, list[float | None]]:
    """A forecast's interval in % of the loss and in % of the compute: [at its low end, at its high end]."""
    return {
        "loss": [100 * (end / forecast - 1) for end in (low, high)],
        "compute": [compute_percent(way, end) for end in (low, high)],
    }


def said(percent: float | None) -> str:
    """A part of the compute in words.

    >>> said(14.349), said(-12.27), said(1100.0), said(None)
    ('14% more compute', '12% less compute', '12 × the compute', 'more than any compute')
    """
    if percent is None:
        return "more than any compute"
    if percent >= 100:
        return f"{1 + percent / 100:.2g} × the compute"
    return f"{abs(percent):.2g}% {'more' if percent > 0 else 'less'} compute"
