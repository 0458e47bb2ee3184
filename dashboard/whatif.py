"""The forecast as another form, or another loss of the fit, would have told it: from a ladder's minima, nothing else.

Without the ladder's own resamples, runs are re-weighted, so an interval differs a little from the registered one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from dashboard.style import short
from tunnel import laws
from tunnel.backtests import backtest, holdouts, intervals
from tunnel.backtests import rows as windows
from tunnel.fitting import forms
from tunnel.laws import isoflop

Fit = Mapping[str, Any]  # a ladder's, as fits/*.json holds it
LOSSES = {"huber": "Huber, δ 0.001", "squares": "least squares", "envelope": "lower envelope"}  # laws.MISFITS in words
BUDGETS = 5  # of which curves of equal compute are drawn
MOST = 6  # parabolas of readings
FAR = 3.0  # times the sizes tried: where a law puts the best size farther off, it does not know it  *assumed*
SPAN = 3.0  # either way of the best N that they are drawn over
POINTS = 40


@dataclass(frozen=True)
class Told:
    """A form and a loss with the target's forecast, its 90% interval and its params; or `why` it tells none."""

    law: str
    loss: str
    value: float = np.nan
    low: float = np.nan
    high: float = np.nan
    why: str = ""
    fit: Fit | None = None  # as the ladder's, so that the same figure draws it

    @property
    def name(self) -> str:
        return f"{self.law}, {LOSSES[self.loss]}"


def minima_of(fit: Fit) -> dict[str, np.ndarray]:
    """The valleys' minima as a runs table, as the ladder's own fit takes them."""
    lows = fit["minima"]
    table = {k: np.array([m[k] for m in lows], float) for k in ("N", "D", "C", "loss")}
    return {**table, "run": np.array([f"{m['width']}x{m['depth']}" for m in lows])}


def target_of(fit: Fit) -> dict[str, np.ndarray]:
    n, d = (float(fit["forecast"][k]) for k in "ND")
    return {"N": np.array([n]), "D": np.array([d]), "C": np.array([6 * n * d])}


def candidate(fit: Fit, law: str, loss: str) -> backtest.Candidate:
    """A form with a loss, on the rows that the chosen form was fitted to where it is that one."""
    window = fit.get("rows", {}).get("window") if law == fit["chosen"] else None
    return backtest.Candidate(law, windows.window(window) if window else windows.ALL, laws.MISFITS[loss])


def able(fit: Fit) -> tuple[list[str], dict[str, str]]:
    """The forms that can tell the target's loss from the minima, and why the others cannot."""
    table, where = minima_of(fit), target_of(fit)
    names = [n for n in laws.names() if laws.get(n).KIND == "loss"]
    why = {n: laws.get(n).answers(table, where) for n in names}
    return [n for n in names if not why[n]], {n: w for n, w in why.items() if w}


def own_loss(fit: Fit) -> str:
    """The loss that the chosen form was fitted with, by its name in `laws.MISFITS`."""
    said = fit.get("rows", {}).get("loss")
    return next(
        (k for k, m in laws.MISFITS.items() if backtest.Candidate(fit["chosen"], delta=m).loss == said), "huber"
    )


def told(fit: Fit, name: str, loss: str) -> Told:
    """One forecast: the target's, and the curve to it at the target's D."""
    table, where, which = minima_of(fit), target_of(fit), candidate(fit, name, loss)
    curve = {k: np.array([c[k] for c in fit["curve"]], float) for k in "ND"}
    wide = {k: np.append(curve[k], where[k]) for k in "ND"}
    wide["C"] = 6 * wide["N"] * wide["D"]
    if laws.stays_on_path(name):
        wide = where
    axis = holdouts.question(table, where)
    misses = backtest.own_misses(which, table, where, axis, near=backtest.NEAR_D)
    found = intervals.forecast(which, table, wide, misses=misses, noise=fit.get("noise"))
    value, low, high = (float(getattr(found, k)[-1]) for k in ("value", "low", "high"))
    if not np.isfinite([value, low, high]).all():
        return Told(name, loss, why=str(found.parts.get("reason", "no forecast")))
    ends = {"value": value, "low": low, "high": high, "law": name, "distance": float(found.distance[-1])}
    path = [
        {"N": float(n), "D": float(d), "value": float(v), "low": float(lo), "high": float(hi)}
        for n, d, v, lo, hi in zip(wide["N"], wide["D"], found.value, found.low, found.high, strict=True)
    ]
    other = {**fit, "chosen": name, "forecast": {**fit["forecast"], **ends}, "curve": path[:-1] or path}
    return Told(name, loss, value, low, high, fit=other)


@dataclass(frozen=True)
class Residuals:
    """By how much each valley's minimum lies above a law, in % of it; `used`: whether the law was fitted to it."""

    N: np.ndarray
    D: np.ndarray
    percent: np.ndarray
    used: np.ndarray


def residuals(fit: Fit, name: str, loss: str) -> Residuals | None:
    """None where the form has no parameters. A law that holds at one D is asked about that D alone."""
    table, where, which = minima_of(fit), target_of(fit), candidate(fit, name, loss)
    seen = which.rows(table, where)
    found = laws.get(name).fit(seen, which.delta)
    if not found.usable:
        return None
    fitted = set(zip(seen["N"], seen["D"], strict=True))
    used = np.array([k in fitted for k in zip(table["N"], table["D"], strict=True)])
    asked = laws.take(table, np.flatnonzero(used)) if laws.holds_at_one_d(name) else table
    used = used[used] if laws.holds_at_one_d(name) else used
    percent = 100 * (asked["loss"] / laws.get(name).predict(found.params, asked) - 1)
    return Residuals(asked["N"], asked["D"], percent, used)


@dataclass(frozen=True)
class Budget:
    """One compute budget: the loss over N at it, and the N and loss of its best; `read`: the readings behind it."""

    C: float
    N: np.ndarray
    loss: np.ndarray
    best: tuple[float, float]
    read: tuple[np.ndarray, np.ndarray] | None = None


def splits(fit: Fit) -> tuple[Mapping[str, float] | None, str]:
    """The parameters of the law of N and D, where it can say how a budget is best split; else why it cannot."""
    known = fit["laws"].get("chinchilla")
    if known is None or any(v is None for v in known["params"].values()):
        why = (known or {}).get("reason") or "it was not fitted to this ladder"
        return None, f"L(N, D) = E + A/N^α + B/D^β tells how a budget is best split, and {why}"
    with np.errstate(all="ignore"):
        best = float(laws.get("chinchilla").optimal(known["params"], max(m["C"] for m in fit["minima"]))[0])
    sizes = [m["N"] for m in fit["minima"]]
    if not min(sizes) / FAR < best < max(sizes) * FAR:
        said = f"{short(best)} parameters, while {short(min(sizes))} to {short(max(sizes))} were tried"
        return None, f"the law of N and D puts the best size for the largest budget at {said}: it cannot be told yet"
    return known["params"], ""


def iso_flop(fit: Fit) -> tuple[list[Budget], str]:
    """L(N, C/6N) of the law of N and D at budgets from the smallest minimum's to the target's; or why there is none."""
    params, why = splits(fit)
    if params is None:
        return [], why
    law, c, found = laws.get("chinchilla"), minima_of(fit)["C"], []
    for budget in np.geomspace(c.min(), max(float(target_of(fit)["C"][0]), c.max()), BUDGETS):
        best = float(law.optimal(params, budget)[0])
        n = best * np.geomspace(1 / SPAN, SPAN, POINTS)
        at = [law.predict(params, {"N": x, "D": budget / (6 * x)}) for x in (n, np.array([best]))]
        found.append(Budget(float(budget), n, at[0], (best, float(at[1][0]))))
    return found, ""


def parabolas(rows: pd.DataFrame) -> list[Budget]:
    """Parabolas of log loss in log N through readings of equal compute, where they enclose a minimum (`isoflop`)."""
    if not len(rows):
        return []
    best = rows.sort_values("loss").assign(budget=forms.budgets(rows.sort_values("loss").C.to_numpy(float)))
    best = best.drop_duplicates(["budget", "N"])
    table = {k: best[k].to_numpy(float) for k in ("N", "D", "C", "loss")}
    found = []
    for own in isoflop.valleys(table).rows[:MOST]:
        n, loss = table["N"][own], table["loss"][own]
        curve = np.polynomial.Polynomial.fit(np.log(n), np.log(loss), 2)
        at = np.geomspace(n.min(), n.max(), POINTS)
        y = np.exp(curve(np.log(at)))
        low = int(np.argmin(y))
        c = float(np.exp(np.log(table["C"][own]).mean()))
        found.append(Budget(c, at, y, (float(at[low]), float(y[low])), (n, loss)))
    return found
