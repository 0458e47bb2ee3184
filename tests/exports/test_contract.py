"""Every first-class target in its real package: the bundle is parsed, the model built, the own scheduler stepped.

`make test-exports` makes the packages' environments and prints the table; a probe runs in each, and says what it found.
"""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
from exporting import BATCH, SEQ, a_run, recommended

from tunnel.export import export, get, names
from tunnel.run import Mixture, RunSpec

HERE = Path(__file__).parent
ENVIRONMENTS = Path(os.environ.get("TUNNEL_EXPORTS", "~/.cache/tunnel/exports")).expanduser()
FIRST = [n for n in names() if n != "json" and not getattr(get(n), "BEST_EFFORT", False)]
RUNS: dict[str, tuple[RunSpec, int]] = {
    "minicpm": (a_run(kv_heads=2), 1),
    "completep": (a_run(64, 4, rules="completep", decay_shape="linear", min_ratio=0.1, warmup=20, precision="bf16"), 2),
    "standard": (a_run(64, 2, rules="standard", decay_shape="cosine", warmup=1, decay=90), 4),
}
MIXTURES = ("hf", "megatron")  # who has a form of them
RUNS["mixture"] = (a_run(64, 4, family="moe", mixture=Mixture(experts=4, top_k=2, granularity=2)), 1)
ASKED = [(to, run) for to in FIRST for run in RUNS if run != "mixture" or to in MIXTURES]
# one target to one worker, which keeps what its probes found
CASES = [pytest.param(to, run, marks=pytest.mark.xdist_group(to), id=f"{to}-{run}") for to, run in ASKED]

pytestmark = pytest.mark.slow


def python(to: str) -> str:
    """The interpreter that has a target's package; skips where there is none."""
    if to == "hf":
        return sys.executable
    found = ENVIRONMENTS / to / "bin" / "python"
    if not found.exists():
        pytest.skip(f"no environment for {to} in {ENVIRONMENTS}: make test-exports")
    return str(found)


@lru_cache
def probed(to: str, name: str) -> tuple[Path, dict[str, Any]]:
    """The bundle, and what the real package made of it."""
    run, world = RUNS[name]
    bundle = Path(mkdtemp()) / "bundle"
    export(recommended(run), to, bundle, world_size=world, allow_lossy=True)
    path = os.pathsep.join([str(bundle), str(HERE / "probes")])
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": path}
    command = [python(to), str(HERE / "probes" / f"probe_{to}.py"), str(bundle)]
    done = subprocess.run(command, env=env, cwd=bundle.parent, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return bundle, json.loads(done.stdout.strip().splitlines()[-1])


def read(bundle: Path, name: str) -> Any:
    return json.loads((bundle / name).read_text())


def roles(bundle: Path, found: dict[str, Any]) -> list[dict[str, Any]]:
    """For each of the package's own groups, the promised one that its parameters belong to."""
    promised = read(bundle, "selfcheck.json")["groups"]
    wanted = []
    for group in found["groups"]:
        by = [next(g for g in promised if re.search(g["pattern"], n.replace("*", "0"))) for n in group["names"]]
        assert len({json.dumps({k: g[k] for k in ("lr", "weight_decay", "eps")}) for g in by}) == 1, group["names"]
        wanted.append(by[0])
    return wanted


@pytest.mark.parametrize(("to", "name"), CASES)
def test_parses(to: str, name: str) -> None:
    """The package's own parser and builders say what the recommendation says."""
    bundle, found = probed(to, name)
    (run, world), said = RUNS[name], found["parsed"]
    s, promised = run.trunk.settings, read(bundle, "selfcheck.json")
    assert said["steps"] == 100
    assert said["clip"] == s.clip
    assert said["bf16"] == (s.precision == "bf16")
    assert said.get("seq_len", SEQ) == SEQ
    together = said["sequences"] * (world // said.get("processes", world))
    assert together * SEQ == BATCH
    assert together % (said["per_device"] * world) == 0
    multipliers = {k: v for k, v in promised["multipliers"].items() if k in said}
    assert {k: pytest.approx(said[k]) for k in multipliers} == multipliers
    assert len(multipliers) > 0
    assert found["parameters"] == promised["parameters"]
    for group, wanted in zip(found["groups"], roles(bundle, found), strict=True):
        assert group["betas"] == [s.beta1, s.beta2]
        assert group["weight_decay"] == pytest.approx(wanted["weight_decay"])
        assert group["eps"] == pytest.approx(wanted["eps"])
    for tensor, std in found["stds"].items():
        wanted = next(g for g in promised["groups"] if re.search(g["pattern"], tensor.replace("*", "0")))
        assert std == pytest.approx(wanted["init_std"], rel=0.05, abs=1e-12), tensor


@pytest.mark.parametrize(("to", "name"), CASES)
def test_schedule(to: str, name: str) -> None:
    """The package's own scheduler, stepped: in EXPORT.md's tolerance, and as FIDELITY.json and selfcheck.json say."""
    bundle, found = probed(to, name)
    with open(bundle / "schedule.csv", newline="") as f:
        ours = np.array([float(row["multiplier"]) for row in csv.DictReader(f)])
    peaks = np.array([g["lr"] for g in roles(bundle, found)])
    difference = np.array(found["rows"]) / peaks - ours[:, None]
    warmup = RUNS[name][0].trunk.settings.warmup // BATCH
    assert np.abs(difference).max() <= (1 / warmup if warmup > 1 else 0) + 1e-9
    assert np.abs(difference.sum(axis=0)).max() <= 1 + 1e-9
    judged = read(bundle, "FIDELITY.json")["schedule"]
    assert np.abs(difference).max() == pytest.approx(judged["max_difference"], abs=1e-9)
    assert difference.sum(axis=0) == pytest.approx(judged["sum_difference"], abs=1e-7)


@pytest.mark.parametrize(("to", "name"), CASES)
def test_selfcheck(to: str, name: str) -> None:
    """The script that the job runs finds the promised groups and multipliers at steps 0 and 10."""
    assert probed(to, name)[1]["selfcheck"] == {"0": [], "10": []}
