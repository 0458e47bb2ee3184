"""Quantiles that intervals are made of: scipy's, and the constants of the normal."""

from __future__ import annotations

from scipy.special import chdtri, stdtrit

LEVEL = 0.90  # contract 4: the level of every interval
NORMAL = 1.6449  # the normal's 95% quantile: half a 90% interval, in standard deviations; derived
TYPICAL = 1.4826  # of the median absolute deviation, the standard deviation of a normal; derived


def student(p: float, free: float) -> float:
    """Student's t quantile."""
    return float(stdtrit(free, p))


def chi_square(p: float, free: float) -> float:
    """The chi-square quantile."""
    return float(chdtri(free, 1 - p))
