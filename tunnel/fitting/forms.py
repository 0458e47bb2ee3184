"""From the engine's optimum to a Fit with a status: what every sum-of-powers law shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tunnel.fitting import powers, search
from tunnel.fitting.models import HIGHEST, LOWEST, TRIED, Model, Norm, Product, Sum
from tunnel.laws import DELTA, Array, Fit, Misfit, Table, columns, misfit_of, take, usable_rows

DISTINCT = 1e-6  # logs closer than this are one level; assumed: far below any difference between two runs
# a term under this share of the lowest loss (mid-range) is none; assumed: below the noise of any reading
NO_TERM = 1e-4
# readings within 5% of a budget's smallest C belong to it; assumed: wider than rounding to whole batches
BUDGET = 0.05
NO_FLOOR = 1e-3  # a floor E under this share of the lowest loss is none; assumed: below the noise of any reading


@dataclass(frozen=True)
class Form:
    """Powers of columns: the column, coefficient and exponent of each; whether there is a floor E; how they join.

    A norm of two is ((A/N)^(α/β) + B/D)^β: its coefficients stand inside the powers. `beside`: a column, and its
    exponent, whose power multiplies the first of two terms.
    """

    law: str
    terms: tuple[tuple[str, str, str], ...]  # (column, coefficient, exponent), as ("N", "A", "alpha")
    floor: bool
    norm: bool = False
    beside: tuple[str, str] | None = None

    @property
    def params(self) -> tuple[str, ...]:
        """Names: E where there is a floor, the coefficients, the exponents."""
        return (
            *(("E",) if self.floor else ()),
            *(c for _, c, _ in self.terms),
            *(x for _, _, x in self.terms),
            *(x for _, x in self._beside),
        )

    @property
    def needed(self) -> tuple[str, ...]:
        """The columns that a row must have."""
        return (*dict.fromkeys(self._columns), "loss")

    @property
    def model(self) -> Model:
        """Its shape in centred logs."""
        if self.beside:
            return Product()
        return Norm() if self.norm else Sum(len(self.terms), self.floor)

    @property
    def _beside(self) -> tuple[tuple[str, str], ...]:
        return () if self.beside is None else (self.beside,)

    @property
    def _columns(self) -> tuple[str, ...]:
        """Of each row of z."""
        return (*(c for c, _, _ in self.terms), *(c for c, _ in self._beside))

    def answers(self, table: Table, targets: Table) -> str:
        """Why the law cannot answer the targets: it can wherever they have its columns."""
        own = self.needed[:-1]
        return "" if set(own) <= set(targets) else f"the targets have no {' and '.join(own)}"

    def select(self, table: Table, targets: Table | None = None) -> Array:
        """Indices of the rows it is fitted to: all that have its columns."""
        return np.flatnonzero(usable_rows(table, self.needed))

    def fit(self, table: Table, delta: float | Misfit = DELTA, floor: float | None = None) -> Fit:
        """The optimum of a form on a table, E held at `floor` where one is given.

        Rows with a non-positive or non-finite entry are not used.
        """
        table = columns(table)
        table = take(table, usable_rows(table, self.needed))
        n = len(table["loss"]) if "loss" in table else 0
        lacking = self._lacking(table, n)
        if lacking:
            return nothing(self.law, self.params, delta, lacking, n)
        z, centre, y, w, unit = self._logs(table)
        pinned = None if floor is None else floor * float(np.exp(-unit))
        found = search.solve(self.model, z, y, w, misfit_of(delta), pinned)
        params = dict(zip(self.params, self.natural(found.theta[None], centre, unit)[0].tolist(), strict=True))
        status, reason, ranges = status_of(self, table, found, unit)
        return Fit(self.law, params, found.objective, delta, status, reason, n, ranges)

    def predict(self, params: Mapping[str, float] | Mapping[str, Array], table: Table) -> Array:
        """Loss per row (nats per token); parameters may be (draws, 1) arrays, then (draws, rows)."""
        table = columns(table)
        with np.errstate(all="ignore"):  # in logs: A alone overflows at large exponents where A·N^-a does not
            logs = np.stack([np.log(table[c]) for c in self._columns])
            loss = np.exp(powers.log_loss(self.model, self.theta(params), logs))
        return np.asarray(loss if any(np.ndim(v) for v in params.values()) else loss[0])

    def refit(self, table: Table, start: Fit, weights: Array | None = None, losses: Array | None = None) -> Array:
        """Parameters (draws, P) of many re-weighted (draws, n) or re-measured (losses: draws, n) versions of a table.

        Rows with zero weight everywhere are allowed; each draw is polished from the fit `start` with δ annealed.
        """
        z, centre, y, w, unit = self._logs(columns(table))
        draws = len(weights) if weights is not None else len(losses) if losses is not None else 1
        theta = np.repeat(self.theta(start.params, centre, unit), draws, axis=0)
        w = w if weights is None else w * weights
        if losses is not None:
            new = np.log(losses) - unit
            # the start at the draw's own level
            theta[:, : self.model.linear] *= np.exp((new - y).mean(axis=1))[:, None]
            y = new
        return self.natural(powers.polish(self.model, theta, z, y, w, misfit_of(start.delta))[0], centre, unit)

    def natural(self, theta: Array, centre: Array | float = 0.0, unit: float = 0.0) -> Array:
        """Engine parameters (R, P), of losses over exp(unit), in the user's units: E, A·exp(α·centre), α."""
        out = np.array(theta)
        out[:, : self.model.linear] *= np.exp(unit)
        coefficients, exponents = self._parts(out)
        with np.errstate(over="ignore", divide="ignore"):
            if self.norm:  # of the terms in logs: their middle, and how far they are apart
                logs = np.log(out[:, 1:2]) + 0.5 * out[:, 2:3] * np.array([1, -1])
                coefficients[:] = np.exp(logs / exponents + centre)
            else:
                coefficients *= np.exp(self._shift(exponents * centre))
        return out

    def theta(
        self, params: Mapping[str, float] | Mapping[str, Array], centre: Array | float = 0.0, unit: float = 0.0
    ) -> Array:
        """The inverse of `natural`; parameters are numbers, or arrays of equally many draws."""
        out = np.stack([np.ravel(params[name]) for name in self.params], axis=1).astype(float)
        coefficients, exponents = self._parts(out)
        if self.norm:
            with np.errstate(divide="ignore", invalid="ignore"):
                logs = exponents * (np.log(coefficients) - centre)
                coefficients[:, 0], coefficients[:, 1] = np.exp(logs.mean(axis=1)), np.nan_to_num(-np.diff(logs)[:, 0])
        else:
            coefficients *= np.exp(self._shift(-exponents * centre))
        out[:, : self.model.linear] *= np.exp(-unit)
        return out

    def _lacking(self, table: Table, n: int) -> str:
        """Why a table cannot identify the form by its design, whatever its losses."""
        size = len(self.params)
        if n < size + int(self.floor):
            return f"{n} rows for {size} parameters of {self.law}: needs {size + int(self.floor)}"
        need = 2 + int(self.floor)  # a power needs two levels; beside a floor, three
        for column, coefficient, exponent in self.terms:
            found = levels(table[column])
            if found < need:
                return f"{column} has {found} distinct values, {need} identify {exponent} and {coefficient}"
        return ""

    def _logs(self, table: Table) -> tuple[Array, Array, Array, Array, float]:
        """Centred logs of the columns, their centres, log losses over a middle one, weights, the log of that one."""
        raw = np.stack([np.log(table[c]) for c in self._columns])
        centre = 0.5 * (raw.min(axis=1) + raw.max(axis=1))  # of the range: the same for every resample
        y = np.log(table["loss"])
        unit = 0.5 * float(y.min() + y.max())
        return raw - centre[:, None], centre, y - unit, table["weight"] if "weight" in table else np.ones(len(y)), unit

    def _shift(self, logs: Array) -> Array:
        """What a change of every column's centre is to the coefficients (R, k), in logs."""
        return np.column_stack([logs[:, 0] + logs[:, 2], logs[:, 1]]) if self.beside else logs

    def _parts(self, theta: Array) -> tuple[Array, Array]:
        k, e = len(self.terms), int(self.floor)
        return theta[:, e : e + k], theta[:, e + k :]


def nothing(law: str, params: Sequence[str], delta: float | Misfit, reason: str, n: int) -> Fit:
    """The fit of a table that has too few points: parameters are NaN."""
    return Fit(law, dict.fromkeys(params, np.nan), np.nan, delta, "too few points", reason, n)


def levels(values: Array) -> int:
    """How many distinct values a column has, but for rounding."""
    logs = np.sort(np.log(values))
    return 1 + int((np.diff(logs) > DISTINCT).sum())


def status_of(
    form: Form, table: Table, found: search.Solution, unit: float = 0.0
) -> tuple[str, str, dict[str, tuple[float, float]]]:
    """converged, bound hit or flat; the reason names the parameters, the ranges what fits about as well.

    `found` is of losses over exp(unit).
    """
    k, e = len(form.terms), int(form.floor)
    scale = float(np.exp(unit))
    lowest = float(table["loss"].min()) / scale
    hit, flat, ranges = [], [], {}
    parts = found.theta[e : e + k]  # at the middle of the table
    parts = parts[0] * np.exp(0.5 * parts[1] * np.array([1, -1])) if form.norm else parts
    for j, (column, coefficient, exponent) in enumerate(form.terms):
        value = found.theta[e + k + j]
        low, high = found.exponents[j]
        if parts[j] < NO_TERM * lowest:
            hit.append(f"{coefficient} is zero: the loss does not fall with {column}, {exponent} is not identified")
        elif not LOWEST * 1.01 < value < HIGHEST * 0.99:
            hit.append(f"{exponent} = {value:.3g} is a bound of the search")
        if low < TRIED[0] * 1.01 or high > TRIED[1] * 0.99:  # an end of the grid fits as well
            flat.append(exponent)
            ranges[exponent] = (float(low), float(high))
    if found.floors is not None:
        floor = float(found.theta[0])
        if floor < NO_FLOOR * lowest:
            hit.append("E = 0 is the bound: the data shows no floor")
            ranges["E"] = (0.0, found.floors[1] * scale)
        elif found.floors[0] < NO_FLOOR * lowest:
            flat.append("E")
            ranges["E"] = (0.0, found.floors[1] * scale)
    if flat and found.floors is not None:  # what trades with an exponent is E
        ranges.setdefault("E", (found.floors[0] * scale, found.floors[1] * scale))
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


def budgets(flops: Array) -> Array:
    """An integer per row, ascending with C, equal for the rows of one compute budget."""
    return np.searchsorted(np.array(distinct(flops, BUDGET)), flops, side="right") - 1


def distinct(values: Sequence[float] | Array, tolerance: float) -> list[float]:
    """The levels of a column, ascending: values within a relative tolerance of its first are one level."""
    ordered = np.sort(np.asarray(values, float))
    levels: list[float] = []
    at = 0
    while at < len(ordered):
        levels.append(float(ordered[at]))
        at = max(at + 1, int(np.searchsorted(ordered, levels[-1] * (1 + tolerance), side="right")))
    return levels
