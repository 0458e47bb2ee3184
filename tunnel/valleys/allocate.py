"""Where a budget of FLOPs goes: into parameters or tokens, into training or inference, into width or depth.

Compute-optimal N and D minimise a law's loss at C FLOPs: in closed form for chinchilla at C = 6ND, else numerically. A
model that will serve I tokens should be smaller and trained longer: of all N and D with the loss that C FLOPs can
reach, the cheapest in training + inference (Sardana et al., arXiv 2401.00448). A tool of laws, not a law.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tunnel import laws
from tunnel.backtests import backtest, intervals
from tunnel.backtests.backtest import Candidate
from tunnel.laws import Array, Table, chinchilla, columns, take
from tunnel.valleys import joint, valley

DRAWS = 200  # of the bootstrap: quantiles of a split need no more  *assumed*
SHARE = 1 / 3  # of a trained token's FLOPs, for one that is served: forward without backward  *derived*
WIDE = 1e4  # N is searched within this factor of the N whose D is equal to it  *assumed*
GRID, ZOOMS = 41, 5  # points of a search in log N or log D, and how often it closes in on two of their steps
LONGEST = 1e6  # times the compute-optimal D, beyond which no loss is bought  *assumed*
SAME = 1e-3  # a count within this of 6ND is 6ND  *assumed*
OFF_PATH = 0.1  # log aspect beside its own line over log N: with less, shape and size cannot be told apart  *assumed*

Params = Mapping[str, float]


@dataclass(frozen=True)
class Budget:
    """FLOPs of training, and tokens that the model will serve (0: none)."""

    flops: float
    inference: float = 0.0


@dataclass(frozen=True)
class Count:
    """FLOPs of a trained token, 6N·(1 + k·N^-m): attention and the readout cost most where N is small."""

    k: float = 0.0
    m: float = 0.0

    def token(self, n: Array) -> Array:
        """FLOPs per trained token at N."""
        with np.errstate(over="ignore", under="ignore"):
            return np.asarray(6 * n * (1 + self.k * n**-self.m))

    @property
    def text(self) -> str:
        """The formula with its numbers."""
        return f"6·N·(1 + {self.k:.3g}·N^-{self.m:.3g})·D" if self.k else "6·N·D"


SIX = Count()


def counted(table: Table) -> Count:
    """The count that a table's own C shows; C = 6ND within SAME is that."""
    excess = table["C"] / (6 * table["N"] * table["D"]) - 1
    if np.median(np.abs(excess)) < SAME:
        return SIX
    if (excess <= 0).any() or min(np.ptp(np.log(v)) for v in (table["N"], excess)) < SAME:
        return Count(float(np.median(excess)))
    slope, level = np.polyfit(np.log(table["N"]), np.log(excess), 1)
    return Count(float(np.exp(level)), -float(slope))


@dataclass(frozen=True)
class Split:
    """N, D (tokens), loss, FLOPs of training and of serving; NaN where there is no optimum."""

    N: float
    D: float
    loss: float
    training: float
    inference: float = 0.0


def answers(law: str) -> str:
    """Why a law cannot split a budget; "" where its loss depends on N and on D and on no other size."""
    module = laws.get(law)
    whole = module.KIND == "loss" and {"N", "D"} <= set(module.COLUMNS) and not {"width", "depth"} & set(module.COLUMNS)
    free = whole and not laws.holds_at_one_d(law) and not laws.stays_on_path(law)
    return "" if free else f"{law} does not say what N and what D buy"


def loss_of(law: str, params: Params, n: Array, d: Array) -> Array:
    """The law's loss at N, D (points)."""
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        return np.asarray(laws.get(law).predict(params, {"N": n, "D": d}))


def trained(law: str, params: Params, flops: float, count: Count = SIX) -> Split:
    """The compute-optimal split: the least loss for `flops` of training."""
    if law == "chinchilla" and count == SIX:
        with np.errstate(all="ignore"):
            n, d = (float(v) for v in chinchilla.optimal(params, flops))
    else:
        n = least(lambda n: loss_of(law, params, n, flops / count.token(n)), (flops / 6) ** 0.5)
        d = flops / float(count.token(np.array(n)))
    loss = float(loss_of(law, params, np.array([n]), np.array([d]))[0])
    return Split(n, d, loss, flops)


def served(law: str, params: Params, flops: float, tokens: float, count: Count = SIX) -> Split:
    """The cheapest model, training and `tokens` of inference together, with the loss of `trained` at `flops`."""
    best = trained(law, params, flops, count)

    def length(n: Array) -> Array:
        """The D at which N reaches that loss; inf where none does."""
        low, high = (np.full(len(n), np.log(best.D * f)) for f in (1 / LONGEST, LONGEST))
        never = ~(loss_of(law, params, n, np.exp(high)) <= best.loss)
        each = np.arange(len(n))
        for _ in range(ZOOMS):
            d = np.linspace(low, high, GRID)  # (GRID, n)
            enough = loss_of(law, params, np.tile(n, GRID), np.exp(d).ravel()).reshape(d.shape) <= best.loss
            at = np.clip(enough.argmax(axis=0), 1, None)
            low, high = d[at - 1, each], d[at, each]
        return np.where(never, np.inf, np.exp(high))

    n = least(lambda n: (length(n) + SHARE * tokens) * count.token(n), best.N)
    d, each = float(length(np.array([n]))[0]), float(count.token(np.array(n)))
    return Split(n, d, best.loss, d * each, SHARE * tokens * each)


def least(cost: Callable[[Array], Array], start: float) -> float:
    """The N of least cost, within a factor WIDE of `start`; NaN where it lies at an end of that."""
    if not np.isfinite(start) or start <= 0:
        return float("nan")
    middle, half, steps = float(np.log(start)), float(np.log(WIDE)), np.linspace(-1, 1, GRID)
    for i in range(ZOOMS):
        value = cost(np.exp(middle + half * steps))
        at = int(np.argmin(np.where(np.isfinite(value), value, np.inf)))
        if i == 0 and at in (0, GRID - 1):
            return float("nan")
        middle, half = middle + half * float(steps[at]), half * 2 * float(steps[1] - steps[0])
    return float(np.exp(middle))


# --- width against depth


def aspect(law: str, params: Params, table: Table, n: float) -> dict[str, Any]:
    """The best width/depth at N, from readings with width and depth: what the law leaves, as a valley in log aspect.

    Keys: status, reason; and where there is a valley, aspect {value, low, high} (90%, bootstrap by run), width, depth.
    """
    table = columns(table)
    if not {"width", "depth"} <= set(table):
        return {"status": "too few points", "reason": "no columns width and depth"}
    keep = laws.usable_rows(table, ("N", "D", "loss", "width", "depth"))
    table = take(table, keep)
    if not keep.any():
        return {"status": "too few points", "reason": "no readings with width and depth"}
    log, place = np.log(table["width"] / table["depth"]), np.log(table["N"])
    path = np.polyfit(place - place.mean(), log, 1) if np.ptp(place) > OFF_PATH else np.array([0.0, log.mean()])
    if np.std(log - np.polyval(path, place - place.mean())) < OFF_PATH:
        return {"status": "flat", "reason": "every N was read at one aspect: add wider and deeper shapes of equal N"}
    left = table["loss"] / loss_of(law, params, table["N"], table["D"])
    run = laws.runs_of(table)
    shapes = {"N": table["N"], "D": table["D"], "loss": left, "aspect": np.exp(log), "run": run}
    rows = joint.rows_of(shapes, ("aspect",))
    found = joint.fit(rows) if rows.names else None
    if found is None:
        return {"status": "too few points", "reason": "fewer shapes than a valley in log aspect has coefficients"}
    # every place that the surface moves with, at its own middle, and N at the one asked
    at = {k: found.centre[k] for k in found.places} | {"N": float(np.log(n))}
    best, draws = found.best(found.names, at), joint.bootstrap(rows, DRAWS)
    each = [b["aspect"] for s in draws if (b := s.best(s.names, at)) is not None]
    if best is None or len(each) < valley.SURE * len(draws):
        return {"status": "flat", "reason": "the readings show no best aspect: widen its range, or add seeds"}
    low, high = valley.interval(best["aspect"], np.array(each), joint.widening(rows))
    ends = float(log.min()), float(log.max())
    edge = not ends[0] <= best["aspect"] <= ends[1]
    value = float(np.exp(best["aspect"]))
    per = float(np.exp(np.median(np.log(table["N"] / (table["width"] ** 2 * table["depth"])))))
    depth = (n / (per * value**2)) ** (1 / 3)  # N = per·width²·depth  *derived*
    with np.errstate(over="ignore"):
        interval = dict(zip(("low", "high"), np.exp([low, high]).tolist(), strict=True))
    return {
        "status": "bound hit" if edge else "converged",
        "reason": "the best aspect lies outside what was tried: widen its range" if edge else "",
        "aspect": {"value": value, **interval},
        "width": value * depth,
        "depth": depth,
    }


# --- the answer


def optimal(
    which: str | Candidate, table: Table, budget: Budget, count: Count | None = None, draws: int = DRAWS
) -> dict[str, Any]:
    """The splits of a budget, with 90% intervals (bootstrap by run; the loss: hold-outs too), as plain values.

    which: a law of N and D (another gives way to chinchilla) or a candidate; table: the readings; count: FLOPs as the
    readings count them (else 6ND, or the table's own C). Keys: flops, inference_tokens, law, instead (why not the law
    asked), status, reason, splits, aspect; a split has name, count, N, D, tokens_per_parameter and loss {value, low,
    high}, training, inference (FLOPs), saved_percent (of both, against serving the compute-optimal model).
    """
    table, chosen, flops, tokens = columns(table), backtest.candidate_of(which), budget.flops, budget.inference
    why = answers(chosen.law)
    chosen = backtest.Candidate("chinchilla") if why else chosen
    law, rows = chosen.law, chosen.rows(table)
    found = laws.get(law).fit(rows, chosen.delta)
    head = {"flops": flops, "inference_tokens": tokens, "law": law, "instead": why}
    if not found.usable:
        return head | {"status": found.status, "reason": found.reason, "splits": [], "aspect": None}
    boot = intervals.bootstrap(law, rows, found, draws=draws)
    each = [dict(zip(boot.names, row, strict=True)) for row in boot.draws.tolist()]
    count = counted(rows) if count is None else count
    asked = [("compute-optimal", c, 0.0) for c in dict.fromkeys((SIX, count))]
    asked += [(f"serving {tokens:.3g} tokens", count, tokens)] if tokens else []
    splits = [_told(law, a, flops, [found.params, *each], boot.inflation) for a in asked]
    _with_loss(chosen, table, [s for s in splits if s["N"] and s["D"]])
    lacking = any(s["N"] is None for s in splits)
    size = splits[0]["N"]["value"] if splits[0]["N"] else None
    return head | {
        "status": "bound hit" if lacking and found.status == "converged" else found.status,
        "reason": found.reason or ("the law has no optimum at this budget" if lacking else ""),
        "splits": splits,
        "aspect": aspect(law, found.params, table, size) if size else None,
    }


def _with_loss(chosen: Candidate, table: Table, splits: list[dict[str, Any]]) -> None:
    """Adds the loss at each split's N and D, with its interval."""
    if not splits:
        return
    at = {k: np.array([s[k]["value"] for s in splits]) for k in ("N", "D")}
    known = intervals.forecast(chosen, table, columns(at))
    for i, s in enumerate(splits):
        s["loss"] = {k: float(getattr(known, k)[i]) for k in ("value", "low", "high")}


def _told(law: str, asked: tuple[str, Count, float], flops: float, params: list[Params], wide: float) -> dict[str, Any]:
    """One split (name, count, inference tokens) with its intervals; the law's parameters first, then their draws."""
    name, count, tokens = asked
    found = [served(law, p, flops, tokens, count) if tokens else trained(law, p, flops, count) for p in params]
    best = found[0]
    n, d = np.array([s.N for s in found]), np.array([s.D for s in found])
    told = {"N": _interval(n, wide), "D": _interval(d, wide), "tokens_per_parameter": _interval(d / n, wide)}
    cost = {k: v if np.isfinite(v) else None for k, v in (("training", best.training), ("inference", best.inference))}
    saved = None
    if tokens and told["N"]:
        plain = trained(law, params[0], flops, count)
        whole = flops + SHARE * tokens * float(count.token(np.array(plain.N)))
        saved = 100 * (1 - (best.training + best.inference) / whole)
    return {"name": name, "count": count.text, **told, "loss": None, **cost, "saved_percent": saved}


def _interval(each: Array, wide: float) -> dict[str, float] | None:
    """90% of a positive number by its draws, the first being its value; None where it, or most draws, are none."""
    logs = np.log(each[np.isfinite(each) & (each > 0)])
    if not (np.isfinite(each[0]) and each[0] > 0) or len(logs) < valley.SURE * len(each):
        return None
    low, high = valley.interval(float(logs[0]), logs[1:], wide)
    return {"value": float(each[0]), "low": float(np.exp(low)), "high": float(np.exp(high))}
