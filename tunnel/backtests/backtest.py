"""The choice of form, rows and loss by hold-outs, made before the answer is seen; and the hold-outs' report.

All candidates are compared on the same held-out readings, those that look like the question (`holdouts`): every form
with every window of rows (rows.WINDOWS), then each form's best window with the other losses. Source: SCIENCE.md §4, §9.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from tunnel import laws
from tunnel.backtests.candidates import (
    NEAR,
    NEAR_D,
    Candidate,
    Miss,
    answered,
    candidate_of,
    cases_like,
    misses,
    score,
    thinned,
)
from tunnel.backtests.holdouts import AXES, Holdout, distance, holdouts, question
from tunnel.backtests.rows import ALL, WINDOWS, Window
from tunnel.laws import DELTA, MISFITS, Array, Misfit, Table, columns

# scores (log error) this close are equal: rounding; derived from double precision and the fit's tolerance
ALIKE = 1e-7
LOSSES = ("squares", "envelope")  # tried beside Huber's δ
PER_PARAMETER = 3  # rows per parameter that a window must leave; assumed: fewer would choose by luck
RIVAL = 3.0  # a candidate that misses the hold-outs by up to this factor more is not clearly worse; assumed
FEWEST = 3  # cases that a comparison takes, where there are so many; assumed: one is luck

Found = dict[Candidate, tuple[Miss, ...]]
Folds = list[tuple[Holdout, dict[str, Array]]]  # with the cases that each law answers


@dataclass(frozen=True)
class Choice:
    """The candidate chosen for a question, the hold-outs that decided, every form's best score there, and who was
    rejected and why; `tried` holds every candidate's score, the lowest first.

    A score is the root mean square of error/(1 + distance/NEAR): the relative error to expect at the fit's edge.
    """

    candidate: Candidate
    axis: str
    cases: int
    scores: Mapping[str, float]
    rejected: Mapping[str, str]
    misses: tuple[Miss, ...]
    tried: tuple[tuple[Candidate, float], ...] = ()

    @property
    def law(self) -> str:
        """The chosen form."""
        return self.candidate.law

    @property
    def own(self) -> tuple[Miss, ...]:
        """The chosen candidate's misses."""
        return tuple(m for m in self.misses if m.law == self.law)

    def rivals(self, factor: float = RIVAL) -> dict[Candidate, float]:
        """The candidates that the hold-outs do not clearly reject, with their weight beside the chosen one's 1."""
        own = max(dict(self.tried).get(self.candidate, np.nan), ALIKE)
        near = {c: max(s, ALIKE) for c, s in self.tried if c != self.candidate and s <= factor * own}
        return {c: min(1.0, own / s) ** 2 for c, s in near.items()}


def choose(
    table: Table,
    targets: Table | None = None,
    delta: float | Misfit = DELTA,
    among: tuple[str, ...] = (),
    windows: tuple[Window, ...] = WINDOWS,
) -> Choice:
    """The candidate that does best, on equal cases, on the hold-outs that look like the question.

    `among`: the forms that compete; all of them unless the caller knows that one does not fit the readings' design.
    """
    table = thinned(columns(table))
    able, rejected = _able(table, targets, delta, among)
    plain = Candidate(able[0] if able else "chinchilla", delta=delta)
    rejected.pop(plain.law, None)
    tried = candidates(able, table, delta, windows)
    # a target on the readings' own path grows as they did: the budgets left out are its likeness
    axis = "C" if any(map(laws.stays_on_path, able)) else question(table, targets)
    for asked in dict.fromkeys((axis, "all")) if tried else ():
        folds = _folds(able, table, targets, asked)
        raw = _ask(tried, table, folds)
        best = _champions(_common(raw))
        if len(best) > 1 or (best and (asked == "all" or len(able) == 1)):
            if _enough(table, plain.law):
                raw |= _ask([replace(c, delta=MISFITS[k]) for c in best.values() for k in LOSSES], table, folds)
            for name in (n for n in able if n not in best):
                rejected[name] = f"{name} could not be compared: it answers too few of the hold-outs that others do."
            return _decide(asked, _common(raw), rejected)
    rejected.update({n: f"{n} could not be compared: the table allows no hold-out." for n in able[1:]})
    return Choice(plain, axis, 0, {}, rejected, ())


def _able(
    table: Table, targets: Table | None, delta: float | Misfit, among: tuple[str, ...]
) -> tuple[list[str], dict[str, str]]:
    """The forms that can answer the targets from the table, and why the others cannot."""
    able, rejected = [], {}
    for name in (n for n in among or laws.names() if laws.get(n).KIND == "loss"):
        why = laws.get(name).answers(table, targets) if targets is not None else _needs_targets(name)
        fit = None if why else Candidate(name, delta=delta).fit(table, targets)
        if fit is not None and not fit.usable:
            why = fit.reason
        if why:
            rejected[name] = f"{name} does not apply: {why}."
        else:
            able.append(name)
    return able, rejected


def candidates(able: list[str], table: Table, delta: float | Misfit, windows: tuple[Window, ...]) -> list[Candidate]:
    """Every form with every window that is another fit; a form that selects its own rows takes them all."""
    out = []
    for name in able:
        least = PER_PARAMETER * len(laws.get(name).PARAMS)
        seen: dict[bytes, Window] = {}
        selects = laws.holds_at_one_d(name) or laws.stays_on_path(name)
        for window in (ALL,) if selects else windows:
            inside = window.of(table)
            if window is ALL or laws.rows_of(inside) >= least:
                same = b"".join(inside[k].tobytes() for k in ("N", "D", "loss", "weight") if k in inside)
                seen.setdefault(same, window)
        out += [Candidate(name, window, delta) for window in seen.values()]
    return out


def _enough(table: Table, name: str) -> bool:
    return laws.rows_of(table) >= PER_PARAMETER * len(laws.get(name).PARAMS)


def _needs_targets(name: str) -> str:
    if laws.stays_on_path(name):
        return "it answers only for targets on the readings' own N-D path, and none are given"
    return "it holds at one D, and no target names it" if laws.holds_at_one_d(name) else ""


def _folds(able: list[str], table: Table, targets: Table | None, axis: str) -> Folds:
    """The hold-outs by one axis (or all), each with the cases that each law answers."""
    out: Folds = []
    for fold in holdouts(table, AXES if axis == "all" else (axis,)):
        cases = cases_like(able, table, fold, targets)
        out.append((fold, {name: answered(name, table, fold, cases) for name in able}))
    return out


def _ask(tried: Iterable[Candidate], table: Table, folds: Folds) -> Found:
    """Each candidate's misses over the folds."""
    return {c: tuple(m for fold, cases in folds for m in misses(c, table, fold, cases[c.law])) for c in tried}


def _common(raw: Found) -> Found:
    """The misses on the cases that all of the candidates answer.

    A window too narrow for the smaller fits leaves the comparison, rather than the cases that it cannot answer; so
    does a form that would leave too few cases to choose by.
    """
    keys = {c: {(m.axis, m.fold, m.row) for m in ms} for c, ms in raw.items()}
    most: dict[str, int] = {}
    for c in raw:
        most[c.law] = max(most.get(c.law, 0), len(keys[c]))
    full = [c for c in raw if len(keys[c]) == most[c.law] > 0]
    ranked = sorted(full, key=lambda c: -len(keys[c]))
    common, kept = keys[ranked[0]] if ranked else set(), ranked[:1]
    for c in ranked[1:]:
        if len(common & keys[c]) >= min(FEWEST, len(common)):
            common, kept = common & keys[c], [*kept, c]
    return {c: tuple(m for m in raw[c] if (m.axis, m.fold, m.row) in common) for c in raw if c in kept}


def _champions(found: Found) -> dict[str, Candidate]:
    """Each form's candidate of the lowest score."""
    out: dict[str, Candidate] = {}
    for c in sorted(found, key=lambda c: score(found[c])):
        out.setdefault(c.law, c)
    return out


def free(name: str) -> int:
    """The parameters that readings alone must decide."""
    law = laws.get(name)
    return getattr(law, "FREE", len(law.PARAMS))


def has_floor(name: str) -> bool:
    """Whether a form ends at a loss above 0, as that of text does: preferred where hold-outs do not separate two."""
    return "E" in laws.get(name).PARAMS


def _decide(axis: str, found: Found, rejected: dict[str, str]) -> Choice:
    """The lowest score, unless a form with fewer parameters, or with a floor, is nearly as good."""
    scores = {c: score(ms) for c, ms in found.items()}
    first = next(iter(found.values()))
    folds = len({(m.axis, m.fold) for m in first})
    margin = 1 + 2 / folds**2  # one fold is one draw: its errors may as well have been three times as large  *assumed*
    lowest = min(max(value, ALIKE) for value in scores.values())
    level = [c for c in found if scores[c] <= margin * lowest]  # none of them is clearly better
    best = min(level, key=lambda c: (free(c.law), not has_floor(c.law), max(scores[c], ALIKE)))
    tried = tuple(sorted(scores.items(), key=lambda item: item[1]))
    champions = _champions(found) | {best.law: best}
    what = {"all": "all hold-outs"}.get(axis, f"the hold-outs by {axis}")
    for name, c in champions.items():
        if c is best:
            continue
        rejected[name] = (
            f"{name} misses {what} ({len(first)} cases that all forms answer) by {100 * scores[c]:.2g}% near the fit, "
            f"{best.law} by {100 * scores[best]:.2g}%"
            + (
                f"; under {margin:.3g} times better, it yields to fewer parameters, or to a floor."
                if scores[c] < scores[best]
                else "."
            )
        )
    kept = tuple(m for c in champions.values() for m in found[c])
    return Choice(best, axis, len(first), {n: scores[c] for n, c in champions.items()}, rejected, kept, tried)


def own_misses(
    which: str | Candidate,
    table: Table,
    targets: Table | None,
    axis: str,
    delta: float | Misfit = DELTA,
    near: float = 1.0,
) -> tuple[Miss, ...]:
    """All misses of one candidate on the hold-outs that look like the question: what its interval is made of.

    `near`: the factor in D from the targets within which a law that holds at one D is asked too.
    """
    candidate, table = candidate_of(which, delta), thinned(columns(table))
    for asked in dict.fromkeys(("C" if laws.stays_on_path(candidate.law) else axis, "all")):
        found: list[Miss] = []
        for fold in holdouts(table, AXES if asked == "all" else (asked,)):
            cases = cases_like([candidate.law], table, fold, targets, near)
            found += misses(candidate, table, fold, answered(candidate.law, table, fold, cases))
        if found:
            return tuple(found)
    return ()


def report(which: str | Candidate, table: Table, delta: float | Misfit = DELTA) -> list[dict[str, object]]:
    """Every hold-out as one candidate sees it: label, cases, mean, largest and signed error, distance (decades)."""
    candidate, table = candidate_of(which, delta), thinned(columns(table))
    out: list[dict[str, object]] = []
    for fold in holdouts(table):
        cases = cases_like([candidate.law], table, fold, None)
        found = misses(candidate, table, fold, answered(candidate.law, table, fold, cases))
        if not found:
            continue
        error = np.array([m.error for m in found])
        out.append(
            {
                "law": candidate.law,
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
    "NEAR",
    "NEAR_D",
    "Candidate",
    "Choice",
    "Holdout",
    "Miss",
    "candidate_of",
    "choose",
    "distance",
    "holdouts",
    "misses",
    "own_misses",
    "question",
    "report",
    "score",
    "thinned",
]
