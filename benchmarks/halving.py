"""What successive halving over rungs saves, and what it costs: a search with and without it, on the synthetic family.

    python benchmarks/halving.py [--seeds 0 1 2 3 4] [--eta 2]

Prints, by seed, the FLOPs of both and the relative loss that each one's chosen lr gives away against the known optimum;
last the ratio of FLOPs. Exits 1 where it is above 0.7, or the choice is worse by more than one reading's noise.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import tempfile
from pathlib import Path

STUDY = """
question = "Which lr, with trials stopped at rungs or not?"
family = "synthetic"
seed = {seed}
[model]
head_dim = 16
base_width = 64
base_depth = 4
seq_len = 128
[train]
batch_tokens = 65_536
[resources]
backend = "inline"
[[target]]
name = "big"
width = 512
depth = 32
tokens = "64M"
[[stage]]
name = "calibrate"
kind = "search"
rungs = {{ tokens = ["8M", "16M", "32M", "64M"] }}
{halving}
  [stage.space]
  width = 64
  depth = 4
  lr = {{ low = 1e-3, high = 2e-1, log = true }}
  [stage.budget]
  trials = 24
  [stage.sampler]
  name = "sobol"
"""
MOST = 0.7  # of the FLOPs


def main() -> int:
    options = argparse.ArgumentParser()
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    options.add_argument("--eta", type=int, default=2)
    given = options.parse_args()
    from tunnel.families.synthetic import TRUTH

    flops: list[list[float]] = [[], []]
    regret: list[list[float]] = [[], []]
    for seed in given.seeds:
        for i, halving in enumerate(("", f"halving = {given.eta}")):
            with tempfile.TemporaryDirectory() as folder:
                spent, lr, n, d = swept(Path(folder), STUDY.format(seed=seed, halving=halving))
            flops[i].append(spent)
            regret[i].append(TRUTH.h * math.log(lr / TRUTH.best_lr(n, d)) ** 2 / TRUTH.best_loss(n, d))
            print(f"seed {seed}, {halving or 'all to the end'}: {spent:.3g} FLOPs, lr {lr:.4g} (best {best(n, d):.4g})")
    full, halved = (statistics.mean(r) for r in regret)
    ratio = sum(flops[1]) / sum(flops[0])
    worse = halved - full > TRUTH.noise
    print(f"given away by the choice: {100 * full:.3f}% without, {100 * halved:.3f}% with halving")
    print(f"FLOPs with halving / without: {ratio:.2f} (at most {MOST} asked, at equal choice)")
    return int(ratio > MOST or worse)


def best(n: float, d: float) -> float:
    from tunnel.families.synthetic import TRUTH

    return TRUTH.best_lr(n, d)


def swept(folder: Path, text: str) -> tuple[float, float, float, float]:
    """FLOPs spent, the chosen lr, and the N and D that it was chosen for."""
    from tunnel import tuned
    from tunnel.sweeps import sweep

    path = folder / "search.toml"
    path.write_text(text)
    asked, keep = sweep.opened(path, folder / "out")
    found = sweep.sweep(asked, keep)
    readings = keep.readings()
    chosen = tuned.best(asked.stage[0], readings)["lr"].value
    return found["flops"], float(chosen), float(readings.N.iloc[0]), float(readings.D.max())


if __name__ == "__main__":
    sys.exit(main())
