"""Dense or a mixture of experts for this budget: bodies side by side at equal FLOPs, and one law of both."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from tunnel import laws
from tunnel.answers.seeds import apart, best_lr, rounded, spread
from tunnel.backtests.backtest import Holdout, holdouts, misses
from tunnel.fitting import forms
from tunnel.folder.store import Store
from tunnel.laws import sparse
from tunnel.quantiles import LEVEL
from tunnel.run import Shape
from tunnel.space import MIXTURE, SHAPE
from tunnel.study import Study

Rows = list[dict[str, Any]]
KIND = (*SHAPE, *MIXTURE, "upcycle_at")  # what tells two bodies apart
DRAWS = 200  # of the bootstrap by trunk
RIVALS = {"sparse": "active and total N", "active": "active N alone", "total": "total N alone"}


def bodies(asked: Study, keep: Store) -> dict[str, Any] | None:
    """Every body at every budget where dense ones and mixtures were read; None where there is none.

    rows: FLOPs (full count, from scratch), body, N and N_total (parameters), D (tokens), seeds, loss (nats per token)
    with a 90% interval from seeds, and what percent it lies off the best dense body, paired by seed. A body counts at
    the best lr that was tried. words: the answer for each budget.
    """
    found = budgets(keep.readings())
    rows: Rows = []
    words: list[str] = []
    for _, here in found.groupby("budget"):
        each = [best_lr(body) for _, body in here.groupby(["kind"], sort=False)]
        each.sort(key=lambda b: float(b.loss.mean()))
        dense = next(b for b in each if b.experts.iloc[0] == 1)
        rows += [row(body, dense) for body in each]
        words.append(answer(each, dense))
    return {"rows": rows, "words": words} if rows else None


def budgets(readings: pd.DataFrame) -> pd.DataFrame:
    """The finished readings of budgets that a dense body and a mixture share, with `budget` and `kind`."""
    found = readings[readings.status == "complete"] if len(readings) else readings
    if not len(found) or not (found.experts > 1).any():
        return found.iloc[:0].assign(budget=[], kind=[])
    found = found.assign(
        budget=forms.budgets(found.flops.to_numpy(float)), kind=list(map(name, found.to_dict("records")))
    )
    experts = found.groupby("budget").experts
    return found[(experts.transform("min") == 1) & (experts.transform("max") > 1)]


def name(row: Mapping[Any, Any]) -> str:
    """A body in words: its shape, its mixture, and the tokens at which that began."""
    shape = Shape(width=row["width"], depth=row["depth"])
    if row["experts"] == 1:
        return f"{shape} dense"
    finer = f" at 1/{row['granularity']}" if row["granularity"] > 1 else ""
    since = f", upcycled at {row['upcycle_at']:,}" if row["upcycle_at"] else ", from scratch"
    return f"{shape} {row['top_k']} of {row['experts']}{finer}{since}"


def row(body: pd.DataFrame, dense: pd.DataFrame) -> dict[str, Any]:
    first, (low, high) = body.iloc[0], spread(body.loss)
    off, least, most = apart(body, dense)
    return {
        "FLOPs": f"{body.flops.mean():.3g}",
        "body": first.kind,
        "N": int(first.N),
        "N total": int(first.N_total),
        "D": int(body.D.mean()),
        "seeds": len(body),
        "loss": round(float(body.loss.mean()), 4),
        "low": rounded(low, 4),
        "high": rounded(high, 4),
        "% off dense": round(off, 2),
        "from": rounded(least, 2),
        "to": rounded(most, 2),
        "busiest expert": rounded(float(body.load_max.mean()), 2),
    }


def answer(each: list[pd.DataFrame], dense: pd.DataFrame) -> str:
    """Dense or a mixture at one budget; `each`: its bodies, the best first."""
    best = next(b for b in each if b.experts.iloc[0] > 1)
    off, low, high = apart(best, dense)
    names = best.kind.iloc[0], dense.kind.iloc[0]
    head = f"at {dense.flops.mean():.3g} FLOPs the best mixture, {names[0]}, lies {abs(off):.2g}%"
    head += f" {'below' if off < 0 else 'above'} the best dense body, {names[1]}"
    if not math.isfinite(low):
        return f"{head}: one seed, no interval"
    side = "a mixture" if high < 0 else "dense" if low > 0 else "no difference that these seeds show"
    return f"{head} ({low:+.2g} to {high:+.2g}%): {side}"


def law(asked: Study, keep: Store) -> dict[str, Any] | None:
    """One law of dense bodies and mixtures, and what it misses hold-outs by beside Chinchilla's of one N alone.

    Of what was trained from scratch, at its best lr. Left out are the largest bodies, and each kind of mixture. rows:
    law, what was left out, cases, mean and largest error in percent. None where no mixture was read.
    """
    readings = keep.readings()
    found = readings[(readings.status == "complete") & (readings.upcycle_at == 0)] if len(readings) else readings
    if not len(found) or not (found.experts > 1).any():
        return None
    found = pd.concat([best_lr(rows) for _, rows in found.groupby([*SHAPE, *MIXTURE, "D"])], ignore_index=True)
    table = {k: found[k].to_numpy(float) for k in ("N", "N_total", "D", "loss")}
    table["run"] = pd.factorize(found["run"])[0].astype(float)
    fit = sparse.fit(table)
    if not fit.usable:
        return {"rows": [], "words": [f"no law of both: {fit.reason}"]}
    folds = [*holdouts(table, ("N",)), *kinds_left_out(found)]
    rows = [row for which, words in RIVALS.items() for row in missed(which, words, table, folds)]
    return {"rows": rows, "words": [*told(fit, table), *better(rows)]}


def kinds_left_out(found: pd.DataFrame) -> list[Holdout]:
    """Each kind of mixture, of every shape, left out."""
    kinds = found[list(MIXTURE)].apply(tuple, axis=1)
    mixed = sorted(set(kinds[found.experts > 1]))
    named = {k: f"{k[1]} of {k[0]}" + (f" at 1/{k[2]}" if k[2] > 1 else "") for k in mixed}
    return [
        Holdout("kind", f"{named[k]} left out", np.flatnonzero(kinds != k), np.flatnonzero(kinds == k)) for k in mixed
    ]


def missed(which: str, words: str, table: laws.Table, folds: list[Holdout]) -> Rows:
    name = "sparse" if which == "sparse" else "chinchilla"
    own = {**table, "N": table["N_total"]} if which == "total" else table
    rows = []
    for fold in folds:
        errors = [100 * abs(m.error) for m in misses(name, own, fold, fold.test)]
        if errors:
            row = {"law of": words, "left out": fold.label, "cases": len(errors)}
            rows.append({**row, "mean %": round(float(np.mean(errors)), 2), "largest %": round(max(errors), 2)})
    return rows


def told(fit: laws.Fit, table: laws.Table) -> list[str]:
    """The law in numbers, and g with its interval from trunks drawn again."""
    p, runs = fit.params, laws.runs_of(table)
    counts = np.random.default_rng(0).multinomial(runs.max() + 1, np.full(runs.max() + 1, 1 / (runs.max() + 1)), DRAWS)
    drawn = sparse.refit(table, fit, counts[:, runs].astype(float))
    at = {k: drawn[:, sparse.PARAMS.index(k)] for k in ("alpha", "gamma")}
    low, high = np.quantile(at["gamma"] / at["alpha"], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    form = f"L = {p['E']:.3g} + {p['A']:.3g}/(N·(N_total/N)^g)^{p['alpha']:.3g} + {p['B']:.3g}/D^{p['beta']:.3g}"
    status = "" if fit.status == "converged" else f"; {fit.status}: {fit.reason}"
    return [f"{form}, g = {sparse.worth(p):.2g} ({low:.2g} to {high:.2g}), of {fit.n} readings{status}"]


def better(rows: Rows) -> list[str]:
    """Which law misses what was left out by least, over all hold-outs that all of them answered."""
    by: dict[str, dict[str, float]] = {}
    for row in rows:
        by.setdefault(row["law of"], {})[row["left out"]] = row["mean %"]
    if len(by) < len(RIVALS):
        return []
    common = set.intersection(*(set(v) for v in by.values()))
    if not common:
        return []
    means = {k: float(np.mean([v[c] for c in common])) for k, v in by.items()}
    ranked = sorted(means, key=lambda k: means[k])
    said = ", ".join(f"{k} {means[k]:.2g}%" for k in ranked)
    return [
        f"what was left out is missed least by the law of {ranked[0]}: {said} on average over {len(common)} hold-outs"
    ]
