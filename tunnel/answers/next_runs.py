"""Which run next: the additions to a ladder that narrow the interval at the target most per FLOP, before they are run.

Greedy, one after the other: `additions` says what there is and what it costs, `narrowing` what it would leave of the
interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from tunnel import families, plan, tuned
from tunnel.answers import additions, ladder, narrowing
from tunnel.answers.additions import Addition, Trained
from tunnel.answers.narrowing import Known, Table, Width
from tunnel.errors import UserError
from tunnel.folder.store import Store
from tunnel.run import RunSpec
from tunnel.study import Study
from tunnel.sweeps import sweep

Runs = dict[str, RunSpec]  # by fingerprint
LEAST = 0.05  # of the interval: narrowed by less, it is lost in its own scatter, a fifth  *measured here*
LIMITS = (
    "expected, not promised: what the law misses on hold-outs beyond noise shrinks with the distance to the target "
    "only, the target's own seed noise not at all, and where another form is chosen then, its interval is another",
    "a fan whose minimum moves to its edge widens itself and costs more; stages with halving cost less",
)


@dataclass(frozen=True)
class Option:
    """An addition, all runs that the study then plans, and the intervals expected then."""

    addition: Addition
    planned: Runs
    new: tuple[RunSpec, ...]
    trained: Trained  # what the new ones take, where they are swept together with those before them
    total: Trained  # and these too
    width: Width


def proposed(asked: Study, keep: Store, count: int, target: str | None = None) -> dict[str, Any]:
    """The `count` additions to the study's ladder that narrow the interval at a target most per FLOP; JSON values.

    Keys: stage, target, target_flops, law, before {loss, low, high, half_percent, lr, lr_low, lr_high}, least_percent
    (of the interval: what narrows it by less is not proposed), runs (a row per addition, each given those before it),
    lines (for the study file), limits. Raises UserError where the ladder
    allows no forecast yet.
    """
    found = Search(asked, keep, target)
    chosen = found.greedy(count)
    befores = [found.width, *(o.width for o in chosen)]
    after = chosen[-1].addition.study if chosen else asked
    return {
        "stage": found.stage.name,
        "target": found.goal.name,
        "law": found.known.fit["chosen"],
        "before": interval_of(found.known, found.width),
        "target_flops": found.target_flops,
        "least_percent": 100 * LEAST,
        "runs": [row_of(o, found.known, was, asked) for o, was in zip(chosen, befores, strict=False)],
        "lines": additions.lines(asked, after, found.stage.name, sweep.is_small(keep)),
        "limits": list(LIMITS),
    }


class Search:
    """A ladder with its readings, and what could be added to it."""

    def __init__(self, asked: Study, keep: Store, target: str | None = None) -> None:
        self.asked, self.goal, self.stage = asked, ladder.target_named(asked, target), ladder.stage_of(asked)
        fit, readings = ladder.fitted(asked, keep, target), keep.readings()
        rows = ladder.rows_used(asked, keep, readings, self.stage)
        self.known = narrowing.posterior(fit, ladder.table_of(rows), ladder.target_row(asked, self.goal))
        self.folder, self.useful = (
            additions.folder_of(keep, self.stage, readings),
            useful_of(readings, rows, self.stage.name),
        )
        self.planned = self.folder.runs(asked)
        self.width = narrowing.narrowed(self.known, self.useful(self.planned))  # when all that is planned has been run
        whole = plan.target_trial(asked, self.goal, plan.values_of(asked, self.stage, self.folder.handed_on))
        self.target_flops = self.folder.cost(whole.runs).flops

    def greedy(self, count: int) -> list[Option]:
        """Additions one after the other, each the one that narrows most per FLOP what those before it leave."""
        chosen: list[Option] = []
        while len(chosen) < count:
            width = chosen[-1].width if chosen else self.width
            worth = [o for o in self.options(*chosen[-1:]) if o.width.loss < (1 - LEAST) * width.loss]
            if not worth:
                break
            chosen.append(max(worth, key=lambda o: (width.loss - o.width.loss) / o.trained.flops))
        return chosen

    def options(self, after: Option | None = None) -> list[Option]:
        """What could be added to the study, or to what it is after other additions, where its lengths fit."""
        now, planned = (after.addition.study, after.planned) if after else (self.asked, self.planned)
        paid, found = after.total if after else Trained(0, 0.0), []
        for addition in additions.neighbours(now, now.stage_named(self.stage.name), self.goal):
            try:
                runs = self.folder.runs(addition.study)
            except UserError:
                continue
            new = tuple(r for fp, r in runs.items() if fp not in planned)
            total = self.folder.cost((r for fp, r in runs.items() if fp not in self.planned), self.planned.values())
            if new:
                width = narrowing.narrowed(self.known, self.useful(runs))
                found.append(Option(addition, runs, new, total.less(paid), total, width))
        return found


def useful_of(readings: pd.DataFrame, rows: pd.DataFrame, stage: str) -> Callable[[Runs], Table]:
    """Which of the runs will be readings that the law can use, as columns: not measured yet, and likely to live.

    Of several decays to one reading, the best is used: they count once.
    """
    measured, rules = set(readings.fingerprint), str(rows.iloc[0].rules)
    breaks = float(readings.lr[tuned.asked_by(readings, stage) & (readings.status == "diverged")].min())

    def useful(runs: Runs) -> Table:
        found: dict[tuple[str, int], list[Any]] = {}
        for fp, run in runs.items():
            trunk, s = run.trunk, run.trunk.settings
            if fp not in measured and trunk.rules == rules and not s.lr >= breaks:
                n = families.load(trunk.family).count(trunk.shape, trunk.body)
                row = [n, run.tokens, trunk.shape.width, trunk.shape.depth, s.lr, s.batch_tokens]
                found[f"{trunk.shape} {s.lr} {trunk.seed}", run.tokens] = row
        columns = np.array(list(found.values()), float).reshape(-1, 6).T
        names = ("N", "D", "width", "depth", "lr", "batch_tokens")
        return {**dict(zip(names, columns, strict=True)), "run": np.array([k for k, _ in found], str)}

    return useful


# what is told


def interval_of(known: Known, width: Width) -> dict[str, float]:
    """The forecast and lr* with their 90% intervals, at these widths about today's values."""
    value, lr = known.fit["forecast"]["value"], known.fit["lr"]
    middle = math.sqrt(lr["low"] * lr["high"])
    return {
        "loss": value,
        "low": value * math.exp(-width.loss),
        "high": value * math.exp(width.loss),
        "half_percent": 100 * math.expm1(width.loss),
        "lr": lr["value"],
        "lr_low": middle * math.exp(-width.lr),
        "lr_high": middle * math.exp(width.lr),
    }


def row_of(option: Option, known: Known, before: Width, asked: Study) -> dict[str, Any]:
    """An addition with its runs, its cost, and the intervals before and after it."""
    longest = max(option.new, key=lambda r: (r.trunk.shape.width * r.trunk.shape.depth, r.tokens))
    seconds = option.trained.flops / asked.price.pace(asked.train.precision)
    was, then = interval_of(known, before), interval_of(known, option.width)
    return {
        "add": option.addition.what,
        "key": option.addition.key,
        "trials": len({additions.identity(r.trunk) for r in option.new}),
        "readings": len(option.new),
        "N": families.load(asked.family).count(longest.trunk.shape, longest.trunk.body),
        "D": max(r.tokens for r in option.new),
        "tokens": option.trained.tokens,
        "flops": option.trained.flops,
        "seconds": seconds,
        "cost": asked.price.cost(seconds),
        "currency": asked.price.currency,
        "before": was,
        "after": then,
        "gain_percent": was["half_percent"] - then["half_percent"],
        "gain_percent_per_flop": (was["half_percent"] - then["half_percent"]) / option.trained.flops,
    }
