"""Laws: one file of this folder each, found by its name; pure arithmetic on columns (numpy, scipy; no files).

A law of the loss (KIND "loss") has: a docstring with formula, units and source; COLUMNS it needs; PARAMS, its
parameters' names; `answers(table, targets)` → "" or why it cannot answer them; `select(table, targets)` → the
indices of the rows it is fitted to; `fit(table, delta)` → Fit; `predict(params, table)` → loss per row; and
`refit(table, fit, weights, losses)` → (draws, parameters), the batched bootstrap. `delta` is Huber's δ, or a Misfit
(MISFITS names three: huber, squares, envelope). ONE_D = True: it answers for targets of one D alone, from the rows at
that D; ON_PATH = True: for targets on the readings' own N-D path alone; FREE: the parameters that readings alone
decide, where those are not all. A law of settings (KIND "settings") has fit and predict, whose answer is a Forecast
per setting.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from types import ModuleType

import numpy as np

Array = np.ndarray
Table = Mapping[str, Array]  # equal-length float columns: N (parameters), D, batch_tokens (tokens), C (FLOPs), loss ...

DELTA = 1e-3  # from paper: Huber's δ of the Chinchilla fit (arXiv 2203.15556, D.3)
STATUSES = ("converged", "bound hit", "flat", "too few points")


@dataclass(frozen=True)
class Misfit:
    """What a fit minimises: Σ w·ρ(log L − log L̂), ρ Huber's (r²/2 within δ, δ(|r| − δ/2) outside).

    `delta` infinite is least squares. A reading above the law (under-tuned, perhaps) counts `above` as much as one
    below it: under 1, the law lies along the readings' lower envelope.
    """

    delta: float = DELTA
    above: float = 1.0

    def slopes(self, r: Array, w: Array) -> tuple[Array, Array, Array]:
        """w·ρ′, w·ρ″ and the weight of iterated least squares w·ρ′/r, per residual."""
        w = self._sided(r, w)
        wide = np.abs(r) / self.delta
        return w * np.clip(r, -self.delta, self.delta), w * (wide <= 1), w / np.maximum(wide, 1.0)

    def total(self, r: Array, w: Array) -> Array:
        """Σ w·ρ(r) over the last axis."""
        near = np.clip(r, -self.delta, self.delta)
        return np.asarray((self._sided(r, w) * near * (r - 0.5 * near)).sum(axis=-1))

    def _sided(self, r: Array, w: Array) -> Array:
        return w if self.above == 1.0 else w * np.where(r > 0, self.above, 1.0)


def misfit_of(delta: float | Misfit) -> Misfit:
    """A misfit as it is; a number is Huber's δ."""
    return delta if isinstance(delta, Misfit) else Misfit(float(delta))


# an envelope: with a small δ, about 9% of the readings lie below it (derived: 0.1/1.1); the share is assumed
MISFITS = {"huber": Misfit(), "squares": Misfit(delta=np.inf), "envelope": Misfit(above=0.1)}


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
    delta: float | Misfit
    status: str
    reason: str
    n: int
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def usable(self) -> bool:
        """Whether the parameters are numbers."""
        return self.status != "too few points"


@cache
def names() -> tuple[str, ...]:
    """The laws in this folder, sorted."""
    return tuple(sorted(m.name for m in pkgutil.iter_modules(__path__)))


@cache
def get(name: str) -> ModuleType:
    """The law of that name; KeyError with the choices where there is none."""
    if name not in names():
        raise KeyError(f"no law {name!r}: one of {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}")


def stays_on_path(name: str) -> bool:
    """Whether a law answers only for targets on the readings' own N-D path (the law says ON_PATH = True)."""
    return getattr(get(name), "ON_PATH", False)


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
