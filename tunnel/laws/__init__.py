"""Laws: one file of this folder each, found by its name; pure arithmetic on columns (numpy, scipy; no files).

A law of the loss (KIND "loss") has: a docstring with formula, units and source; COLUMNS it needs; PARAMS, its
parameters' names; `answers(table, targets)` → "" or why it cannot answer them; `select(table, targets)` → the
indices of the rows it is fitted to; `fit(table, delta)` → Fit; `predict(params, table)` → loss per row; and
`refit(table, fit, weights, losses)` → (draws, parameters), the batched bootstrap. A law of settings (KIND
"settings") has fit and predict, whose answer is a Forecast per setting. Files whose name begins with _,
backtest and intervals are tools, not laws.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import ModuleType

import numpy as np

Array = np.ndarray
Table = Mapping[str, Array]  # equal-length float columns: N (parameters), D, batch_tokens (tokens), C (FLOPs), loss ...

DELTA = 1e-3  # from paper: Huber's δ of the Chinchilla fit (arXiv 2203.15556, D.3)
STATUSES = ("converged", "bound hit", "flat", "too few points")
_TOOLS = {"backtest", "intervals"}


@dataclass(frozen=True)
class Fit:
    """A law fitted to a table; `status` is one of STATUSES and `reason` names what the data does not
    identify.

    `objective` is Σ w·Huber(δ) of log L − log L̂ over the n rows used; `ranges` gives, for parameters that
    are not identified, the values that fit about as well. Parameters are NaN where there are too few points.
    """

    law: str
    params: Mapping[str, float]
    objective: float
    delta: float
    status: str
    reason: str
    n: int
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def usable(self) -> bool:
        """Whether the parameters are numbers."""
        return self.status != "too few points"


def names() -> list[str]:
    """The laws in this folder, sorted."""
    found = (m.name for m in pkgutil.iter_modules(__path__))
    return sorted(n for n in found if not n.startswith("_") and n not in _TOOLS)


def get(name: str) -> ModuleType:
    """The law of that name; KeyError with the choices where there is none."""
    if name not in names():
        raise KeyError(f"no law {name!r}: one of {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}")


def holds_at_one_d(name: str) -> bool:
    """Whether a law answers only for targets of one D, from the rows at that D (the law says ONE_D = True)."""
    return getattr(get(name), "ONE_D", False)


def columns(table: Mapping[str, object]) -> dict[str, Array]:
    """The table as float64 columns of one length, with C = 6ND (derived: forward 2, backward 4) where there
    is none.

    Products are taken in floats: integer columns overflow int64 at N·D of a 10B model.
    """
    out = {name: np.atleast_1d(np.asarray(values)) for name, values in table.items()}
    out = {name: values if values.dtype.kind in "OUST" else values.astype(float) for name, values in out.items()}
    for name in ("N", "D", "C", "loss", "weight", "lr", "batch_tokens"):
        if name in out:
            out[name] = out[name].astype(float)
    if len({len(v) for v in out.values()}) > 1:
        raise ValueError("columns of different lengths: " + ", ".join(f"{k} {len(v)}" for k, v in out.items()))
    if "C" not in out and {"N", "D"} <= set(out):
        out["C"] = 6 * out["N"] * out["D"]
    return out


def take(table: Table, rows: Array) -> dict[str, Array]:
    """The given rows (indices or mask) of every column."""
    return {name: values[rows] for name, values in table.items()}


def rows_of(table: Table) -> int:
    """The number of rows."""
    return len(next(iter(table.values()))) if table else 0


def usable_rows(table: Table, needed: tuple[str, ...]) -> Array:
    """Mask of the rows whose needed columns have a logarithm (finite, positive) and whose weight is > 0."""
    keep = np.ones(rows_of(table), bool)
    for name in needed:
        keep &= np.isfinite(table[name]) & (table[name] > 0) if name in table else False
    if "weight" in table:
        keep &= np.isfinite(table["weight"]) & (table["weight"] > 0)
    return keep


def runs_of(table: Table) -> Array:
    """An integer per row, equal for the rows of one run (column run; else every row is its own run)."""
    if "run" not in table:
        return np.arange(rows_of(table))
    return np.unique(table["run"], return_inverse=True)[1]
