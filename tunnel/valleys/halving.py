"""Who goes on: successive halving over rungs, on finished readings alone.

Compared are decayed losses of equal shape, batch and rules at equal D; nothing else is comparable. After ASHA
(arXiv 1810.05934), in its stopping form, since a trial's trunk is on one worker: whoever comes later is judged by more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from tunnel.run import Record, Shape, Trial, TrunkSpec

Cell = tuple[Shape, int, str, int]  # shape, batch, rules, D: where readings may be compared
Records = Mapping[str, Record]  # a trial's, by fingerprint


def cell(trunk: TrunkSpec, rung: int) -> Cell:
    return trunk.shape, trunk.settings.batch_tokens, trunk.rules, rung


def losses(trial: Trial, records: Records) -> dict[int, float]:
    """A trial's loss by rung, of the rungs whose forks are all measured: its best, infinite where all diverged."""
    found: dict[int, list[float | None]] = {}
    for run in trial.runs:
        record = records.get(run.fingerprint)
        loss = None if record is None else math.inf if record.loss is None else record.loss
        found.setdefault(run.tokens, []).append(loss)
    whole = {rung: [x for x in at if x is not None] for rung, at in found.items() if None not in at}
    return {rung: min(whole[rung]) for rung in sorted(whole)}


class Halving:
    """A stage's readings by cell; with `eta` None every trial goes on."""

    def __init__(self, eta: int | None) -> None:
        self.eta = eta
        self.cells: dict[Cell, dict[str, float]] = {}  # loss by trunk, so that a trial begun again counts once

    def add(self, trial: Trial, records: Records) -> None:
        for rung, loss in losses(trial, records).items():
            if loss < math.inf:  # a diverged one is no competitor: it must not make room for others
                self.cells.setdefault(cell(trial.trunk, rung), {})[trial.trunk.fingerprint] = loss

    def goes_on(self, trial: Trial, records: Records) -> bool:
        """Whether a trial, its readings added, is among the best ⌈n/eta⌉ of the n at the last rung it reached."""
        own = losses(trial, records)
        if self.eta is None or not own:
            return True
        rung = max(own)
        if rung == trial.rung:
            return True
        others = self.cells.get(cell(trial.trunk, rung), {})
        return own[rung] < math.inf and sum(x < own[rung] for x in others.values()) < math.ceil(len(others) / self.eta)
