"""The 90% interval of a forecast: parameters, hold-out errors grown with distance, rivals, noise, joined in
quadrature.

In log loss, per target at distance d (decades beyond the fit):

    half² = (t_p·s)² + (t_h·c·(1 + d/d₀))² + (q·r)² + (a·d)² + (z·σ)²        interval = value·exp(± half)

s: spread of the law's log forecast over a bootstrap by run (forks of a trunk are not independent); c: root mean
square of the hold-out errors brought back to the fit's edge, error/(1 + distance/d₀); r: how far rivals' forecasts
lie, root mean square over the chosen candidate and those that the hold-outs do not clearly reject, weighted by
(score chosen/score)²; a: what no hold-out of a table shows, as trends bend further on; σ: noise of a reading, from
seeds where the caller or repeats tell it, at least the typical residual of the fit. t_p = z is the normal's quantile;
t_h = HELD·(1 + FEW/folds), as one hold-out tells little; HELD, FEW, q = RIVALS and a = BEND are conformal, so that 90%
of the targets of *other* tables lie inside; where there was no hold-out, c is the fit's residual and t_p, t_h are
Student's. Parameter noise alone covers 10-70% of larger runs
at a nominal 90% (SCIENCE.md §4). benchmarks/coverage.py measures all of it, leave-one-table-out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

import numpy as np

from tunnel import laws
from tunnel.backtests import backtest, rows
from tunnel.backtests import noise as repeats
from tunnel.backtests.backtest import NEAR, Candidate, Miss
from tunnel.laws import DELTA, Array, Fit, Misfit, Table, columns, take
from tunnel.quantiles import LEVEL, NORMAL, TYPICAL, student

FORMULA = (
    "log half-width² = (t_p·s)² + (t_h·c·(d0 + d)/d0)² + (q·r)² + (a·d)² + (z·noise)²; "
    "interval = value·exp(± half-width)"
)
DRAWS = 1000  # assumed: the 5% and 95% quantiles of 1,000 draws are known to about 7% of the spread
MOST_ROWS = 2000  # a larger table enters the bootstrap thinned to this, the spread scaled by sqrt(rows); assumed
# of c, by hold-outs, and of r; and, per decade, what no hold-out shows: laws bend where settings are not tuned at every
# size. All four measured here, on 12 public tables and 8 ladders of our own (benchmarks/coverage.py; studies/LOG.md)
HELD, FEW, RIVALS = 0.35, 8.0, 1.4
BEND = 0.03


@dataclass(frozen=True)
class Forecast:
    """Forecasts of one law, one entry per target: loss (nats per token), 90% interval, what went into it."""

    law: str
    value: Array
    low: Array
    high: Array
    distance: Array
    parts: Mapping[str, object]  # plain values: the formula, its inputs, the half-widths of the three parts

    def as_dict(self) -> dict[str, object]:
        """Plain JSON types, as stored with the forecast."""
        out: dict[str, object] = {"law": self.law}
        for name in ("value", "low", "high", "distance"):
            out[name] = [float(v) for v in getattr(self, name)]
        return out | {"parts": dict(self.parts)}


@dataclass(frozen=True)
class Bootstrap:
    """Parameter draws (draws, P), the law's names for them, and how the draws' spread is to be read."""

    names: tuple[str, ...]
    draws: Array
    degrees: int
    inflation: float
    by: str

    def ranges(self, level: float = LEVEL) -> dict[str, tuple[float, float]]:
        """The central interval of each parameter, for all that are finite in the draws."""
        cut = 100 * (1 - level) / 2
        low, high = np.nanpercentile(self.draws, [cut, 100 - cut], axis=0)
        return {n: (float(a), float(b)) for n, a, b in zip(self.names, low, high, strict=True)}


def bootstrap(
    name: str,
    table: Table,
    fit: Fit,
    draws: int = DRAWS,
    seed: int = 0,
    resamples: Iterable[Table] | None = None,
    targets: Table | None = None,
) -> Bootstrap:
    """Refits of a law to re-weighted runs (Bayesian bootstrap: each keeps some weight), or to given
    resamples.

    `table` holds the rows the law was fitted to (its `select` for the targets). Resamples that re-measure the
    same N and D are fitted in one batch.
    """
    law = laws.get(name)
    table = columns(table)
    n, size = laws.rows_of(table), len(law.PARAMS)
    if resamples is not None:
        degrees = max(1, min(len(set(laws.runs_of(table))) - 1, n - size))
        found = _refit_tables(name, table, fit, resamples, targets)
        return Bootstrap(law.PARAMS, found, degrees, 1.0, "given resamples")
    rng = np.random.default_rng(seed)
    inflation = np.sqrt(n / max(n - size, 1))  # the fit has used up `size` degrees of freedom; derived
    if n > MOST_ROWS:
        table = take(table, np.sort(rng.choice(n, MOST_ROWS, replace=False)))
        inflation *= np.sqrt(MOST_ROWS / n)
    runs = np.unique(laws.runs_of(table), return_inverse=True)[1]
    count = int(runs.max()) + 1
    weights = rng.exponential(size=(draws, count))
    weights *= count / weights.sum(axis=1, keepdims=True)
    degrees = max(1, min(count - 1, n - size))
    return Bootstrap(law.PARAMS, law.refit(table, fit, weights[:, runs]), degrees, float(inflation), "by run")


def _refit_tables(name: str, table: Table, fit: Fit, resamples: Iterable[Table], targets: Table | None) -> Array:
    """Parameters of each resample; those that only re-measure the table's own rows go in one batch."""
    law = laws.get(name)
    batch: list[Array] = []
    out: list[Array] = []
    for other in map(columns, resamples):
        order = _same_rows(table, other)
        if order is not None:
            batch.append(other["loss"][order])
            continue
        again = law.fit(take(other, law.select(other, targets)), fit.delta)
        if again.usable:
            out.append(np.array([again.params[p] for p in law.PARAMS]))
    if batch:
        out.extend(law.refit(table, fit, losses=np.array(batch)))
    return np.array(out).reshape(-1, len(law.PARAMS))


def _same_rows(table: Table, other: Table) -> Array | None:
    """Where the table's rows stand in the other, matched by N and D; None if one is missing or not > 0."""
    at = {(n, d): i for i, (n, d) in enumerate(zip(other["N"], other["D"], strict=True))}
    rows = [at.get(key, -1) for key in zip(table["N"], table["D"], strict=True)]
    index = np.array(rows, int)
    good = len(at) == laws.rows_of(other) and (index >= 0).all() and (other["loss"][index] > 0).all()
    return index if good else None


def forecast(
    which: str | Candidate,
    table: Table,
    targets: Table,
    resamples: Iterable[Table] | None = None,
    misses: tuple[Miss, ...] | None = None,
    noise: float | None = None,
    delta: float | Misfit = DELTA,
    draws: int = DRAWS,
    seed: int = 0,
    rivals: Mapping[Candidate, float] | None = None,
) -> Forecast:
    """One candidate's forecast of the targets' loss with its 90% interval; NaN everywhere where it cannot answer.

    table: all readings; targets: N, D (and C); resamples: tables like `table`, as the ladder's own bootstrap
    of its valleys draws them (else runs are re-weighted here); misses: hold-out errors (else taken here,
    those that look like the question); noise: standard deviation of log loss over seeds (else that of the table's
    repeats); rivals: candidates that the hold-outs do not clearly reject, with their weight beside the chosen one's 1.
    """
    table, targets, chosen = columns(table), columns(targets), backtest.candidate_of(which, delta)
    law, seen = laws.get(chosen.law), chosen.rows(table, targets)
    fit = law.fit(seen, chosen.delta)
    if not fit.usable:
        nothing = np.full(laws.rows_of(targets), np.nan)
        return Forecast(chosen.law, nothing, nothing, nothing, nothing, {"status": fit.status, "reason": fit.reason})
    value, far = law.predict(fit.params, targets), backtest.distance(seen, targets)
    axis = backtest.question(table, targets)
    misses = backtest.own_misses(chosen, table, targets, axis) if misses is None else misses
    boot = bootstrap(chosen.law, seen, fit, draws, seed, resamples, targets)
    spread = _spread(law, boot, targets)
    share, degrees, basis = _beyond(misses, law, fit, seen)
    z = student(0.5 + LEVEL / 2, 1e9)
    t_h = HELD * (1 + FEW / degrees) if misses else student(0.5 + LEVEL / 2, degrees)
    t_p = z if misses else student(0.5 + LEVEL / 2, boot.degrees)
    noise = max(repeats.typical(table, ~rows.outliers(table)) if noise is None else noise, _residual(law, fit, seen))
    apart = _apart(rivals or {}, backtest.thinned(table), targets, value)
    halves = {
        "half_parameters": t_p * spread,
        "half_holdouts": t_h * share * (NEAR + far) / NEAR,
        "half_rivals": RIVALS * apart,
        "half_bend": BEND * far,
        "half_noise": z * noise + 0 * far,
    }
    half = np.sqrt(sum(part**2 for part in halves.values()))
    parts = {
        "formula": FORMULA,
        "level": LEVEL,
        "fit": {"params": dict(fit.params), "status": fit.status, "reason": fit.reason, "n": fit.n},
        "rows": chosen.window.name, "loss": chosen.loss,
        "s": spread.tolist(), "t_p": t_p, "degrees_p": boot.degrees, "draws": len(boot.draws), "bootstrap":
        boot.by, "c": share, "t_h": t_h, "degrees_h": degrees, "d0": NEAR, "d": far.tolist(), "c_from": basis,
        "noise": noise, "z": z, "q": RIVALS, "r": apart.tolist(), "a": BEND,
        "rivals": {str(rival): weight for rival, weight in (rivals or {}).items()},
        **{name: part.tolist() for name, part in halves.items()},
        "misses": [asdict(m) for m in misses[:200]],
    }  # fmt: skip
    return Forecast(chosen.law, value, value * np.exp(-half), value * np.exp(half), far, parts)


def of_choice(choice: backtest.Choice, table: Table, targets: Table, draws: int = DRAWS, seed: int = 0) -> Forecast:
    """The forecast of what was chosen by backtest, its interval widened by the rivals that were not rejected."""
    misses, rivals = choice.own or None, choice.rivals()
    return forecast(choice.candidate, table, targets, misses=misses, draws=draws, seed=seed, rivals=rivals)


def _apart(rivals: Mapping[Candidate, float], table: Table, targets: Table, value: Array) -> Array:
    """How far rivals' log forecasts lie from the chosen one's, per target: root mean square by weight, its own 0."""
    total, weights = np.zeros(len(value)), np.ones(len(value))
    for rival, weight in rivals.items():
        fit = rival.fit(table, targets)
        if fit.usable:
            with np.errstate(invalid="ignore", divide="ignore"):
                far = np.log(laws.get(rival.law).predict(fit.params, targets) / value) ** 2
            total += weight * np.where(np.isfinite(far), far, 0.0)
            weights += weight * np.isfinite(far)
    return np.sqrt(total / weights)


def _residual(law: object, fit: Fit, seen: Table) -> float:
    """The typical residual of log loss at the fit; 0 where the rows only just identify the parameters."""
    left = np.abs(np.log(seen["loss"] / law.predict(fit.params, seen)))  # type: ignore[attr-defined]
    return float(TYPICAL * np.median(left)) if len(left) > len(fit.params) else 0.0


def _spread(law: object, boot: Bootstrap, targets: Table) -> Array:
    """Standard deviation of the log forecast over the draws, from its 5% and 95% quantiles, inflated."""
    if not len(boot.draws):
        return np.zeros(laws.rows_of(targets))
    params = {name: boot.draws[:, j, None] for j, name in enumerate(boot.names)}
    with np.errstate(invalid="ignore", divide="ignore"):
        logs = np.log(law.predict(params, targets))  # type: ignore[attr-defined]
    low, high = np.nanpercentile(logs, [5, 95], axis=0)
    return np.asarray((high - low) / (2 * NORMAL) * boot.inflation)


def _beyond(misses: tuple[Miss, ...], law: object, fit: Fit, seen: Table) -> tuple[float, int, str]:
    """c, its degrees of freedom (folds: the rows of a fold share a fit), and what it came from."""
    folds = {(m.axis, m.fold) for m in misses}
    if folds:
        return backtest.score(misses), len(folds), "hold-outs"
    residual = np.log(seen["loss"] / law.predict(fit.params, seen))  # type: ignore[attr-defined]
    degrees = max(1, fit.n - len(fit.params))
    return (
        float(np.sqrt((residual**2).sum() / degrees)),
        degrees,
        "residuals of the fit: no hold-out was possible",
    )
