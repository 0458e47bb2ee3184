"""Does the live check alarm what it should, and nothing else? `python benchmarks/live.py DIR[:STAGE...]...`, a minute.

Over stages that have fans on three shapes or more (default: of kind ladder or verdict), of finished studies' folders:
well-tuned runs are judged by the bundle of the other shapes alone, with a forecast whose error is drawn from its own
interval (2%); of the largest shape, whose bundle extrapolates, also the fan's worse members, forecast as the best one,
and well-tuned runs whose loss rises at 60%. Of finished targets: whether they were alarmed, and by how much what they
were on course for missed at 40 to 80% of the run. Exit 1 where significantly more than 1 in 20 good runs are alarmed.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tunnel import tuned
from tunnel.answers import live, running
from tunnel.answers.running import Proxy
from tunnel.errors import UserError
from tunnel.quantiles import NORMAL
from tunnel.sweeps import sweep

HALVES = (0.01, 0.02, 0.04)  # of the forecast's 90% interval, of log loss
WORSE = ((0.01, 0.03), (0.03, 0.06), (0.06, math.inf))
RISES = (0.03, 0.05, 0.1)
SEEN = (0.0, 0.4, 0.6, 0.8)  # of a target's run
FROM = 0.6  # of the run, where a rise begins
DRAWS = 5  # forecasts of a good run


def groups(spec: str) -> Iterator[tuple[str, list[Proxy]]]:
    """A folder's stages, by name and by the decay that their readings share."""
    folder, *stages = spec.split(":")
    asked, keep = sweep.frozen(Path(folder))
    readings = keep.readings()
    for stage in asked.stage:
        if stage.name not in stages if stages else stage.kind not in ("ladder", "verdict"):
            continue
        rows = tuned.of_stage(readings, stage.name)
        if len(rows) and rows.batch_tokens.nunique() == 1 and rows.groupby(["width", "depth"]).ngroups >= 3:
            yield f"{Path(folder).name} {stage.name}", list(running.proxies(keep, rows, math.inf))


class Judge:
    """Verdicts on the runs of a stage, each by the bundle of the other shapes' well-tuned runs."""

    def __init__(self, found: Sequence[Proxy]) -> None:
        self.found, self.most = found, max(p.curve.N for p in found)
        self.good = [p.curve for p in found if p.above <= running.TUNED]
        self.bands: dict[tuple[float, tuple[int, int]], live.Band] = {}

    def __call__(self, run: live.Curve, forecast: float, half: float) -> dict[str, Any]:
        """`forecast`: of the final loss, within `half` of its logarithm."""
        key = (run.N, run.order)
        if key not in self.bands:
            others = [c for c in self.good if run.N != c.N]
            self.bands[key] = live.band(others, run, run.final, run.final)
        band = replace(self.bands[key], up=live.RARE * half, down=live.RARE * half, forecast=forecast)
        return live.judged(band, replace(run, final=forecast), 1)

    def false_alarms(self, half: float, largest: bool) -> tuple[int, int]:
        """Alarms of well-tuned runs, and how many were judged."""
        rng, raised = np.random.default_rng(0), 0
        runs = [c for c in self.good if self.most == c.N or not largest]
        for run in runs:
            for error in rng.normal(0, half / NORMAL, DRAWS):
                raised += self(run, run.final * math.exp(error), half)["alarm"] is not None
        return raised, DRAWS * len(runs)


def targets(folders: Sequence[Path]) -> None:
    """Each finished target in its own bundle, and the errors of what it was on course for."""
    missed = []
    for folder in folders:
        asked, keep = sweep.frozen(folder)
        try:
            of = running.awaited(asked, keep)
        except UserError:
            continue
        record, curve = keep.record(of.run.fingerprint), running.curve_of(keep, of.run, of.N, of.told["forecast"])
        if record is None or record.loss is None or of.band.reason:
            continue
        alarm = live.judged(of.band, curve, 1)["alarm"]
        missed.append([abs(course_at(of, curve, share) / record.loss - 1) for share in SEEN])
        said = ", ".join(f"{100 * m:.2f}% at {share:.0%}" for m, share in zip(missed[-1], SEEN, strict=True))
        print(f"target {folder}: {'ALARMED' if alarm else 'inside'}; off by {said}")
    if missed:
        means = ", ".join(f"{100 * m:.2f}% at {s:.0%}" for m, s in zip(np.mean(missed, axis=0), SEEN, strict=True))
        print(f"{len(missed)} targets were on course for a loss that is off by {means} on average")


def course_at(of: running.Awaited, curve: live.Curve, share: float) -> float:
    """What a run is on course for when a share of it is trained: the forecast before it says anything."""
    seen = curve.tokens <= share * curve.D
    found = live.judged(of.band, replace(curve, tokens=curve.tokens[seen], loss=curve.loss[seen]), 1)["course"]
    return float(found["value"] if found else of.told["forecast"])


def main(specs: list[str]) -> int:
    targets([Path(spec.split(":")[0]) for spec in specs])
    every: list[tuple[int, int]] = []
    for name, found in (g for spec in specs for g in groups(spec)):
        judge = Judge(found)
        print(f"{name}: {len(found)} runs, {len(judge.good)} of them well tuned; {live.fineness(judge.good)} slices")
        big = [p for p in found if judge.most == p.curve.N]
        best = {p.curve.order: p.curve.final for p in big if p.above == 0}
        for half in HALVES:
            told = {kind: judge.false_alarms(half, kind == "the largest") for kind in ("any", "the largest")}
            every.append(told["any"])
            said = ", ".join(f"{a} of {n} ({a / n:.1%}) of {kind} shape" for kind, (a, n) in told.items())
            print(f"  forecast ± {half:.0%}: false alarms {said}")
            for low, high in WORSE:
                bad = [p.curve for p in big if low < p.above <= high]
                say(f"{low:.0%} to {high:.0%} worse", [judge(c, best[c.order], half) for c in bad])
        for rise in RISES:
            good = [p.curve for p in big if p.above <= running.TUNED]
            what = f"forecast ± {HALVES[-1]:.0%}, + {rise:.0%} from {FROM:.0%} on"
            say(what, [judge(lifted(c, rise), c.final, HALVES[-1]) for c in good])
    raised, of = (sum(v) for v in zip(*every, strict=True)) if every else (0, 0)
    if not of:
        raise SystemExit("no stage of these folders has fans on three shapes of one batch")
    allowed = live.FALSE + NORMAL * math.sqrt(live.FALSE * (1 - live.FALSE) / (of / DRAWS / len(HALVES)))
    print(f"false alarms in all: {raised} of {of} ({raised / of:.1%}; 5% promised, {allowed:.1%} allowed)")
    return 0 if raised / of <= allowed else 1


def lifted(curve: live.Curve, rise: float) -> live.Curve:
    return replace(curve, loss=np.where(curve.tokens > FROM * curve.D, (1 + rise) * curve.loss, curve.loss))


def say(what: str, found: Sequence[dict[str, Any]]) -> None:
    if found:
        at = [f["alarm"]["tokens"] / f["of"] for f in found if f["alarm"]]
        where = f", at {np.median(at):.0%} of the run" if at else ""
        print(f"    {what}: {len(at)} of {len(found)} alarmed{where}")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
