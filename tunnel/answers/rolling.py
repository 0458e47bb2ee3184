"""Rolling registration: while a study runs, every next rung and shape is forecast before its reading is known.

When a trial is handed out, and whenever a reading comes in, all runs that have neither forecast nor record are forecast
by `valleys.nearby` from the readings that exist, and hashed into the chain. The next intervals are as much wider as the
forecasts whose outcome is known by then were worse than they said. Nothing here breaks a sweep: a failure is `status`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tunnel import families
from tunnel.answers import forecasts
from tunnel.backtests import backtest
from tunnel.errors import UserError
from tunnel.folder import store
from tunnel.folder.store import Store
from tunnel.quantiles import LEVEL
from tunnel.run import Record, RunSpec, Trial, fingerprint
from tunnel.study import Stage
from tunnel.training import data
from tunnel.valleys import nearby

log = logging.getLogger(__name__)
FORMULA = (
    "log loss = slopes + a Gaussian process over the logarithms of N, D, lr and what else varies (nearby readings)"
)
PRIOR = 10  # forecasts' worth of belief that the intervals are as wide as they should be  *assumed*
WIDEST = 0.1  # of log loss: half an interval that still says something  *assumed*
FARTHEST = 5.0  # standard deviations that one miss counts at most  *assumed*
# among what is compared
AGREE = ("family", "rules", "decay_shape", "half_life", "min_ratio", "mix", "weight_decay", "beta2")
Row = dict[str, Any]


class Rolling:
    """A stage's rolling forecasts; searches are read, and not forecast. `status` says why there are none (any more)."""

    def __init__(self, keep: Store, stage: Stage) -> None:
        self.keep, self.status = keep, "" if not stage.searches else "a search's candidates are not forecast"
        self.rows: dict[str, Row] = {}
        self.told: dict[str, dict[str, Any]] = {}  # registered, by run
        if not self.status:
            self.carefully(self.begin)

    def begin(self) -> None:
        entries = store.chain(self.keep.path(forecasts.FILE))
        self.told = {e["run"]: e for e in entries if forecasts.kind_of(e) == "rolling"}
        self.add(r for r in self.keep.records() if not r.stage.startswith("target:"))

    def handed_out(self, trial: Trial) -> None:
        """Registers what is to be expected of a trial, before it starts."""
        self.carefully(lambda: self.register(trial, "trial"))

    def read(self, record: Record, running: Iterable[Trial]) -> None:
        """Takes a reading in, and registers what now can be expected of the runs that are not read yet."""
        trials = tuple(running)

        def go_on() -> None:
            self.add([record])
            for trial in trials:
                self.register(trial, "reading")

        self.carefully(go_on)

    def carefully(self, do: Callable[[], None]) -> None:
        if self.status:
            return
        try:
            do()
        except (UserError, ValueError, KeyError, ArithmeticError, OSError) as e:
            self.status = f"no forecasts from here on: {e}"
            log.warning("%s", self.status)

    def add(self, records: Iterable[Record]) -> None:
        for r in records:
            if r.loss is not None and r.loss > 0:
                self.rows[r.fingerprint_of] = row_of(r.run) | {"loss": r.loss}

    def register(self, trial: Trial, before: str) -> None:
        """Forecasts of a trial's runs that have none and are not read, where enough readings are known."""
        new = [r for r in trial.runs if r.fingerprint not in self.told and self.waits(r)]
        asked = [row_of(r) for r in new]
        groups = {tuple(row[k] for k in AGREE) for row in asked}
        for group in groups:
            runs = [(r, row) for r, row in zip(new, asked, strict=True) if tuple(row[k] for k in AGREE) == group]
            known = [row for row in self.rows.values() if tuple(row[k] for k in AGREE) == group]
            if len(known) >= nearby.LEAST:
                self.write(self.entries(trial, before, runs, known))

    def waits(self, run: RunSpec) -> bool:
        """Whether nobody can have read this run: it has no record, whatever this process was told."""
        return run.fingerprint not in self.rows and not self.keep.path("records", f"{run.fingerprint}.json").exists()

    def write(self, entries: Sequence[dict[str, Any]]) -> None:
        if entries:
            self.told |= {e["run"]: e for e in forecasts.register_all(self.keep, entries)}

    def entries(
        self, trial: Trial, before: str, runs: Sequence[tuple[RunSpec, Row]], known: Sequence[Row]
    ) -> list[dict[str, Any]]:
        """What is written of those runs whose interval says something; the others wait for more readings."""
        have, where = table(known, ("loss",)), table([row for _, row in runs])
        told, widened = nearby.told(have, where), self.widening()
        far, half = backtest.distance(have, where), widened * told.half(LEVEL)
        most = max(row["C"] for row in known)
        rest = {"kind": "rolling", "before": before, "stage": trial.stage, "trial": trial.number}
        rest |= {"law": "nearby", "formula": FORMULA, "readings_hash": fingerprint(sorted(self.losses().items()))}
        return [
            rest
            | {
                "target": f"{trial.stage}: {run.trunk}, D {run.tokens:,}",
                "run": run.fingerprint,
                **{k: row[k] for k in ("N", "D", "lr")},
                "forecast": math.exp(value),
                "low": math.exp(value - wide),
                "high": math.exp(value + wide),
                "distance": beyond,
                "compute_ratio": row["C"] / most,
                "parts": {"readings": told.readings, "noise": told.noise, "widened": widened, "spread": spread},
                "corpus_hash": data.identity(run),
            }
            for (run, row), value, wide, spread, beyond in zip(
                runs, *(x.tolist() for x in (told.value, half, told.spread, far)), strict=True
            )
            if wide <= WIDEST
        ]

    def losses(self) -> dict[str, float]:
        return {fp: row["loss"] for fp, row in self.rows.items()}

    def widening(self) -> float:
        """The factor on the next intervals: what the known outcomes' misses are, in their own standard deviations."""
        known = [(e, self.rows[fp]["loss"]) for fp, e in self.told.items() if fp in self.rows]
        missed = [math.log(e["forecast"] / loss) / e["parts"]["spread"] for e, loss in known]
        squares = [min(abs(z), FARTHEST) ** 2 for z in missed]
        return max(1.0, math.sqrt((PRIOR + sum(squares)) / (PRIOR + len(squares))))


def row_of(run: RunSpec) -> Row:
    """A run's coordinates, and what must agree for it to be compared."""
    trunk, s = run.trunk, run.trunk.settings
    n = families.load(trunk.family).count(trunk.shape, trunk.body)
    return {
        **{"N": float(n), "D": float(run.tokens), "C": 6.0 * n * run.tokens, "lr": s.lr, "depth": trunk.shape.depth},
        **{"batch_tokens": s.batch_tokens, "decay": run.decay_tokens / run.tokens, "warmup": max(s.warmup, 1)},
        **{"family": trunk.family, "rules": trunk.rules, "weight_decay": s.weight_decay, "beta2": s.beta2},
        **{"decay_shape": run.decay_shape, "half_life": run.half_life, "min_ratio": run.min_ratio},
        "mix": tuple((m.name, m.share) for m in run.mix),
    }


def table(rows: Sequence[Mapping[str, Any]], more: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
    names = (*nearby.ALWAYS, *nearby.OTHERS, "C", *more)
    return {k: np.array([row[k] for row in rows], float) for k in names}
