"""Hold-outs by run, what every law misses them by, and the choice of the form: made before the answer is
seen.

Expanding windows: the largest N (D, C) left out, then the two largest, ... while at least half of the levels
remain. A hold-out by N or C leaves out the whole runs that it tests; one by D keeps the shorter forks of the
same trunks, for that is what a forecast in D starts from. Source: SCIENCE.md §4, §9.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tunnel import laws
from tunnel.laws import DELTA, Array, Fit, Table, _fit, columns, take, usable_rows

AXES = ("N", "D", "C")
LEVELS = 8  # up to 8 distinct values are levels; more are binned by factors of 2 from the top; assumed
QUESTIONS = 8  # lengths at which a form that holds at one D is asked, those with most readings; assumed
CUTS = 4  # hold-outs per axis at most; assumed: a fourth window adds little to the third
NEAR = 0.3  # decades: within a factor 2 of the fit an error does not grow, beyond it in proportion; assumed
ONE_SIDED = 2.0  # a target this many times further in N than in D (in decades) asks a question about N; assumed
# by N, a form that holds at one D is judged at D within this factor of the target's: one rung is one case,
NEAR_D = 4.0
# too few to choose by; assumed; with the margin below, measured here: right on 97-100% of simulated ladders
# (seed noise up to 0.5%), against 84% by one rung alone
# scores (log error) this close are equal: rounding; derived from double precision and the fit's tolerance
ALIKE = 1e-7


@dataclass(frozen=True)
class Holdout:
    """A fold: rows to fit on and rows to predict (indices into the table), and what was left out."""

    axis: str
    label: str
    train: Array
    test: Array


@dataclass(frozen=True)
class Miss:
    """A held-out reading as one law saw it: error = log(predicted/measured), distance in decades."""

    law: str
    axis: str
    fold: str
    row: int
    error: float
    distance: float


@dataclass(frozen=True)
class Choice:
    """The law chosen for a question, the hold-outs that decided, each law's score there, and who was rejected
    and why.

    A score is the root mean square of error/(distance + NEAR)·NEAR: the relative error to expect near the
    fit.
    """

    law: str
    axis: str
    cases: int
    scores: Mapping[str, float]
    rejected: Mapping[str, str]
    misses: tuple[Miss, ...]


def distance(train: Table, targets: Table) -> Array:
    """Decades (log10) beyond the fitted rows, per target: the largest over N, D, C; 0 inside."""
    train, targets = columns(train), columns(targets)
    out = np.zeros(laws.rows_of(targets))
    for axis in AXES:
        if axis in train and axis in targets and len(train[axis]):
            value = np.log10(targets[axis])
            high, low = np.log10(train[axis].max()), np.log10(train[axis].min())
            out = np.maximum(out, np.maximum(value - high, low - value))
    return np.where(out < 1e-9, 0.0, out)  # rounding in C = 6ND is no distance


def holdouts(table: Table, axes: tuple[str, ...] = AXES) -> tuple[Holdout, ...]:
    """All folds of a table, by axis; at least half of an axis' levels (and 2) stay in the fit."""
    table = columns(table)
    found = []
    runs = laws.runs_of(table)
    for axis in axes:
        if axis not in table or "loss" not in table:
            continue
        rows = np.flatnonzero(usable_rows(table, (axis, "loss")))
        starts = _starts(table[axis][rows]) if len(rows) else []
        for k in range(1, min(len(starts) // 2, CUTS) + 1):
            tested = table[axis] >= starts[-k] * (1 - 1e-12)
            left = np.isin(runs, runs[tested & np.isin(np.arange(len(runs)), rows)]) if axis != "D" else tested
            train, test = np.setdiff1d(rows, np.flatnonzero(left)), rows[tested[rows]]
            if len(train) and len(test):
                found.append(Holdout(axis, f"{axis} ≥ {starts[-k]:.4g} left out", train, test))
    return tuple(found)


def _starts(values: Array) -> list[float]:
    """Where the levels of an axis begin, ascending: distinct values, or factors of 2 from the top."""
    levels = _fit.distinct(values, 0.01)
    if len(levels) <= LEVELS:
        return levels
    bins = np.floor(np.log2(values.max() / values) * (1 - 1e-12)).astype(int)
    return sorted(float(values[bins == b].min()) for b in np.unique(bins))


def misses(name: str, table: Table, fold: Holdout, cases: Array, delta: float = DELTA) -> tuple[Miss, ...]:
    """One law's errors on some rows (indices) of a fold, fitted to the fold's train rows; none where it
    cannot answer.

    A law that answers only some questions (size: one D) is asked about the cases one level at a time.
    """
    law, train = laws.get(name), take(table, fold.train)
    out: list[Miss] = []
    for group in _questions(name, table, cases):
        test = take(table, group)
        if law.answers(train, test):
            continue
        rows = take(train, law.select(train, test))
        fit = law.fit(rows, delta)
        if not fit.usable:
            continue
        error = np.log(law.predict(fit.params, test) / test["loss"])
        far = distance(rows, test)
        out += [
            Miss(name, fold.axis, fold.label, int(r), float(e), float(d))
            for r, e, d in zip(group, error, far, strict=True)
            if np.isfinite(e)
        ]
    return tuple(out)


def _questions(name: str, table: Table, cases: Array) -> list[Array]:
    """The cases as groups that one fit of the law answers."""
    if not laws.holds_at_one_d(name):
        return [cases] if len(cases) else []
    d = table["D"][cases]
    levels = np.searchsorted(_fit.distinct(d, 0.01), d, side="right")
    found, count = np.unique(levels, return_counts=True)
    return [cases[levels == level] for level in np.sort(found[np.argsort(-count, kind="stable")[:QUESTIONS]])]


def question(table: Table, targets: Table | None) -> str:
    """Which hold-outs look like the targets: N, D or C (both), or "all" where nothing is asked."""
    if targets is None or not laws.rows_of(targets) or not {"N", "D"} <= set(targets):
        return "all"
    table, targets = columns(table), columns(targets)
    beyond = {a: float(np.log10(targets[a].max() / table[a].max())) for a in AXES if a in table}
    n, d, c = (max(beyond.get(a, 0.0), 0.0) for a in AXES)
    if max(n, d, c) < np.log10(1.05):
        return "all"
    if n >= ONE_SIDED * d and n > 0:
        return "N"
    if d >= ONE_SIDED * n and d > 0:
        return "D"
    return "C"


def choose(table: Table, targets: Table | None = None, delta: float = DELTA, among: tuple[str, ...] = ()) -> Choice:
    """The law of the loss that does best, on equal cases, on the hold-outs that look like the question.

    `among`: the forms that compete; all of them unless the caller knows that one does not fit the readings' design.
    """
    table = columns(table)
    rejected: dict[str, str] = {}
    able = []
    for name in (n for n in among or laws.names() if laws.get(n).KIND == "loss"):
        law = laws.get(name)
        why = law.answers(table, targets) if targets is not None else _needs_targets(name)
        fit = None if why else law.fit(take(table, law.select(table, targets)), delta)
        if fit is not None and not fit.usable:
            why = fit.reason
        if why:
            rejected[name] = f"{name} does not apply: {why}."
        else:
            able.append(name)
    if len(able) < 2:
        law_name = able[0] if able else "chinchilla"
        rejected.pop(law_name, None)
        return Choice(law_name, question(table, targets), 0, {}, rejected, ())
    # a target on the readings' own path grows as they did: the budgets left out are its likeness
    axis = "C" if "frontier" in able else question(table, targets)
    for asked in dict.fromkeys((axis, "all")):
        found = _compare(able, table, targets, asked, delta)
        if len(found) > 1 or (found and asked == "all"):
            for name in (n for n in able if n not in found):
                rejected[name] = f"{name} could not be compared: it answers none of the hold-outs that the others do."
            return _decide(asked, found, rejected)
    rejected.update({n: f"{n} could not be compared: the table allows no hold-out." for n in able[1:]})
    return Choice(able[0], axis, 0, {}, rejected, ())


def _needs_targets(name: str) -> str:
    return {
        "frontier": "it answers only for targets on the readings' own N-D path, and none are given",
    }.get(name, "it holds at one D, and no target names it" if laws.holds_at_one_d(name) else "")


def _cases(able: list[str], table: Table, fold: Holdout, targets: Table | None, near: float = NEAR_D) -> Array:
    """The held-out rows like the targets: near their D for size, the best of their budgets for frontier."""
    cases = fold.test
    if any(map(laws.holds_at_one_d, able)) and targets is not None and fold.axis != "D":
        ratio = np.abs(np.log(table["D"][cases] / targets["D"][0]))
        cases = cases[ratio <= np.log(near * 1.01)]
    if "frontier" in able:
        cases = np.intersect1d(cases, fold.test[laws.get("frontier").select(take(table, fold.test))])
    return cases


def _compare(
    able: list[str], table: Table, targets: Table | None, axis: str, delta: float
) -> dict[str, tuple[Miss, ...]]:
    """Each law's misses on the cases that all of them answer, over the folds of one axis (or all).

    Laws that share no case with the one that answers most are not among the keys.
    """
    found: dict[str, list[Miss]] = {name: [] for name in able}
    for fold in holdouts(table, AXES if axis == "all" else (axis,)):
        cases = _cases(able, table, fold, targets)
        for name in able:
            found[name] += misses(name, table, fold, cases, delta)
    keys = {name: {(m.axis, m.fold, m.row) for m in ms} for name, ms in found.items()}
    ranked = sorted(able, key=lambda n: (-len(keys[n]), able.index(n)))
    common, kept = keys[ranked[0]], [ranked[0]]
    for name in ranked[1:]:
        if common & keys[name]:
            common, kept = common & keys[name], [*kept, name]
    return {n: tuple(m for m in found[n] if (m.axis, m.fold, m.row) in common) for n in kept} if common else {}


def score(found: tuple[Miss, ...]) -> float:
    """Root mean square of error·NEAR/(NEAR + distance) over folds of equal weight; NaN without misses."""
    folds: dict[tuple[str, str], list[float]] = {}
    for m in found:
        folds.setdefault((m.axis, m.fold), []).append((m.error * NEAR / (NEAR + m.distance)) ** 2)
    return float(np.sqrt(np.mean([np.mean(v) for v in folds.values()]))) if folds else float("nan")


def free(name: str) -> int:
    """The parameters that readings alone must decide."""
    law = laws.get(name)
    return getattr(law, "FREE", len(law.PARAMS))


def has_floor(name: str) -> bool:
    """Whether a form ends at a loss above 0, as that of text does: preferred where hold-outs do not separate two."""
    return "E" in laws.get(name).PARAMS


def _decide(axis: str, found: dict[str, tuple[Miss, ...]], rejected: dict[str, str]) -> Choice:
    """The lowest score, unless a form with fewer parameters, or with a floor, is nearly as good."""
    able = list(found)
    scores = {name: score(ms) for name, ms in found.items()}
    folds = len({(m.axis, m.fold) for m in found[able[0]]})
    margin = 1 + 2 / folds**2  # one fold is one draw: its errors may as well have been three times as large  *assumed*
    lowest = min(max(value, ALIKE) for value in scores.values())
    level = [n for n in able if scores[n] <= margin * lowest]  # none of them is clearly better
    best = min(level, key=lambda n: (free(n), not has_floor(n), max(scores[n], ALIKE)))
    cases = len(found[best])
    what = {"all": "all hold-outs"}.get(axis, f"the hold-outs by {axis}")
    for name in (n for n in able if n != best):
        rejected[name] = (
            f"{name} misses {what} ({cases} cases that all forms answer) "
            f"by {100 * scores[name]:.2g}% near the fit, "
            f"{best} by {100 * scores[best]:.2g}%"
            + (
                f"; under {margin:.3g} times better, it yields to fewer parameters, or to a floor."
                if scores[name] < scores[best]
                else "."
            )
        )
    return Choice(best, axis, cases, scores, rejected, tuple(m for ms in found.values() for m in ms))


def own_misses(
    name: str, table: Table, targets: Table | None, axis: str, delta: float = DELTA, near: float = 1.0
) -> tuple[Miss, ...]:
    """All misses of one law on the hold-outs that look like the question: what its interval is made of.

    `near`: the factor in D from the targets within which a law that holds at one D is asked too.
    """
    table = columns(table)
    for asked in dict.fromkeys(("C" if name == "frontier" else axis, "all")):
        found: list[Miss] = []
        for fold in holdouts(table, AXES if asked == "all" else (asked,)):
            found += misses(name, table, fold, _cases([name], table, fold, targets, near), delta)
        if found:
            return tuple(found)
    return ()


def report(name: str, table: Table, delta: float = DELTA) -> list[dict[str, object]]:
    """Every hold-out as one law sees it: label, cases, mean, largest and signed error, distance (decades)."""
    table = columns(table)
    out: list[dict[str, object]] = []
    for fold in holdouts(table):
        found = misses(name, table, fold, _cases([name], table, fold, None), delta)
        if not found:
            continue
        error = np.array([m.error for m in found])
        out.append(
            {
                "law": name,
                "axis": fold.axis,
                "left_out": fold.label,
                "cases": len(found),
                "mean_error_percent": 100 * float(np.abs(error).mean()),
                "max_error_percent": 100 * float(np.abs(error).max()),
                "bias_percent": 100 * float(error.mean()),
                "distance_decades": float(np.mean([m.distance for m in found])),
            }
        )
    return out


__all__ = [
    "Choice",
    "Fit",
    "Holdout",
    "Miss",
    "choose",
    "distance",
    "holdouts",
    "misses",
    "own_misses",
    "report",
]
