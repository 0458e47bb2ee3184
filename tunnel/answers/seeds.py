"""Readings of several seeds: a body at its best learning rate, a mean with its interval, two bodies seed by seed."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from tunnel.quantiles import LEVEL, student


def best_lr(body: pd.DataFrame) -> pd.DataFrame:
    """A body's readings at the learning rate of its lowest mean loss."""
    return body[body.lr == body.groupby("lr").loss.mean().idxmin()]


def spread(values: pd.Series) -> tuple[float, float]:
    """The 90% interval of a mean, by Student; NaN where one value has none."""
    n, mean = len(values), float(values.mean())
    if n < 2:
        return math.nan, math.nan
    half = student((1 + LEVEL) / 2, n - 1) * float(values.std(ddof=1)) / math.sqrt(n)
    return mean - half, mean + half


def apart(one: pd.DataFrame, other: pd.DataFrame) -> tuple[float, float, float]:
    """Percent that one's loss lies above the other's: the mean over the seeds that both have, with its interval.

    Without a common seed it is that of their means, and the interval NaN.
    """
    ours, theirs = (np.log(x.groupby("seed").loss.mean()) for x in (one, other))
    pairs = (ours - theirs).dropna()
    mean = float(pairs.mean()) if len(pairs) else float(ours.mean() - theirs.mean())
    low, high = (100 * math.expm1(x) for x in spread(pairs))
    return 100 * math.expm1(mean), low, high


def rounded(value: float, digits: int) -> float | None:
    return round(value, digits) if math.isfinite(value) else None
