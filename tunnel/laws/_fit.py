"""From the engine's optimum to a Fit with a status: what every sum-of-powers law shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tunnel.laws import Array, Fit, Table, columns, take, usable_rows
from tunnel.laws import _powers as powers
from tunnel.laws import _search as search

DISTINCT = 1e-6  # logs closer than this are one level; assumed: far below any difference between two runs
# a term under this share of the lowest loss (mid-range) is none; assumed: below the noise of any reading
NO_TERM = 1e-4
NO_FLOOR = 1e-3  # a floor E under this share of the lowest loss is none; assumed: below the noise of any reading


@dataclass(frozen=True)
class Form:
    """A sum of powers: the column, coefficient and exponent of each term, and whether there is a floor E."""

    law: str
    terms: tuple[tuple[str, str, str], ...]  # (column, coefficient, exponent), as ("N", "A", "alpha")
    floor: bool

    @property
    def params(self) -> tuple[str, ...]:
        """Names: E where there is a floor, the coefficients, the exponents."""
        return (
            *(("E",) if self.floor else ()),
            *(c for _, c, _ in self.terms),
            *(x for _, _, x in self.terms),
        )

    @property
    def needed(self) -> tuple[str, ...]:
        """The columns that a row must have."""
        return (*dict.fromkeys(c for c, _, _ in self.terms), "loss")


def fit(form: Form, table: Table, delta: float) -> Fit:
    """The optimum of a form on a table; rows with a non-positive or non-finite entry are not used."""
    table = columns(table)
    table = take(table, usable_rows(table, form.needed))
    n = len(table["loss"]) if "loss" in table else 0
    lacking = _lacking(form, table, n)
    if lacking:
        status, reason = lacking
        return Fit(form.law, dict.fromkeys(form.params, np.nan), np.nan, delta, status, reason, n)
    z, centre, y, w = _logs(form, table)
    found = search.solve(z, y, w, delta, form.floor)
    params = dict(zip(form.params, _natural(form, found.theta[None], centre)[0].tolist(), strict=True))
    status, reason, ranges = _status(form, table, found)
    return Fit(form.law, params, found.objective, delta, status, reason, n, ranges)


def predict(form: Form, params: dict[str, float] | dict[str, Array], table: Table) -> Array:
    """Loss per row (nats per token); parameters may be (draws, 1) arrays, then (draws, rows)."""
    table = columns(table)
    total = params["E"] if form.floor else 0.0
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        for column, coefficient, exponent in form.terms:
            # in logs: A alone overflows at large exponents where A·N^-a does not
            total = total + np.exp(np.log(params[coefficient]) - params[exponent] * np.log(table[column]))
    return np.asarray(total)


def refit(form: Form, table: Table, start: Fit, weights: Array | None, losses: Array | None) -> Array:
    """The parameters (draws, P) of many re-weighted (draws, n) or re-measured (losses: draws, n) versions of
    a table.

    Rows with zero weight everywhere are allowed; each draw is polished from the fit `start` with δ annealed.
    """
    z, centre, y, w = _logs(form, table)
    draws = len(weights) if weights is not None else len(losses) if losses is not None else 1
    theta = np.repeat(_centred(form, start, centre)[None], draws, axis=0)
    w = w if weights is None else w * weights
    y = y if losses is None else np.log(losses)
    polished, _ = powers.polish(theta, z, y, w, start.delta, form.floor)
    return _natural(form, polished, centre)


def _lacking(form: Form, table: Table, n: int) -> tuple[str, str] | None:
    """The status and reason of a table that cannot identify the form by its design, whatever its losses."""
    size = len(form.params)
    if n < size + int(form.floor):
        return (
            "too few points",
            f"{n} rows for {size} parameters of {form.law}: needs {size + int(form.floor)}",
        )
    need = 2 + int(form.floor)  # a power needs two levels; beside a floor, three
    for column, coefficient, exponent in form.terms:
        levels = _levels(table[column])
        if levels < need:
            names = " and ".join([exponent, coefficient])
            return "too few points", f"{column} has {levels} distinct values, {need} identify {names}"
    return None


def _levels(values: Array) -> int:
    logs = np.sort(np.log(values))
    return 1 + int((np.diff(logs) > DISTINCT).sum())


def _logs(form: Form, table: Table) -> tuple[Array, Array, Array, Array]:
    raw = np.stack([np.log(table[c]) for c, _, _ in form.terms])
    centre = 0.5 * (raw.min(axis=1) + raw.max(axis=1))  # of the range: the same for every resample
    y = np.log(table["loss"])
    return raw - centre[:, None], centre, y, table["weight"] if "weight" in table else np.ones(len(y))


def _natural(form: Form, theta: Array, centre: Array) -> Array:
    """Engine parameters (R, P) in the user's units: E, A = exp(a + α·centre), α."""
    k, e = len(form.terms), int(form.floor)
    out = theta.copy()
    with np.errstate(over="ignore"):
        out[:, :e] = np.exp(theta[:, :e])
        out[:, e : e + k] = np.exp(theta[:, e : e + k] + theta[:, e + k :] * centre)
    return out


def _centred(form: Form, start: Fit, centre: Array) -> Array:
    k, e = len(form.terms), int(form.floor)
    theta = np.array([start.params[name] for name in form.params], float)
    theta[: e + k] = np.log(np.maximum(theta[: e + k], 1e-300))
    theta[e : e + k] -= theta[e + k :] * centre
    return theta


def _status(form: Form, table: Table, found: search.Solution) -> tuple[str, str, dict[str, tuple[float, float]]]:
    """converged, bound hit or flat; the reason names the parameters, `ranges` what fits about as well."""
    k, e = len(form.terms), int(form.floor)
    lowest = float(table["loss"].min())
    hit, flat, ranges = [], [], {}
    for j, (column, coefficient, exponent) in enumerate(form.terms):
        value = found.theta[e + k + j]
        low, high = found.exponents[j]
        if np.exp(found.theta[e + j]) < NO_TERM * lowest:
            hit.append(f"{coefficient} is zero: the loss does not fall with {column}, {exponent} is not identified")
        elif not powers.LOWEST * 1.01 < value < powers.HIGHEST * 0.99:
            hit.append(f"{exponent} = {value:.3g} is a bound of the search")
        if low < search.TRIED[0] * 1.01 or high > search.TRIED[1] * 0.99:  # an end of the grid fits as well
            flat.append(exponent)
            ranges[exponent] = (float(low), float(high))
    if found.floors is not None:
        floor = float(np.exp(found.theta[0]))
        if floor < NO_FLOOR * lowest:
            hit.append("E = 0 is the bound: the data shows no floor")
        elif found.floors[0] < NO_FLOOR * lowest:
            flat.append("E")
            ranges["E"] = (0.0, found.floors[1])
    if hit:
        return "bound hit", "; ".join(hit), ranges
    if flat:
        return (
            "flat",
            f"the data does not identify {', '.join(flat)}: {_text(ranges)} fit about as well",
            ranges,
        )
    return "converged", "", ranges


def _text(ranges: dict[str, tuple[float, float]]) -> str:
    return ", ".join(f"{name} {low:.3g} to {high:.3g}" for name, (low, high) in ranges.items())


def distinct(values: Sequence[float] | Array, tolerance: float) -> list[float]:
    """The levels of a column, ascending: values within a relative tolerance of its first are one level."""
    ordered = np.sort(np.asarray(values, float))
    levels: list[float] = []
    at = 0
    while at < len(ordered):
        levels.append(float(ordered[at]))
        at = max(at + 1, int(np.searchsorted(ordered, levels[-1] * (1 + tolerance), side="right")))
    return levels
