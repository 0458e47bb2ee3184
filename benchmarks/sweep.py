"""What a trial costs beside its training: against stock Ray Tune, in long sweeps, and in the gaps between trials.

    python benchmarks/sweep.py [--only stock growth tpe cluster busy] [--trials 1000 5000]

    stock    trials that train nothing on one local cluster: ours, and Tuner + OptunaSearch with a function trainable
    growth   short trials of the calibration body with Sobol, in this process: the last hundred against the first
    tpe      the sampler's own time where it learns: once past its window, and at the end
    cluster  `growth` on Ray, with the first of --trials
    busy     trials of 4 to 16 seconds, long ones first: the workers' time that is spent in trials

`growth`, `tpe` and `cluster` count this process's own CPU time, so that a busy machine does not decide; the others the
wall. Theirs keeps nothing on disk that outlives the driver, and has the environment that ours sets for Ray; ours writes
records, curves, checkpoints and the database.
Prints the ratios last; exits 1 where one is missed. 15 minutes of two cores.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy reads it

from found import Found

from tunnel.sampler import TPE_WINDOW, Asker
from tunnel.study import Stage
from tunnel.sweeps import backends, sweep
from tunnel.sweeps.status import Live

WORKERS = 2
HUNDRED = 100
WARM = 10  # trials that pay for what is imported on the way, and are not counted
THEIRS, OURS = 12, 60  # trials of a side
NAP = 0.08  # seconds of a step at width 32; a trial of `busy` has 50
STUDY = """
question = "What does a trial cost that trains nothing?"
family = "synthetic"
[model]
head_dim = 16
base_width = 32
base_depth = 2
seq_len = 32
[train]
batch_tokens = 1024
[resources]
backend = "{backend}"
[[target]]
name = "big"
width = 256
depth = 8
tokens = "1M"
"""
SEARCH = """
[[stage]]
name = "calibrate"
kind = "search"
  [stage.space]
  width = 32
  depth = 2
  lr = {{ low = 1e-3, high = 1e-1 }}
  warmup = {{ low = 0.02, high = 0.1 }}
  [stage.budget]
  trials = {trials}
  tokens = "10k"
  [stage.sampler]
  name = "sobol"
"""
LADDER = """
[[stage]]
name = "ladder"
kind = "ladder"
shapes = [[32, 2], [64, 2], [96, 2], [128, 2]]
fan = [0.25, 0.5, 1, 2, 4, 8]
widen = 0
rungs = {{ tokens = ["50k"] }}
"""


@dataclass
class Ends:
    """When each trial ended: on the wall, and in this process's CPU time."""

    walls: list[float] = field(default_factory=list)
    cpus: list[float] = field(default_factory=list)

    def __call__(self, live: Live) -> None:
        if live.finished >= len(self.walls):
            self.walls.append(time.monotonic())
            self.cpus.append(time.process_time())


def pace(ends: list[float], first: int, last: int) -> float:
    """Seconds per trial from the end of one to the end of another."""
    return (ends[last] - ends[first]) / (last - first)


def swept(folder: Path, stage: str, backend: str, trials: int = 0) -> tuple[Ends, sweep.Store]:
    path, ends = folder / "bench.toml", Ends()
    path.write_text((STUDY + stage).format(backend=backend, trials=trials))
    asked, keep = sweep.opened(path, folder / "out")
    sweep.sweep(asked, keep, max_concurrent=WORKERS, watch=ends)
    return ends, keep


@contextmanager
def cluster(hook: Callable[[], None] | None = None) -> Iterator[None]:
    """A local Ray as a sweep starts it, of so many workers on any machine; `hook` runs on each first."""
    backends.environment(None)
    import ray

    from tunnel.sweeps.cluster import OBJECT_STORE

    ray.init(
        "local",
        num_cpus=WORKERS,
        include_dashboard=False,
        object_store_memory=OBJECT_STORE,
        log_to_driver=False,
        logging_level=logging.ERROR,
        runtime_env={"worker_process_setup_hook": hook} if hook else None,
    )
    try:
        yield
    finally:
        ray.shutdown()


# against stock


def bowl(config: dict[str, float]) -> None:
    """The least that a function trainable can do."""
    from ray import tune

    tune.report({"loss": math.log(config["lr"] / 0.01) ** 2})


def stock(folder: Path) -> float:
    """Seconds per trial of what Ray's documentation shows."""
    from ray import tune
    from ray.tune.search.optuna import OptunaSearch

    ends: list[float] = []

    class Watch(tune.Callback):
        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            ends.append(time.monotonic())

    tune.Tuner(
        tune.with_resources(bowl, {"CPU": 1}),
        param_space={"lr": tune.loguniform(1e-3, 1e-1), "warmup": tune.uniform(0.02, 0.1)},
        tune_config=tune.TuneConfig(
            search_alg=OptunaSearch(), metric="loss", mode="min", num_samples=THEIRS, max_concurrent_trials=WORKERS
        ),
        run_config=tune.RunConfig(storage_path=str(folder), verbose=0, callbacks=[Watch()]),
    ).fit()
    return pace(ends, WORKERS - 1, len(ends) - 1)


def against_stock(folder: Path, found: Found) -> None:
    with cluster():
        theirs = stock(folder)
        ends, _ = swept(folder, SEARCH, "ray", OURS)
    ours = pace(ends.walls, WARM, OURS)
    print(f"a trial that trains nothing, {WORKERS} workers: stock {theirs:.2f} s, ours {ours:.3f} s")
    found.at_most("ours against Tuner + OptunaSearch, function trainable", ours / theirs, 0.15)
    found.at_most("ours, seconds per trial", ours, 0.3)


# long sweeps


def growth(folder: Path, trials: int, backend: str, found: Found) -> None:
    """A hundred trials are three seconds, in which a machine's own pace moves by a fifth: the median of three sweeps,
    where trials are few."""
    each = []
    for repeat in range(max(1, 3000 // trials)):
        ends, _ = swept(made(folder / str(repeat)), SEARCH, backend, trials)
        hundreds = (WARM, WARM + HUNDRED), (trials - HUNDRED, trials)
        cpus, walls = ([pace(of, *h) for h in hundreds] for of in (ends.cpus, ends.walls))
        each.append((cpus[1] / cpus[0], *cpus, *walls))
    ratio, first, last, *walls = sorted(each)[len(each) // 2]
    gigabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    where = "on Ray" if backend == "ray" else "in one process"
    print(
        f"{trials:,} trials {where}: driver's CPU {1e3 * first:.1f} ms a trial at first, {1e3 * last:.1f} ms at last; "
        f"on the wall {1e3 * walls[0]:.0f} and {1e3 * walls[1]:.0f} ms; {gigabytes:.2f} GB at most"
    )
    found.at_most(f"{trials:,} trials {where}: last hundred against the first", ratio, 1.2)
    found.at_most(f"{trials:,} trials {where}: driver's memory, GB", gigabytes, 1.0)


def tpe(folder: Path, found: Found) -> None:
    """Asks and answers without trials between them."""
    space = {"lr": {"low": 1e-3, "high": 1e-1}, "warmup": {"low": 0.02, "high": 0.1}}
    count = 2 * (TPE_WINDOW + HUNDRED)
    budget = {"trials": count, "flops": 1e9}
    stage = Stage.model_validate({"name": "s", "kind": "search", "space": space, "budget": budget})
    asker, cpus = Asker(folder, stage, None, 0), [time.process_time()]
    while (ask := asker.ask()) is not None:
        asker.tell(ask.number, "complete", math.log(float(ask.params["lr"]) / 0.01) ** 2)
        cpus.append(time.process_time())
    first, past, last = (pace(cpus, i, i + HUNDRED) for i in (WARM, TPE_WINDOW, count - HUNDRED))
    print(
        f"TPE, with a window of {TPE_WINDOW}: {1e3 * first:.0f} ms a trial at first, {1e3 * past:.0f} ms when it is "
        f"full, {1e3 * last:.0f} ms after {count:,}"
    )
    found.at_most(f"TPE: ask {count:,} against ask {TPE_WINDOW + HUNDRED}", last / past, 1.2)


# gaps


def nap() -> None:
    """On a worker: a step of the calibration body takes its time, as its width has it, and no CPU."""
    from tunnel.families.synthetic import Synthetic

    step = Synthetic.step

    def slow(self: Synthetic, multiplier: float) -> bool:
        time.sleep(NAP * self.trunk.shape.width / 32)
        return step(self, multiplier)

    Synthetic.step = slow  # type: ignore[method-assign]


def busy(folder: Path, found: Found) -> None:
    with cluster(nap):
        _, keep = swept(folder, LADDER, "ray")
    records = keep.records()
    begins = [datetime.fromisoformat(r.started).timestamp() for r in records]
    whole = max(b + r.seconds for b, r in zip(begins, records, strict=True)) - min(begins)
    seconds = [r.seconds for r in records]
    widths = [r.run.trunk.shape.width for r in sorted(records, key=lambda r: r.started)]
    print(f"{len(records)} trials of {min(seconds):.1f} to {max(seconds):.1f} s on {WORKERS} workers: {whole:.0f} s")
    assert widths == sorted(widths, reverse=True), "long ones first"
    found.at_least("workers busy", sum(seconds) / (WORKERS * whole), 0.95)


def main() -> int:
    options = argparse.ArgumentParser()
    options.add_argument("--only", nargs="+", default=["stock", "growth", "tpe", "cluster", "busy"])
    options.add_argument("--trials", type=int, nargs="+", default=[1000, 5000], help="of the long sweeps")
    given = options.parse_args()
    found, began = Found(), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        if {"growth", "cluster"} & {*given.only}:
            swept(made(root / "warm"), SEARCH, "inline", WARM)
        for part in given.only:
            if part == "stock":
                against_stock(made(root / part), found)
            elif part == "tpe":
                tpe(root / part, found)
            elif part == "busy":
                busy(made(root / part), found)
            elif part == "cluster":
                with cluster():
                    growth(made(root / part), given.trials[0], "ray", found)
            else:
                for trials in given.trials:
                    growth(made(root / str(trials)), trials, "inline", found)
    print(f"\n{time.monotonic() - began:.0f} s. Ratios:")
    print("\n".join(found.lines))
    return int(found.missed > 0)


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder


if __name__ == "__main__":
    sys.exit(main())
