"""The frozen quickstart, run whole with seeds that were not used while it was built: how good are its forecasts?

    python benchmarks/demo.py [--seeds 101 102 103 104 105] [--out runs/bench]

Prints every error and interval; exits 1 where the median error is above 2%, an interval wider than ±6%, or fewer than
four of five are inside. A seed that is done is used again.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

STUDY = Path(__file__).parent.parent / "studies" / "quickstart.toml"
SEEDS = [101, 102, 103, 104, 105]  # never run while the quickstart was built


def main() -> int:
    from tunnel import show
    from tunnel.sweeps import pipeline

    options = argparse.ArgumentParser()
    options.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    options.add_argument("--out", type=Path, default=Path("runs/bench"))
    given = options.parse_args()
    rows = []
    for seed in given.seeds:
        study = given.out / f"quickstart-{seed}.toml"
        study.parent.mkdir(parents=True, exist_ok=True)
        study.write_text(f"seed = {seed}\n" + STUDY.read_text())
        began = time.monotonic()
        with show.progress() as watch:
            found = pipeline.run(study, given.out / f"quickstart-{seed}", watch=watch)
        check, told = found["check"], found["recommendation"]
        width = 50 * (check["high"] - check["low"]) / check["forecast"]
        rows.append((seed, told, check, width))
        found_lr = told["settings"]["lr"]["value"]
        print(
            f"seed {seed}: law {told['law']}, lr {found_lr:.4g}, forecast {check['forecast']:.4f}, "
            f"measured {check['measured']:.4f}, error {check['error_percent']:+.2f}%, interval ±{width:.1f}%, "
            f"{'inside' if check['inside'] else 'outside'}, {time.monotonic() - began:.0f} s",
            flush=True,
        )
    error = statistics.median(abs(c["error_percent"]) for _, _, c, _ in rows)
    widest = max(w for *_, w in rows)
    inside = sum(c["inside"] for _, _, c, _ in rows)
    needed = len(rows) - len(rows) // 5
    print(f"median error {error:.2f}% (at most 2 asked)")
    print(f"widest interval ±{widest:.1f}% (at most 6 asked)")
    print(f"inside {inside} of {len(rows)} (at least {needed} asked)")
    return int(error > 2 or widest > 6 or inside < needed)


if __name__ == "__main__":
    sys.exit(main())
