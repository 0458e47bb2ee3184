"""A full-size run while it trains, judged by `live` from the study's folder.

What `tunnel check` says of the target before its end, what every alarm rests on, and what the dashboard draws is this
one value.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from tunnel import families
from tunnel.answers import forecasts, ladder, live, recommend
from tunnel.errors import UserError
from tunnel.folder import store
from tunnel.folder.store import Store
from tunnel.run import RunSpec
from tunnel.study import Study

TUNED = 0.01  # a run so much worse than the best of its shape, rung and seed has another curve  *assumed*


@dataclass(frozen=True)
class Proxy:
    """A run of the ladder, its loss `above` the best of its shape, rung, batch and seed (a part of it)."""

    width: int
    depth: int
    above: float
    curve: live.Curve


@dataclass(frozen=True)
class Awaited:
    """A full-size run: the forecast that counts, and the bundle that it should stay in.

    `started`: when its target began; None of a run beside that.
    """

    target: str
    run: RunSpec
    N: int
    started: str | None
    told: dict[str, Any]
    ladder: tuple[Proxy, ...]
    band: live.Band

    def normalised(self) -> list[tuple[int, int, np.ndarray]]:
        """Width, depth and slices of every curve in the bundle, over its final loss; the smallest first."""
        count, knee = len(self.band.ends), self.run.decay_start / self.run.tokens
        each = sorted(self.ladder, key=lambda p: (p.curve.N, p.curve.D))
        return [(p.width, p.depth, np.exp(p.curve.sliced(count, knee))) for p in each]


def awaited(asked: Study, keep: Store, target: str | None = None, run: RunSpec | None = None) -> Awaited:
    """What is expected of a target; `run`: the same at another seed.

    Raises UserError where it has not begun, or no forecast was registered before it did.
    """
    name = ladder.target_named(asked, target).name
    start = forecasts.begun(keep, name)
    if start is None:
        raise UserError("has not begun: `tunnel train` it first", file=keep.root, key=f"target.{name}")
    told = forecasts.preceding(store.chain(keep.path(forecasts.FILE)), start)
    if told is None:
        raise UserError("no forecast was registered before its first step", file=keep.root, key=f"target.{name}")
    run = run or RunSpec.model_validate(recommend.stored(asked, keep, name)[1]["run"])
    return expected(asked, keep, name, run, told, start["started"])


def expected(
    asked: Study, keep: Store, name: str, run: RunSpec, told: dict[str, Any], started: str | None = None
) -> Awaited:
    """What is expected of a run whose loss was forecast: `told` has forecast, low, high."""
    n = families.load(run.trunk.family).count(run.trunk.shape, run.trunk.body)
    own = tuned(asked, keep)
    band = live.band([p.curve for p in own], curve_of(keep, run, n, told["forecast"]), told["low"], told["high"])
    return Awaited(name, run, n, started, told, own, band)


def shortened(asked: Study, keep: Store, target: str | None, run: RunSpec) -> Awaited:
    """What is expected of the target's run with another D, of which nothing was registered: what the ladder says today.

    Raises UserError where the ladder has too few readings for a law.
    """
    goal, readings = ladder.target_named(asked, target), keep.readings()
    near = goal.model_copy(update={"tokens": run.tokens})
    rows = ladder.rows_used(asked, keep, readings, ladder.stage_of(asked))
    told = ladder.fit(asked, near, ladder.table_of(rows))["forecast"]
    name = f"{goal.name}, decayed from {run.decay_start:,} tokens on,"
    return expected(asked, keep, name, run, {**told, "forecast": told["value"]})


def standing(keep: Store, of: Awaited) -> dict[str, Any]:
    """Where a target stands, as `forecasts.check` tells its end: `measured` and `inside` are None, `live` says more."""
    run = curve_of(keep, of.run, of.N, of.told["forecast"])
    found = live.judged(of.band, run, of.run.trunk.settings.batch_tokens)
    if found["alarm"] is not None:
        found["alarm"] |= {"target": of.target, "run": of.run.fingerprint, "text": said(of.target, found["alarm"])}
    return {
        "target": of.target,
        "status": "running",
        **{k: of.told.get(k) for k in ("forecast", "low", "high", "compute_ratio", "registered")},
        **dict.fromkeys(("measured", "error_percent", "inside", "bpb", "seconds")),
        "started": of.started,
        "live": found,
    }


def check(asked: Study, keep: Store, target: str | None = None) -> dict[str, Any]:
    """The forecast against what was measured; before the end, where the target stands. Raises UserError as both do."""
    name = ladder.target_named(asked, target).name
    start = forecasts.begun(keep, name)
    if start is None or keep.record(start["run"]) is not None:
        return forecasts.check(keep, name)
    return standing(keep, awaited(asked, keep, name))


def tuned(asked: Study, keep: Store) -> tuple[Proxy, ...]:
    """The ladder's well-tuned runs that have curves; empty where it has too few readings."""
    try:
        return proxies(keep, ladder.rows_used(asked, keep, keep.readings(), ladder.stage_of(asked)))
    except UserError:
        return ()


def proxies(keep: Store, rows: pd.DataFrame, within: float = TUNED) -> tuple[Proxy, ...]:
    """The runs of readings that have curves, and are so near the best of their shape, rung, batch and seed."""
    above = rows.loss / rows.groupby(["width", "depth", "D", "batch_tokens", "seed"]).loss.transform("min") - 1
    near = rows.assign(above=above)[above <= within]
    trunks = {name: keep.curve(name) for name in near.run.unique()}
    found = []
    for r in near.to_dict("records"):
        tokens, loss = joined(trunks[r["run"]], keep.curve(r["fingerprint"]), int(r["decay_start"]))
        if len(tokens):
            n, d, start, warmup, final = (float(r[k]) for k in ("N", "D", "decay_start", "warmup", "loss"))
            curve = live.Curve(n, d, start, warmup, int(r["seed"]), tokens, loss, final)
            found.append(Proxy(int(r["width"]), int(r["depth"]), float(r["above"]), curve))
    return tuple(found)


def curve_of(keep: Store, run: RunSpec, n: int, final: float) -> live.Curve:
    """A run's curve so far."""
    trunk, fork = keep.curve(run.trunk.fingerprint), keep.curve(run.fingerprint)
    tokens, loss = joined(trunk, fork, run.decay_start)
    warmup, seed = float(run.trunk.settings.warmup), run.trunk.seed
    return live.Curve(float(n), float(run.tokens), float(run.decay_start), warmup, seed, tokens, loss, final)


def joined(trunk: pd.DataFrame | None, fork: pd.DataFrame | None, start: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and training loss of a trunk up to its fork, and of the fork."""
    parts = [trunk[trunk.tokens <= start] if trunk is not None else None, fork]
    kept = [p[["tokens", "loss"]].to_numpy(float) for p in parts if p is not None]
    both = np.concatenate(kept) if kept else np.empty((0, 2))
    return both[:, 0], both[:, 1]


def said(target: str, alarm: dict[str, Any]) -> str:
    """
    >>> said("1.2B", {"step": 1200, "percent": 3.14, "by": "level"})
    '1.2B left the bundle at step 1,200: 3.1% above what it should be'
    """
    what = "the bundle" if alarm["by"] == "level" else "its own course"
    side = "above" if alarm["percent"] > 0 else "below"
    return f"{target} left {what} at step {alarm['step']:,}: {abs(alarm['percent']):.1f}% {side} what it should be"
