"""Exponents and optima that were put into a joint surface are found again, signs and all; edges are said."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from tunnel import cli
from tunnel.answers import ladder, recommend
from tunnel.errors import UserError
from tunnel.families.synthetic import TRUTH
from tunnel.study import Stage
from tunnel.sweeps import sweep
from tunnel.valleys import joint
from tunnel.verdicts import horizon

LRS = [0.012 * math.exp(v) for v in (-1.4, -0.7, 0, 0.7, 1.4)]
RUNGS = (1e5, 2e5, 4e5, 8e5)
STAGE = Stage(name="joint", kind="batch", shapes=((32, 2),), batches=(512, 1024, 2048), rungs={"tokens": RUNGS})


def readings(
    seed: int = 0,
    noise: float = 0.002,
    batches: tuple[int, ...] = (512, 1024, 2048),
    decays: tuple[float, ...] = (0.03, 0.1, 0.3),
    lrs: list[float] = LRS,
    best_batch: float = 1024,
    batch_bend: float = 0.01,
) -> pd.DataFrame:
    """A grid whose truth is lr* ~ D^-0.25 B^0.5 λ^-0.2, λ* ~ D^-0.3 B^0.2, B* ~ D^0.4; forks share a trunk's noise.

    So at the best λ lr* ~ D^-0.19, and τ* = B/(lr*·λ*·D) ~ D^-0.51.
    """
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for i, (lr, b, w) in enumerate((x, b, w) for b in batches for w in decays for x in lrs):
        trunk = rng.normal()
        for rung in RUNGS:
            d = round(rung / b) * b
            ld, lb, lw = math.log(d / 3e5), math.log(b / 1024), math.log(w / 0.1) if w else 0.0
            off = math.log(lr / 0.012) + 0.25 * ld - 0.5 * lb + 0.2 * lw
            log = 0.5 - 0.1 * ld + 0.04 * off**2 + (0.015 * (lw + 0.3 * ld - 0.2 * lb) ** 2 if w else 0.03)
            log += batch_bend * (math.log(b / best_batch) - 0.4 * ld) ** 2
            log += noise * (0.8 * trunk + 0.6 * rng.normal())
            rows.append({"D": d, "lr": lr, "batch_tokens": b, "weight_decay": w, "loss": math.exp(log), "run": f"r{i}"})
    same = {"N": 23712, "width": 32, "depth": 2, "stage": "joint", "status": "complete", "rules": "minicpm"}
    ways = {
        "decay": 0.2,
        "decay_shape": "1-sqrt",
        "half_life": 1 / 5.5,
        "min_ratio": 0.0,
        "beta2": 0.95,
        "warmup": 4096,
    }
    return pd.DataFrame(rows).assign(**same, **ways, fingerprint=lambda f: [f"f{i}" for i in range(len(f))])


def test_powers_are_found_exactly_where_there_is_no_noise() -> None:
    frame = readings(noise=0.0)
    table = {k: frame[k].to_numpy(float) for k in ("N", "D", "loss", *joint.SETTINGS)} | {
        "run": frame.run.to_numpy(str)
    }
    found = joint.fit(joint.rows_of(table))
    assert found is not None
    expected: list[tuple[list[str], dict[str, dict[str, float]]]] = [
        (["lr"], {"lr": {"D": -0.25, "batch_tokens": 0.5, "weight_decay": -0.2}}),
        (
            ["lr", "weight_decay"],
            {"lr": {"D": -0.19, "batch_tokens": 0.46}, "weight_decay": {"D": -0.3, "batch_tokens": 0.2}},
        ),
    ]
    for free, powers in expected:
        assert found.exponents(free) == {k: pytest.approx(v, abs=2e-3) for k, v in powers.items()}
    every = found.exponents(joint.SETTINGS)
    assert every is not None
    assert every["batch_tokens"]["D"] == pytest.approx(0.4, abs=2e-3)
    best = found.best(["lr"], {"D": math.log(3e5), "batch_tokens": math.log(1024), "weight_decay": math.log(0.1)})
    assert best is not None
    assert best["lr"] == pytest.approx(math.log(0.012), abs=0.01)


def test_signs_and_tau_with_noise() -> None:
    found = horizon.fitted(STAGE, readings())
    assert found["status"] == "converged"
    truth = {"D": -0.25, "batch_tokens": 0.5, "weight_decay": -0.2}
    assert set(found["lr"]["over"]) == set(truth)
    for k, v in truth.items():
        known = found["lr"]["over"][k]
        assert known["low"] - 0.02 <= v <= known["high"] + 0.02, k
        assert known["high"] - known["low"] < 0.25
    assert any(line.startswith("lr* falls with D") for line in found["words"])
    assert any(line.startswith("lr* rises with B") for line in found["words"])
    assert found["tau"]["D_over_N"]["value"] == pytest.approx(-0.51, abs=0.08)
    assert found["tau"]["reported"]["exponent"] == -0.53
    assert found["batch"]["over"]["D"]["value"] == pytest.approx(0.4, abs=0.15)
    # the other form: L falls by 0.1 per e-fold of D, so bs ~ D^0.4 is L^-4
    assert found["batch"]["by_loss"]["b"]["value"] == pytest.approx(4.0, rel=0.4)
    row = max(found["best"], key=lambda r: r["D"])
    off = math.log(row["batch_tokens"] / 1024), math.log(row["D"] / 3e5)
    assert row["weight_decay"]["value"] == pytest.approx(0.1 * math.exp(0.2 * off[0] - 0.3 * off[1]), rel=0.1)
    assert row["tau"]["value"] == pytest.approx(
        row["batch_tokens"] / (row["lr"]["value"] * row["weight_decay"]["value"] * row["D"])
    )
    json.dumps(found, allow_nan=False)


@pytest.mark.slow
def test_intervals_hold_nine_times_in_ten() -> None:
    inside = 0
    for seed in range(8):
        over = horizon.fitted(STAGE, readings(seed, decays=(0.1,)))["lr"]["over"]
        inside += sum(over[k]["low"] <= v <= over[k]["high"] for k, v in (("D", -0.25), ("batch_tokens", 0.5)))
    assert inside >= 11  # of 16: a 90% interval misses six times once in a hundred


@pytest.mark.parametrize(
    ("changed", "part", "status"),
    [
        ({"lrs": [lr / 30 for lr in LRS]}, "lr", "edge"),
        ({"best_batch": 64.0}, "batch", "edge"),
        ({"batch_bend": -0.01}, "batch", "no curvature"),
        ({"decays": (0.0001, 0.0003, 0.001)}, "weight_decay", "edge"),
    ],
)
def test_what_the_readings_do_not_identify_is_said(changed: dict[str, Any], part: str, status: str) -> None:
    found = horizon.fitted(STAGE, readings(**changed))
    assert found[part]["status"] == status
    assert any(found[part]["reason"] in line for line in found["words"])
    assert found["lr"]["over"]["D"]["value"] == pytest.approx(-0.25, abs=0.15)


def test_two_values_show_a_slope_and_no_curvature() -> None:
    found = horizon.fitted(STAGE, readings(batches=(512, 2048), decays=(0.1,)))
    assert found["batch"] is None
    assert found["tau"] is None
    assert found["lr"]["over"]["batch_tokens"]["value"] == pytest.approx(0.5, abs=0.1)


def test_no_weight_decay_is_compared_and_left_out_of_the_logarithms() -> None:
    found = horizon.fitted(STAGE, readings(decays=(0.0, 0.03, 0.1, 0.3)))
    assert found["zero_decay_percent"] == pytest.approx(3.0, abs=0.7)
    assert found["weight_decay"]["over"]["D"]["value"] == pytest.approx(-0.3, abs=0.15)


def test_few_runs_are_too_few() -> None:
    frame = readings(lrs=LRS[:3], batches=(512, 1024), decays=(0.1,))
    found = horizon.fitted(STAGE, frame[frame.run != "r0"])
    assert (found["status"], found["words"]) == ("too few points", [])
    assert found["reason"]


# through a study


def test_a_study_without_a_ladder_fits_its_horizon(study_file: Callable[..., Path], tmp_path: Path) -> None:
    """The calibration body's lr* falls with D by its power, and does not move with the batch."""
    path = study_file(
        (
            'kind = "ladder"\nafter = "calibrate"\nshapes = [[32, 2], [64, 4]]\nfan = [0.5, 1, 2]\n',
            'kind = "batch"\nafter = "calibrate"\nshapes = [[32, 2]]\nfan = [0.25, 0.5, 1, 2, 4]\n'
            "batches = [1024, 2048, 4096]\ndecays = [{ decay = 0.1 }, { decay = 0.2 }]\nwiden = 0\n",
        ),
        ('["50k", "100k"]', '["100k", "1.6M"]'),
        ("lr = { low = 1e-3, high = 1e-1 }", "lr = { low = 1.5e-2, high = 2.5e-2 }"),
    )
    asked, keep = sweep.opened(path, tmp_path / "out")
    sweep.sweep(asked, keep)
    found = ladder.fitted(asked, keep)
    assert "minima" not in found
    assert found["stage"] == "ladder"
    over = found["horizon"]["lr"]["over"]
    assert over["D"]["value"] == pytest.approx(TRUTH.lr_D, abs=0.06)
    assert over["D"]["high"] < 0
    assert over["batch_tokens"]["value"] == pytest.approx(0.0, abs=0.08)
    assert ladder.fitted(asked, keep) == found
    said = CliRunner().invoke(cli.app, ["fit", str(keep.root)])
    assert said.exit_code == 0
    with pytest.raises(UserError, match="no stage of kind ladder"):
        recommend.recommend(asked, keep)
