"""L = E + A/N^alpha + B/D^beta + h·(log lr − log lr*)²    with    lr* = lr·N^lr_N·D^lr_D·(batch_tokens/batch)^lr_B.

One fit for loss, optimum and regret. N non-embedding parameters, D and batch in training tokens, lr the peak, L, E and
h in nats per token; `batch`, the middle of the readings' (1 where they have none), is where targets without one are
answered. Targets without lr are answered at lr*. Source: SCIENCE.md §1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tunnel.backtests import intervals
from tunnel.fitting import forms, powers, search
from tunnel.fitting.models import HIGHEST, LOWEST, MOST, Sum
from tunnel.laws import DELTA, Array, Fit, Misfit, Table, columns, misfit_of, take, usable_rows
from tunnel.valleys import joint, regret, valley

KIND = "loss"
COLUMNS = ("N", "D", "loss", "lr")
PARAMS = ("E", "A", "B", "alpha", "beta", "h", "lr", "lr_N", "lr_D", "lr_B", "batch")
FREE = 10  # `batch` is no parameter: where the readings lie
SUM = forms.Form("fan", (("N", "A", "alpha"), ("D", "B", "beta")), floor=True)

FAR = 0.1  # rows this far (log loss) above their cell's best are no part: a valley is no parabola there  *assumed*
STEEPEST, REACH = 5.0, 5.0  # of lr*'s powers, and how far (log) beyond the lr tried lr* may lie  *assumed*
LEAST = 1e-4  # of d² log L / d log lr²: less is no valley  *assumed*, below seed noise an octave off
DEEPEST = 10.0  # of h, in nats: tenfold anything seen  *assumed*
MOST_ROWS = 4000  # a larger table is thinned to this, so that a fit takes a second  *assumed*
DRAWS = 400  # of the posterior's bootstrap
SURE = 0.5  # of the rows whose lr* lies beyond what was tried at their size make it an edge  *assumed*


@dataclass(frozen=True)
class Fan:
    """The engine's model: theta (E, A, B, h, alpha, beta, s, s_N, s_D, s_B); z (4, n) centred log N, D, batch, lr."""

    k: int = 2
    floor: bool = True
    linear: int = 4

    def derive(self, theta: Array, z: Array) -> tuple[Array, Array, Any]:
        e, a, b, h, alpha, beta = (theta[:, j, None] for j in range(6))
        place = places(z)
        u = z[3] - theta[:, 6:] @ place
        jacobian = np.empty((len(theta), 10, z.shape[1]))
        jacobian[:, 0], jacobian[:, 3] = 1.0, u**2
        for j, power in ((1, alpha), (2, beta)):
            np.exp(-power * z[j - 1], out=jacobian[:, j])
        total = e + a * jacobian[:, 1] + b * jacobian[:, 2] + h * u**2
        jacobian[:, 4], jacobian[:, 5] = -a * z[0] * jacobian[:, 1], -b * z[1] * jacobian[:, 2]
        jacobian[:, 6:] = -2 * (h * u)[:, None] * place
        jacobian /= total[:, None]
        return np.log(total), jacobian, (u / total, h / total, place)

    def second(self, z: Array, jacobian: Array, kept: Any, v: Array) -> Array:
        beside, deep, place = kept
        out = np.zeros((len(v), 10, 10))
        for j in range(2):
            out[:, 1 + j, 4 + j] = out[:, 4 + j, 1 + j] = -((v * jacobian[:, 1 + j]) @ z[j])
            out[:, 4 + j, 4 + j] = -((v * jacobian[:, 4 + j]) @ z[j])
        out[:, 3, 6:] = out[:, 6:, 3] = -2 * (v * beside) @ place.T
        out[:, 6:, 6:] = 2 * (place * (v * deep)[:, None]) @ place.T
        return out

    def box(self, low: float, high: float) -> tuple[Array, Array]:
        least = [0.0, 0.0, 0.0, 0.0, LOWEST, LOWEST, -np.inf, *[-STEEPEST] * 3]
        most = [high, MOST * high, MOST * high, DEEPEST, HIGHEST, HIGHEST, np.inf, *[STEEPEST] * 3]
        return np.array(least), np.array(most)

    def cells(self, z: Array) -> tuple[Array, tuple[int, ...]]:
        raise NotImplementedError("a fan starts from a surface and a sum of powers, not from a grid")

    def basis(self, theta: Array, z: Array) -> tuple[Array, Array]:
        raise NotImplementedError

    def scaled(self, theta: Array, factors: Array) -> Array:
        raise NotImplementedError


MODEL = Fan()


def places(z: Array) -> Array:
    """What lr* moves with (4, n): 1, log N, log D, log batch."""
    return np.concatenate([np.ones((1, z.shape[1])), z[:3]])


def answers(table: Table, targets: Table) -> str:
    """Empty where the table has lr and the targets have N and D."""
    if "lr" not in table:
        return "the readings have no lr"
    return "" if {"N", "D"} <= set(targets) else "the targets have no N and D"


def select(table: Table, targets: Table | None = None) -> Array:
    """Indices of the rows with N, D, loss and lr that lie within FAR of their N and D's best; MOST_ROWS at most."""
    rows = np.flatnonzero(usable_rows(table, COLUMNS + (("batch_tokens",) if "batch_tokens" in table else ())))
    if not len(rows):
        return rows
    y = np.log(np.asarray(table["loss"], float)[rows])
    cell = joint.numbered(*(np.log(np.asarray(table[k], float)[rows]) for k in ("N", "D")))
    best = np.full(int(cell.max()) + 1, np.inf)
    np.minimum.at(best, cell, y)
    rows = rows[y <= best[cell] + FAR]
    if len(rows) <= MOST_ROWS:
        return rows
    order = np.lexsort(tuple(np.asarray(table[k])[rows] for k in ("loss", "lr", "D", "N")))
    return np.sort(rows[order[np.linspace(0, len(order) - 1, MOST_ROWS).astype(int)]])


def fit(table: Table, delta: float | Misfit = DELTA) -> Fit:
    """All parameters at the minimum of the misfit of log L: a surface and a sum of powers to start from, then jointly.

    "flat" where the loss has no minimum along lr; "bound hit" where lr* lies outside what was tried.
    """
    table = columns(table)
    table = take(table, select(table)) if set(COLUMNS) <= set(table) else {}
    n = len(table.get("loss", ()))
    why = lacking(table, n)
    if why:
        return forms.nothing("fan", PARAMS, delta, why, n)
    z, centre, y, w = logs_of(table)
    valley_of = start(table, centre)
    if isinstance(valley_of, str):
        return forms.nothing("fan", PARAMS, delta, valley_of, n)
    line, bend, flat = valley_of
    rise = 0.5 * bend * (z[3] - line @ places(z)) ** 2
    floor = search.solve(Sum(2), z[:2], y - rise, w * np.exp(-rise / valley.NEAR), misfit_of(delta))
    theta = np.concatenate([floor.theta[:3], [0.5 * bend * float(np.exp(y).mean())], floor.theta[3:], line])
    held = held_of(z)
    found, objective = powers.polish(MODEL, theta[None], z, y, w, misfit_of(delta), held=held[None])
    params = dict(zip(PARAMS, natural(found, centre, float(np.exp(centre[2])))[0].tolist(), strict=True))
    status, reason, ranges = described(table, params, floor, flat)
    return Fit("fan", params, float(objective[0]), delta, status, reason, n, ranges)


def lacking(table: Table, n: int) -> str:
    """Why a table cannot identify a fan by its design; "" where it can."""
    free = FREE - (1 if not n or not valley.varies(table) else 0)
    if n <= free:
        return f"{n} rows for {free} parameters of fan: needs {free + 1}"
    found = {k: forms.levels(table[k]) for k in ("N", "D", "lr")}
    few = next((k for k, v in found.items() if v < 3), "")
    return f"{few} has {found[few]} distinct values: a fan needs 3" if few else ""


def start(table: Table, centre: Array) -> tuple[Array, float, list[str]] | str:
    """lr*'s line about the centre (4), the curvature of log loss, what is flat; or why there is none."""
    keys = {k: table[k] for k in ("N", "D", "loss", "lr", "batch_tokens") if k in table}
    rows = joint.rows_of({**keys, "run": table.get("run", np.arange(len(table["loss"])))}, ("lr", "batch_tokens"))
    found = joint.fit(rows) if "lr" in rows.names else None
    if found is None:
        return "fewer rows than a valley over N and D has coefficients"
    found, flat = found.floored(LEAST)
    over = (found.exponents(["lr"]) or {})["lr"]
    best = found.best(["lr"], {k: float(v) for k, v in zip(("N", "D", "batch_tokens"), centre[:3], strict=True)})
    assert best is not None, "a floored surface has a minimum"
    slopes = [over.get(k, 0.0) for k in ("N", "D", "batch_tokens")]
    at = found.names.index("lr")
    return np.clip([best["lr"] - centre[3], *slopes], -STEEPEST, STEEPEST), float(found.H[at, at]), flat


def logs_of(table: Table) -> tuple[Array, Array, Array, Array]:
    """z (4, n), centred; the centres (4); log loss; weights."""
    batch = table["batch_tokens"] if "batch_tokens" in table else np.ones(len(table["loss"]))
    raw = np.log(np.stack([table["N"], table["D"], batch, table["lr"]]))
    centre = 0.5 * (raw.min(axis=1) + raw.max(axis=1))  # of the range: the same for every resample
    y = np.log(table["loss"])
    return raw - centre[:, None], centre, y, table["weight"] if "weight" in table else np.ones(len(y))


def held_of(z: Array) -> Array:
    """Mask of theta: what lr* moves with keeps 0 where that does not vary."""
    return np.array([False] * 7 + [bool(np.ptp(v) < forms.DISTINCT) for v in z[:3]])


def natural(theta: Array, centre: Array, batch: float) -> Array:
    """Engine parameters (R, 10) in the user's units, (R, 11) in the order of PARAMS."""
    out = np.full((len(theta), len(PARAMS)), batch)
    out[:, 0], out[:, 3:5], out[:, 5] = theta[:, 0], theta[:, 4:6], theta[:, 3]
    with np.errstate(over="ignore"):
        out[:, 1:3] = theta[:, 1:3] * np.exp(theta[:, 4:6] * centre[:2])
        # lr* at N = D = 1 and this batch
        out[:, 6] = np.exp(theta[:, 6] + centre[3] - theta[:, 7:] @ (centre[:3] - [0, 0, np.log(batch)]))
    out[:, 7:10] = theta[:, 7:]
    return out


def engine(params: Mapping[str, float], centre: Array) -> Array:
    """The inverse of `natural`, of one set of parameters; theta (10,)."""
    p = params
    scale = [p[c] * np.exp(-p[x] * m) for c, x, m in (("A", "alpha", centre[0]), ("B", "beta", centre[1]))]
    level = np.log(p["lr"]) - centre[3] + p["lr_N"] * centre[0] + p["lr_D"] * centre[1]
    moved = p["lr_B"] * (centre[2] - np.log(p["batch"]))
    return np.array([p["E"], *scale, p["h"], p["alpha"], p["beta"], level + moved, p["lr_N"], p["lr_D"], p["lr_B"]])


def described(
    table: Table, params: Mapping[str, float], floor: search.Solution, flat: list[str]
) -> tuple[str, str, dict[str, tuple[float, float]]]:
    """The status: of the valley first, then of the floor's and the powers' (as `fitting/forms` says it)."""
    status, reason, ranges = forms.status_of(SUM, table, floor)
    off = np.log(table["lr"]) - np.log(best_lr(params, table))
    cell = joint.numbered(*(np.log(table[k]) for k in ("N", "D")))
    count = int(cell.max()) + 1
    low, high = np.full(count, np.inf), np.full(count, -np.inf)
    np.minimum.at(low, cell, off)
    np.maximum.at(high, cell, off)
    tried = len(off) >= joint.REPEATS * count
    beyond = float(np.mean((low > 0) | (high < 0))) if tried else float(off.min() > 0 or off.max() < 0)
    if "lr" in flat or not params["h"] > 0:
        return "flat", "the data shows no curvature in lr: widen its range", ranges
    if beyond > SURE:
        return "bound hit", "lr* lies outside the lr tried at most N and D: widen its range", ranges
    return status, reason, ranges


def best_lr(params: Mapping[str, float] | Mapping[str, Array], table: Table) -> Array:
    """lr* at the table's N, D and batch_tokens (`batch` where it has none); parameters as for predict."""
    n, d = np.log(table["N"]), np.log(table["D"])
    batch = np.log(table["batch_tokens"] / params["batch"]) if "batch_tokens" in table else 0.0
    with np.errstate(all="ignore"):
        log = np.log(params["lr"]) + params["lr_N"] * n + params["lr_D"] * d + params["lr_B"] * batch
        return np.asarray(np.exp(log))


def predict(params: Mapping[str, float] | Mapping[str, Array], table: Table) -> Array:
    """Loss (nats per token) at the table's N, D, lr (lr* where it has none) and batch_tokens.

    Parameters may be (draws, 1) arrays, then (draws, rows).
    """
    table = columns(table)
    with np.errstate(all="ignore"):  # in logs: A alone overflows at large exponents where A·N^-a does not
        total = params["E"] + np.zeros(len(table["N"]))
        for column, scale, power in (("N", "A", "alpha"), ("D", "B", "beta")):
            total = total + np.exp(np.log(params[scale]) - params[power] * np.log(table[column]))
        if "lr" in table:
            off = np.log(table["lr"] / best_lr(params, table))
            total = total + params["h"] * np.where(np.isfinite(table["lr"]), off, 0.0) ** 2
    return np.asarray(total)


def refit(table: Table, start: Fit, weights: Array | None = None, losses: Array | None = None) -> Array:
    """Parameters (draws, 11) under row weights (draws, n) or re-measured losses (draws, n)."""
    table = columns(table)
    z, centre, y, w = logs_of(table)
    draws = len(weights) if weights is not None else len(losses) if losses is not None else 1
    theta = np.repeat(engine(start.params, centre)[None], draws, axis=0)
    held = np.repeat(held_of(z)[None], draws, axis=0)
    w = w if weights is None else w * weights
    y = y if losses is None else np.log(losses)
    found, _ = powers.polish(MODEL, theta, z, y, w, misfit_of(start.delta), held=held)
    return natural(found, centre, start.params["batch"])


def posterior(table: Table, start: Fit, targets: Table) -> list[regret.Posterior]:
    """What is known of log lr* at each target (bootstrap by run), with the curvature of log loss there.

    table: the rows that `start` was fitted to; targets: N, D, and batch_tokens where known. A posterior tells its 90%
    interval, the lr of least expected loss, and the loss expected to be given away at any lr (parts of the loss).
    """
    targets = {k: v for k, v in columns(targets).items() if k in ("N", "D", "batch_tokens")}
    boot = intervals.bootstrap("fan", table, start, draws=DRAWS)
    each = {k: boot.draws[:, [j]] for j, k in enumerate(boot.names)}
    at = np.log(best_lr(start.params, targets))
    drawn = np.log(best_lr(each, targets))
    drawn = at + boot.inflation * (drawn - np.median(drawn, axis=0))
    h = np.maximum(each["h"] / predict(each, targets), valley.QUIET)
    return [regret.Posterior(float(a), drawn[:, i], h[:, i], 0.0) for i, a in enumerate(at)]


def beside(table: Table, start: Fit, targets: Table) -> dict[str, Array]:
    """Further columns per target: lr* with its 90% interval, and the loss expected to be given away there, in %."""
    known = posterior(table, start, targets)
    ends = np.array([p.interval() for p in known]).reshape(-1, 2).T
    lost = np.array([100 * p.regret(p.at) for p in known])
    return {"lr_best": np.exp([p.at for p in known]), "lr_low": np.exp(ends[0]), "lr_high": np.exp(ends[1])} | {
        "regret_percent": lost
    }
