"""What `plan --next` proposes, really run on the synthetic family: is the interval narrowed as told, and cheaply?

    python benchmarks/next_runs.py [--seeds 12] [--next 1]

Every seed is a study of its own: its ladder is run, what is proposed is run on top of it, and beside it as many random
additions of the same list. Prints by seed the half-width at the target before, as told, as measured, the law then, and
after the random ones; the ratios last: measured over told, and gain per FLOP of the proposed over the random (sums over
the seeds). Exits 1 where the narrowing is off by more than a factor OFF in the median, or the random gain as much.
"""

from __future__ import annotations

import argparse
import math
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

STUDY = """
question = "Which run next?"
family = "synthetic"
seed = {seed}
[model]
head_dim = 16
base_width = 64
base_depth = 4
seq_len = 128
[train]
batch_tokens = 1_048_576
decay = 0.15
[resources]
backend = "inline"
[[target]]
name = "big"
width = 512
depth = 32
tokens = "256M"
[[stage]]
name = "ladder"
kind = "ladder"
shapes = [[48, 3], [64, 4], [96, 6], [128, 8], [192, 12]]
fan = [0.5, 1, 2]
rungs = {{ tokens = ["32M", "64M", "128M", "256M"] }}
"""
OFF = 2.0  # the narrowing may be off by this factor, in the median  *assumed*


def main() -> int:
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--seeds", type=int, default=12)
    asked.add_argument("--next", type=int, default=1)
    args = asked.parse_args()
    began = time.perf_counter()
    print("seed  half-width %: before, as told, measured, law; random; what was proposed; random")
    with tempfile.TemporaryDirectory() as folder:
        found = np.array([one(Path(folder), seed, args.next) for seed in range(args.seeds)])
    before, told, measured, flops, other, other_flops = found.T
    left = (float(np.median(told / before)), float(np.median(measured / before)))
    ours, theirs = (before - measured).sum() / flops.sum(), (before - other).sum() / other_flops.sum()
    print(f"{time.perf_counter() - began:.0f} s")
    print(f"FLOPs: proposed {flops.mean():.3g}, random {other_flops.mean():.3g} (means)")
    print(
        f"half-width left: told {left[0]:.2f}, measured {left[1]:.2f}, random {np.median(other / before):.2f} (medians)"
    )
    print(f"measured over told: {left[1] / left[0]:.2f}")
    print(f"gain per FLOP, proposed over random: {ours / theirs if theirs > 0 else math.inf:.2f}")
    return int(not 1 / OFF < left[1] / left[0] < OFF or ours <= max(theirs, 0))


def one(folder: Path, seed: int, count: int) -> tuple[float, ...]:
    """A study: half-widths before, told, measured, FLOPs on top; the half-width and the FLOPs of random additions."""
    from tunnel.answers import next_runs
    from tunnel.answers.additions import Folder
    from tunnel.sweeps import sweep

    path = folder / f"s{seed}.toml"
    path.write_text(STUDY.format(seed=1000 * seed))
    asked, keep = sweep.opened(path, folder / f"s{seed}")
    train(Folder(keep, "ladder", {}, [], asked.family, frozenset()).runs(asked).values(), keep)
    search = next_runs.Search(asked, keep)
    chosen = search.greedy(count)
    before, told = half(search.known.fit), 100 * math.expm1(chosen[-1].width.loss if chosen else search.width.loss)
    fit, flops = ran(search, chosen, folder / f"s{seed}-next")
    rng = np.random.default_rng(seed)
    taken: list[Any] = []
    for _ in chosen:
        able = search.options(*taken[-1:])
        taken.append(able[rng.integers(len(able))])
    other, other_flops = ran(search, taken, folder / f"s{seed}-random")
    print(f"{seed:4d}  {before:.3f} {told:.3f} {half(fit):.3f} {fit['chosen']}; {half(other):.3f}", end="; ")
    print(f"{', '.join(o.addition.what for o in chosen)}; {', '.join(o.addition.what for o in taken)}", flush=True)
    return before, told, half(fit), flops, half(other), other_flops


def ran(search: Any, chosen: list[Any], copy: Path) -> tuple[dict[str, Any], float]:
    """Additions run in a copy of a folder: the fit then, and the FLOPs that they took."""
    from tunnel.answers import ladder
    from tunnel.folder.store import Store

    keep = search.folder.keep
    shutil.copytree(keep.root, copy)
    train((r for o in chosen for r in o.new), Store(copy))
    study = chosen[-1].addition.study if chosen else search.asked
    return ladder.fitted(study, Store(copy)), spent(Store(copy)) - spent(keep)


def train(runs: Iterable[Any], keep: Any) -> None:
    """What a sweep does with its trials, without asking for them one by one."""
    from tunnel.answers.additions import identity
    from tunnel.run import Trial
    from tunnel.training import forks

    trunks: dict[str, list[Any]] = {}
    for run in runs:
        trunks.setdefault(identity(run.trunk), []).append(run)
    for number, own in enumerate(trunks.values()):
        trial = Trial(stage="ladder", number=number, runs=tuple(sorted(own, key=lambda r: r.decay_start)))
        list(forks.grow(trial, keep, None))


def spent(keep: Any) -> float:
    return sum(r.tokens_trained * r.flops / r.D for r in keep.records())


def half(fit: dict[str, Any]) -> float:
    """The forecast's half-width at the target, in percent."""
    return 100 * (fit["forecast"]["high"] / fit["forecast"]["value"] - 1)


if __name__ == "__main__":
    sys.exit(main())
