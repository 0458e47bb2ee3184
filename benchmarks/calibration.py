"""The synthetic study end to end, without Ray: what was put in against what the tunnel finds.

    python benchmarks/calibration.py

Exits 1 where lr is off by more than 15%, an exponent by more than 0.02, the target's loss by more than 0.5%, or the
whole path takes 15 s or more.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

STUDY = Path(__file__).parent.parent / "studies" / "calibration.toml"


def main() -> int:
    began = time.perf_counter()
    from tunnel.families.synthetic import TRUTH
    from tunnel.sweeps import pipeline

    with tempfile.TemporaryDirectory() as folder:
        found = pipeline.run(STUDY, Path(folder) / "calibration")
    seconds = time.perf_counter() - began
    told = found["recommendation"]
    n, d = told["target"]["N"], told["target"]["tokens"]
    law = found["fit"]["laws"]["chinchilla"]["params"]
    rows = [
        ("lr at the target", told["settings"]["lr"]["value"], TRUTH.best_lr(n, d), 0.15, "relative"),
        ("alpha", law["alpha"], TRUTH.alpha, 0.02, "absolute"),
        ("beta", law["beta"], TRUTH.beta, 0.02, "absolute"),
        ("loss at the target", told["forecast"], TRUTH.best_loss(n, d), 0.005, "relative"),
    ]
    failed = False
    for name, value, truth, allowed, kind in rows:
        off = abs(value - truth) / (truth if kind == "relative" else 1)
        failed |= off > allowed
        print(f"{name:20s} found {value:.5g}  truth {truth:.5g}  off {off:.4f} ({kind}, at most {allowed})")
    c = found["check"]
    print(f"target measured {c['measured']:.4f}, error {c['error_percent']:+.3f}%, inside the interval: {c['inside']}")
    print(f"{seconds:.1f} s from import to check (under 15 asked)")
    return int(failed or seconds >= 15)


if __name__ == "__main__":
    sys.exit(main())
