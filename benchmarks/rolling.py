"""Rolling forecasts replayed: `python benchmarks/rolling.py DIR...` over finished studies' folders, in a minute.

Every record is handed out and read again at the times at which it was, through `answers.rolling` and a scratch folder.
Prints coverage of the 90% intervals, mean error and half width per folder; exit 1 where fewer lie inside than honest
intervals would have in 5% of the cases. The widths assumed in `valleys.nearby` were chosen by it on quickstarts.
"""

from __future__ import annotations

import sys
import tempfile
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from tunnel.answers import forecasts, rolling
from tunnel.folder.store import Store
from tunnel.run import Record, Trial
from tunnel.sweeps import sweep

Key = tuple[str, int]  # a stage's trial


def replayed(folder: Path, scratch: Store) -> dict[str, Any]:
    """What `tunnel check DIR --all` would have said of a study's rolling forecasts."""
    asked, keep = sweep.frozen(folder)
    records = [r for r in keep.records() if not r.stage.startswith("target:")]
    trials: dict[Key, list[Record]] = {}
    for r in records:
        trials.setdefault((r.stage, r.trial), []).append(r)
    events: list[tuple[str, Key, Record | None]] = [
        (min(r.started for r in own), key, None) for key, own in trials.items()
    ]
    events += [(ended(r), (r.stage, r.trial), r) for r in records]
    running: dict[Key, Trial] = {}
    mine: dict[str, rolling.Rolling] = {}
    for _, key, record in sorted(events, key=lambda event: (event[0], event[2] is not None)):
        stage = key[0]
        if stage not in mine:
            mine[stage] = rolling.Rolling(scratch, asked.stage_named(stage))
        if record is None:
            running[key] = Trial(stage=stage, number=key[1], runs=tuple(r.run for r in trials[key]))
            mine[stage].handed_out(running[key])
            continue
        scratch.write_record(record)
        trials[key].remove(record)
        if not trials[key]:
            running.pop(key)
        for name, one in mine.items():
            one.read(record, [t for t in running.values() if t.stage == name])
    return forecasts.every(scratch)


def ended(r: Record) -> str:
    return (datetime.fromisoformat(r.started) + timedelta(seconds=r.seconds)).isoformat(timespec="microseconds")


def main(folders: list[str]) -> int:
    rows: list[dict[str, Any]] = []
    for folder in map(Path, folders):
        with tempfile.TemporaryDirectory() as scratch:
            found = replayed(folder, Store(scratch))
        rows += found["forecasts"]
        say(folder.name, found["all"])
    every = forecasts.judged(rows)
    for name, counts in {"all": every["all"], **every["by_distance"]}.items():
        say(name, counts)
    return 0 if every["enough"] else 1


def say(name: str, s: dict[str, Any]) -> None:
    if s["of"]:
        means = f"mean error {s['mean_error_percent']:.2f}%, half width {s['half_width_percent']:.2f}%"
        score = f"interval score {s['score_percent']:.2f}%"
        print(f"{name}: {s['inside']} of {s['of']} inside ({s['coverage']:.3f}), {means}, {score}")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
