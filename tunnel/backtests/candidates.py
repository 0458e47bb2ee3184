"""A candidate for the choice (form, rows, loss) and what it misses held-out readings by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tunnel import laws
from tunnel.backtests import rows
from tunnel.backtests.holdouts import Holdout, distance
from tunnel.backtests.rows import ALL, Window
from tunnel.fitting import forms
from tunnel.laws import DELTA, Array, Fit, Misfit, Table, columns, frontier, misfit_of, take

QUESTIONS = 8  # lengths at which a form that holds at one D is asked, those with most readings; assumed
# decades over which an error doubles: it grows as 1 + distance/NEAR; measured here: of 0.3 and 1, 0.3 covers the bands
# of distance more evenly (90, 90, 88% against 94, 92, 86% on 13 public tables)
NEAR = 0.3
# by N, a form that holds at one D is judged at D within this factor of the target's: one rung is one case,
NEAR_D = 4.0
# too few to choose by; assumed; with the margin below, measured here: right on 97-100% of simulated ladders
# (seed noise up to 0.5%), against 84% by one rung alone
# scores (log error) this close are equal: rounding; derived from double precision and the fit's tolerance
ALIKE = 1e-7

MOST_ROWS = 500  # a larger table is chosen on so many of its rows, evenly by C, so that it takes seconds; assumed


@dataclass(frozen=True)
class Candidate:
    """A form, the rows it is fitted to and what the fit minimises (a number is Huber's δ in log loss)."""

    law: str
    window: Window = ALL
    delta: float | Misfit = DELTA

    @property
    def loss(self) -> str:
        """What the fit minimises, in words."""
        misfit = misfit_of(self.delta)
        words = f"Huber {misfit.delta:g}" if np.isfinite(misfit.delta) else "least squares"
        return words if misfit.above == 1 else f"{words}, readings above count {misfit.above:g}"

    def rows(self, table: Table, targets: Table | None = None) -> dict[str, Array]:
        """The rows of a table that it is fitted to."""
        inside = table if self.window is ALL else self.window.of(table)
        return take(inside, laws.get(self.law).select(inside, targets))

    def fit(self, table: Table, targets: Table | None = None) -> Fit:
        """The form's fit to those rows."""
        return laws.get(self.law).fit(self.rows(table, targets), self.delta)

    def __str__(self) -> str:
        return f"{self.law} ({self.window.name}, {self.loss})"


@dataclass(frozen=True)
class Miss:
    """A held-out reading as one law saw it: error = log(predicted/measured), distance in decades."""

    law: str
    axis: str
    fold: str
    row: int
    error: float
    distance: float


def candidate_of(which: str | Candidate, delta: float | Misfit = DELTA) -> Candidate:
    """A form's name as the candidate that takes all rows."""
    return which if isinstance(which, Candidate) else Candidate(which, delta=delta)


def misses(which: str | Candidate, table: Table, fold: Holdout, cases: Array, delta: float = DELTA) -> tuple[Miss, ...]:
    """One candidate's errors on some rows (indices) of a fold, fitted to the fold's train rows; none where it
    cannot answer.

    A law that answers only some questions (size: one D) is asked about the cases one level at a time.
    """
    candidate = candidate_of(which, delta)
    law, train = laws.get(candidate.law), take(table, fold.train)
    out: list[Miss] = []
    for group in _questions(candidate.law, table, cases):
        test = take(table, group)
        if law.answers(train, test):
            continue
        seen = candidate.rows(train, test)
        fit = law.fit(seen, candidate.delta)
        if not fit.usable:
            continue
        error = np.log(law.predict(fit.params, test) / test["loss"])
        out += [
            Miss(candidate.law, fold.axis, fold.label, int(r), float(e), float(d))
            for r, e, d in zip(group, error, distance(seen, test), strict=True)
            if np.isfinite(e)
        ]
    return tuple(out)


def _questions(name: str, table: Table, cases: Array) -> list[Array]:
    """The cases as groups that one fit of the law answers."""
    if not laws.holds_at_one_d(name):
        return [cases] if len(cases) else []
    d = table["D"][cases]
    levels = np.searchsorted(forms.distinct(d, 0.01), d, side="right")
    found, count = np.unique(levels, return_counts=True)
    return [cases[levels == level] for level in np.sort(found[np.argsort(-count, kind="stable")[:QUESTIONS]])]


def cases_like(able: list[str], table: Table, fold: Holdout, targets: Table | None, near: float = NEAR_D) -> Array:
    """The held-out rows like the targets: near their D for size, the best of their budgets for frontier, and by C no
    farther from the readings' own path than the targets."""
    cases = fold.test
    if any(map(laws.holds_at_one_d, able)) and targets is not None and fold.axis != "D":
        ratio = np.abs(np.log(table["D"][cases] / targets["D"][0]))
        cases = cases[ratio <= np.log(near * 1.01)]
    if "frontier" in able:
        cases = np.intersect1d(cases, fold.test[frontier.select(take(table, fold.test))])
    elif targets is not None and fold.axis == "C" and len(cases):
        reach = off_path(table, targets).max() + frontier.OFF_PATH
        close = cases[off_path(take(table, fold.train), take(table, cases)) <= reach]
        cases = close if len(close) else cases
    return cases[~rows.outliers(table)[cases]]


def answered(name: str, table: Table, fold: Holdout, cases: Array) -> Array:
    """The cases that a law answers: those nearest the readings' own path, for a law that holds on it alone."""
    if not laws.stays_on_path(name) or not len(cases):
        return cases
    answers, train = laws.get(name).answers, take(table, fold.train)
    order = cases[np.argsort(off_path(train, take(table, cases)), kind="stable")]
    least, most = 0, len(order)
    while least < most:  # bisected: an answer is asked for with a fit each time
        middle = (least + most + 1) // 2
        least, most = (least, middle - 1) if answers(train, take(table, order[:middle])) else (middle, most)
    return np.sort(order[:least])


def off_path(train: Table, targets: Table) -> Array:
    """How far targets lie from the path of the best reading per budget: decades of N at equal C."""
    targets = columns(targets)
    best = take(train, frontier.select(train))
    c, n = np.log10(best["C"]), np.log10(best["N"])
    line = np.polyfit(c, n, 1) if len(c) > 1 and np.ptp(c) > 0 else np.array([0.0, n.mean() if len(n) else 0.0])
    return np.asarray(np.abs(np.log10(targets["N"]) - np.polyval(line, np.log10(targets["C"]))))


def thinned(table: Table) -> Table:
    """At most MOST_ROWS rows, evenly through the table sorted by C (so that row order does not matter)."""
    count = laws.rows_of(table)
    if count <= MOST_ROWS or not {"C", "N", "loss"} <= set(table):
        return table
    order = np.lexsort((table["loss"], table["N"], table["C"]))
    return take(table, np.sort(order[np.linspace(0, count - 1, MOST_ROWS).astype(int)]))


def score(found: tuple[Miss, ...]) -> float:
    """Root mean square of error/(1 + distance/NEAR) over folds of equal weight; NaN without misses."""
    folds: dict[tuple[str, str], list[float]] = {}
    for m in found:
        folds.setdefault((m.axis, m.fold), []).append((m.error * NEAR / (NEAR + m.distance)) ** 2)
    return float(np.sqrt(np.mean([np.mean(v) for v in folds.values()]))) if folds else float("nan")
