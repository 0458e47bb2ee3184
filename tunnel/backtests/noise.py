"""How readings of one setting scatter: the noise of a table, and weights by it where it moves with N."""

from __future__ import annotations

import numpy as np

from tunnel import laws
from tunnel.laws import Array, Table, columns, usable_rows
from tunnel.quantiles import TYPICAL

SETTINGS = ("N", "D", "lr", "batch_tokens", "unique_tokens", "warmup", "width", "depth")
SAYS = 2.0  # standard errors that a change of the noise must stand out by; assumed
MOST = 16.0  # that a row's weight may be above or below the middle one's; assumed: a factor 4 in noise
LEAST = 2  # degrees of freedom that tell a size's noise; derived: the variance of log s² is 2/k for such k on


def typical(table: Table, sound: Array) -> float:
    """The standard deviation of log loss between repeats of one setting; 0 without any. `sound`: mask of the rows."""
    table = columns(table)
    rows, cell, count = _cells(table, sound)
    if not len(rows):
        return 0.0
    y = np.log(table["loss"][rows])
    order = np.lexsort((y, cell))
    start = np.cumsum(count) - count
    middle = 0.5 * (y[order][start + (count - 1) // 2] + y[order][start + count // 2])
    again = count[cell] > 1
    # typical, so that repeats which differ in what the table does not tell do not decide
    off = np.abs(y - middle[cell])[again] * np.sqrt(count[cell] / np.maximum(count[cell] - 1, 1))[again]
    return float(TYPICAL * np.median(off)) if again.any() else 0.0


def weights(table: Table, sound: Array) -> Array:
    """Weights ∝ 1/variance of log loss, as a power of N through the repeats' variances; all 1 where none is seen.

    `sound`: mask of the rows that may tell it. log s² of k degrees of freedom has variance 2/k, and that much weight.
    """
    table = columns(table)
    out = np.ones(laws.rows_of(table))
    rows, cell, count = _cells(table, sound)
    if not len(rows):
        return out
    y, size = np.log(table["loss"][rows]), np.unique(table["N"][rows], return_inverse=True)
    squares = (y - (np.bincount(cell, y) / count)[cell]) ** 2
    free = np.bincount(size[1], 1 - 1 / count[cell])
    variance = np.bincount(size[1], squares) / np.maximum(free, 1)
    told = (free > LEAST - 1e-9) & (variance > 0)
    if told.sum() < 2:
        return out
    x, s, k = np.log(size[0][told]), np.log(variance[told]), free[told] / 2
    x = x - (k @ x) / k.sum()
    power = (k @ (x * s)) / (k @ x**2)
    if abs(power) < SAYS / np.sqrt(k @ x**2):
        return out
    good = usable_rows(table, ("N",))
    logs = np.log(table["N"][good])
    out[good] = np.clip(np.exp(-power * (logs - np.median(logs))), 1 / MOST, MOST)
    return out


def _cells(table: Table, sound: Array) -> tuple[Array, Array, Array]:
    """The rows that can be compared, the setting that each repeats, and how often each setting stands there."""
    rows = np.flatnonzero(usable_rows(table, ("N", "D", "loss")) & sound)
    given = [k for k in SETTINGS if k in table and table[k].dtype.kind == "f"]
    if len(rows) < 2:
        return rows[:0], rows[:0], rows[:0]
    cell = np.unique(np.stack([table[k][rows] for k in given]), axis=1, return_inverse=True)[1].ravel()
    return rows, cell, np.bincount(cell)
