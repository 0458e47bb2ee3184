"""The 90% interval of a forecast: parameters, hold-out errors grown with distance, seed noise, joined in
quadrature.

In log loss, per target at distance d (decades beyond the fit):

    half² = (t_p·s)² + max(t_h·c·(d₀ + d)/d₀, r)² + (z·σ)²   interval = value·exp(± half)

s: spread of the law's log forecast over a bootstrap by run (forks of a trunk are not independent); c: root
mean square of hold-out errors scaled back to the fit's edge, error·d₀/(d₀ + distance); σ: seed noise; t_p,
t_h: Student quantiles at the runs' and the folds' degrees of freedom, z the normal's; r: how far the rivals'
forecasts lie, the forms that the hold-outs do not clearly reject (0 where the caller names none); they count where
they lie farther than the hold-out errors reach, which hold a form's own error already. Parameter noise alone
covers 10-70% of larger runs at a nominal 90% (SCIENCE.md §4), which is why the second term is there; and as
hold-out errors contain parameter noise, t_p is Student's only where there are none. Measured on simulated 4 ×
4 ladders before rivals and the law floor were added: 95-99% inside at a nominal 90%.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

import numpy as np
from scipy.special import chdtri, stdtrit

from tunnel import laws
from tunnel.laws import DELTA, Array, Fit, Table, backtest, columns, take
from tunnel.laws.backtest import NEAR, Miss

FORMULA = "log half-width² = (t_p·s)² + max(t_h·c·(d0 + d)/d0, r)² + (z·noise)²; interval = value·exp(± half-width)"
LEVEL = 0.90  # contract 4
DRAWS = 1000  # assumed: the 5% and 95% quantiles of 1,000 draws are known to about 7% of the spread
MOST_ROWS = 2000  # a larger table enters the bootstrap thinned to this, the spread scaled by sqrt(rows); assumed


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
    rows, size = laws.rows_of(table), len(law.PARAMS)
    if resamples is not None:
        degrees = max(1, min(len(set(laws.runs_of(table))) - 1, rows - size))
        found = _refit_tables(name, table, fit, resamples, targets)
        return Bootstrap(law.PARAMS, found, degrees, 1.0, "given resamples")
    rng = np.random.default_rng(seed)
    inflation = np.sqrt(rows / max(rows - size, 1))  # the fit has used up `size` degrees of freedom; derived
    if rows > MOST_ROWS:
        table = take(table, np.sort(rng.choice(rows, MOST_ROWS, replace=False)))
        inflation *= np.sqrt(MOST_ROWS / rows)
    runs = np.unique(laws.runs_of(table), return_inverse=True)[1]
    count = int(runs.max()) + 1
    weights = rng.exponential(size=(draws, count))
    weights *= count / weights.sum(axis=1, keepdims=True)
    degrees = max(1, min(count - 1, rows - size))
    return Bootstrap(law.PARAMS, law.refit(table, fit, weights[:, runs]), degrees, float(inflation), "by run")


def _refit_tables(name: str, table: Table, fit: Fit, resamples: Iterable[Table], targets: Table | None) -> Array:
    """Parameters of each resample; those that only re-measure the table's own rows go in one batch."""
    law = laws.get(name)
    batch: list[Array] = []
    out: list[Array] = []
    for other in map(columns, resamples):
        rows = _same_rows(table, other)
        if rows is not None:
            batch.append(other["loss"][rows])
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
    name: str,
    table: Table,
    targets: Table,
    resamples: Iterable[Table] | None = None,
    misses: tuple[Miss, ...] | None = None,
    noise: float = 0.0,
    delta: float = DELTA,
    draws: int = DRAWS,
    seed: int = 0,
    rivals: tuple[str, ...] = (),
) -> Forecast:
    """One law's forecast of the targets' loss with its 90% interval; NaN everywhere where the law cannot
    answer.

    table: all readings; targets: N, D (and C); resamples: tables like `table`, as the ladder's own bootstrap
    of its valleys draws them (else runs are re-weighted here); misses: hold-out errors (else taken here,
    those that look like the question); noise: standard deviation of log loss over seeds;
    rivals: forms that the hold-outs do not clearly reject, whose distance widens the interval.
    """
    law = laws.get(name)
    table, targets = columns(table), columns(targets)
    rows = take(table, law.select(table, targets))
    fit = law.fit(rows, delta)
    if not fit.usable:
        nothing = np.full(laws.rows_of(targets), np.nan)
        return Forecast(name, nothing, nothing, nothing, nothing, {"status": fit.status, "reason": fit.reason})
    value = law.predict(fit.params, targets)
    far = backtest.distance(rows, targets)
    axis = backtest.question(table, targets)
    misses = backtest.own_misses(name, table, targets, axis, delta) if misses is None else misses
    boot = bootstrap(name, rows, fit, draws, seed, resamples, targets)
    spread = _spread(law, boot, targets)
    share, degrees, basis = _beyond(misses, law, fit, rows)
    z = student(0.5 + LEVEL / 2, 1e9)
    t_h = student(0.5 + LEVEL / 2, degrees)
    t_p = z if misses else student(0.5 + LEVEL / 2, boot.degrees)
    parameters = t_p * spread
    beyond = t_h * share * (NEAR + far) / NEAR
    apart = _apart(rivals, table, targets, value, delta)
    half = np.sqrt(parameters**2 + np.fmax(beyond, apart) ** 2 + (z * noise) ** 2)
    parts = {
        "formula": FORMULA,
        "level": LEVEL,
        "fit": {"params": dict(fit.params), "status": fit.status, "reason": fit.reason, "n": fit.n},
        "delta": delta,
        "s": spread.tolist(), "t_p": t_p, "degrees_p": boot.degrees, "draws": len(boot.draws), "bootstrap":
        boot.by, "c": share, "t_h": t_h, "degrees_h": degrees, "d0": NEAR, "d": far.tolist(), "c_from": basis,
        "noise": noise, "z": z,
        "half_parameters": parameters.tolist(), "half_holdouts": beyond.tolist(), "half_noise": z * noise,
        "rivals": list(rivals), "half_rivals": apart.tolist(),
        "misses": [asdict(m) for m in misses[:200]],
    }  # fmt: skip
    return Forecast(name, value, value * np.exp(-half), value * np.exp(half), far, parts)


def _apart(rivals: tuple[str, ...], table: Table, targets: Table, value: Array, delta: float) -> Array:
    """How far the farthest rival's log forecast lies from the chosen form's, per target."""
    far = np.zeros(len(value))
    for name in rivals:
        law = laws.get(name)
        fit = law.fit(take(table, law.select(table, targets)), delta)
        if fit.usable:
            far = np.fmax(far, np.abs(np.log(law.predict(fit.params, targets) / value)))
    return far


def _spread(law: object, boot: Bootstrap, targets: Table) -> Array:
    """Standard deviation of the log forecast over the draws, from its 5% and 95% quantiles, inflated."""
    if not len(boot.draws):
        return np.zeros(laws.rows_of(targets))
    params = {name: boot.draws[:, j, None] for j, name in enumerate(boot.names)}
    with np.errstate(invalid="ignore", divide="ignore"):
        logs = np.log(law.predict(params, targets))  # type: ignore[attr-defined]
    low, high = np.nanpercentile(logs, [5, 95], axis=0)
    return np.asarray((high - low) / (2 * 1.6449) * boot.inflation)  # 1.6449: the normal's 95% quantile; derived


def _beyond(misses: tuple[Miss, ...], law: object, fit: Fit, rows: Table) -> tuple[float, int, str]:
    """c, its degrees of freedom (folds: the rows of a fold share a fit), and what it came from."""
    folds = {(m.axis, m.fold) for m in misses}
    if folds:
        return backtest.score(misses), len(folds), "hold-outs"
    residual = np.log(rows["loss"] / law.predict(fit.params, rows))  # type: ignore[attr-defined]
    degrees = max(1, fit.n - len(fit.params))
    return (
        float(np.sqrt((residual**2).sum() / degrees)),
        degrees,
        "residuals of the fit: no hold-out was possible",
    )


def student(p: float, free: float) -> float:
    """Student's t quantile."""
    return float(stdtrit(free, p))


def chi_square(p: float, free: float) -> float:
    """The chi-square quantile."""
    return float(chdtri(free, 1 - p))
