"""A ladder's law rests on its own rule and its best ways; what is recommended for the target rests on that."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import TINY

from tunnel import tuned
from tunnel.answers import ladder, recommend
from tunnel.errors import UserError
from tunnel.families.synthetic import TRUTH
from tunnel.folder import store
from tunnel.folder.store import Store
from tunnel.run import RunSpec
from tunnel.study import Study
from tunnel.sweeps import sweep
from tunnel.verdicts import carry

LADDER = 'shapes = [[32, 2], [64, 4]]\nfan = [0.5, 1, 2]\nrungs = { tokens = ["50k", "100k"] }'
FULL = """shapes = [[32, 2], [48, 3], [64, 4]]
fan = [0.5, 1, 2]
widen = 0
decays = [{ decay = 0.05 }, { decay = 0.15 }]
rungs = { tokens = ["500k", "1M"] }
  [stage.space]
  rules = ["minicpm", "completep"]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Store]:
    """A study whose ladder lists rules and decays; made once, read only."""

    assert LADDER in TINY
    lr = "lr = { low = 2e-2, high = 2.4e-2 }"
    path = tmp_path_factory.mktemp("ladder") / "tiny.toml"
    path.write_text(TINY.replace(LADDER, FULL).replace("lr = { low = 1e-3, high = 1e-1 }", lr))
    asked, keep = sweep.opened(path, path.parent / "out")
    sweep.sweep(asked, keep)
    return asked, keep


def test_the_law_rests_on_its_own_rule_and_the_best_decay(folder: tuple[Study, Store]) -> None:
    asked, keep = folder
    rows = ladder.rows_used(asked, keep, keep.readings(), ladder.stage_of(asked))
    assert set(rows.rules) == {"minicpm"}
    assert len(rows) == 3 * 3 * 2
    assert rows.decay.to_numpy() == pytest.approx(0.15, abs=0.01)  # the truth's own
    fit = ladder.fitted(asked, keep)
    assert len(fit["minima"]) == 6
    for m in fit["minima"]:
        assert m["lr_low"] < m["lr"] < m["lr_high"]
        assert m["low"] < m["loss"] < m["high"]
        assert m["loss"] == pytest.approx(TRUTH.best_loss(m["N"], m["D"]), rel=0.01)
    assert fit["lr"]["low"] <= fit["lr"]["chosen"] <= fit["lr"]["high"]
    assert "horizon" not in fit  # one batch, one weight decay


def test_the_target_gets_the_ladder_s_best_way(folder: tuple[Study, Store]) -> None:
    asked, keep = folder
    told = recommend.made(asked, keep, asked.target[0], keep.readings())
    run = RunSpec.model_validate(told["run"])
    assert told["settings"]["decay"]["value"] == pytest.approx(0.15, abs=0.005)
    assert "best of 2 ways" in told["settings"]["decay"]["source"]
    assert run.trunk.rules == "minicpm"
    assert run.trunk.settings.lr == told["settings"]["lr"]["value"]
    assert "symmetric valleys" in told["settings"]["lr"]["source"]


def diverged(readings: pd.DataFrame, above: float) -> pd.DataFrame:
    """As if every lr above had diverged."""
    return readings.assign(status=np.where(readings.lr > above, "diverged", "complete"))


def test_the_lr_keeps_a_factor_from_where_it_diverges(folder: tuple[Study, Store]) -> None:
    asked, keep = folder
    readings = keep.readings()
    rows = ladder.rows_used(asked, keep, readings, ladder.stage_of(asked))
    lrs = sorted(rows.lr.unique())
    n = float(rows.N.max())
    assert recommend.safe_lr(readings, rows, n) is None  # nothing diverged
    most = recommend.safe_lr(diverged(readings, (lrs[0] + lrs[1]) / 2), rows, n)
    assert most is not None
    assert lrs[0] / 2 <= most <= lrs[1] / 2
    told = recommend.made(asked, keep, asked.target[0], diverged(readings, lrs[-1] * 0.9))
    assert told["settings"]["lr"]["value"] <= lrs[-1] / 2
    assert any(c.startswith("lr: cut from") for c in told["cautions"])


# what the verdicts do


def judged(verdict: str, axis: str = "width", b: float = -0.5) -> dict[str, Any]:
    along = {"verdict": verdict, "reason": "as measured", "penalty_high": 0.08, "law": {"a": 0.0, "b": b}}
    return {"verdict": verdict, "reason": f"over {axis}: as measured", "over": {axis: along}}


def carried(
    folder: tuple[Study, Store], judged_so: dict[str, Any], name: str = "weight_decay", lawful: tuple[str, ...] = ()
) -> dict[str, carry.Carried]:
    """The verdict on a setting tuned at 32×2 by the first stage, at a target of four times its width."""
    asked, keep = folder
    readings = keep.readings()
    tuned_on = readings[readings.stage == "calibrate"]
    told = recommend.made(asked, keep, asked.target[0], readings)
    evidence = {name: {"readings": tuned_on.fingerprint.tolist()}}
    return carry.carried({name: judged_so}, evidence, readings, RunSpec.model_validate(told["run"]), set(lawful))


def test_a_setting_that_transfers_is_kept_and_one_that_drifts_is_moved(folder: tuple[Study, Store]) -> None:
    kept = carried(folder, judged("transfers"))["weight_decay"]
    assert kept.factor == 1.0
    assert "transfers over width" in kept.evidence
    assert "no verdict over depth, D" in kept.caution
    moved = carried(folder, judged("drifts by this law"))["weight_decay"]
    assert moved.factor == pytest.approx((128 / 32) ** -0.5)
    assert "moved over width by the power -0.50" in moved.evidence


@pytest.mark.parametrize("verdict", ["does not transfer", "refused"])
def test_a_setting_that_does_not_transfer_is_refused_unless_its_law_is_fitted(
    folder: tuple[Study, Store], verdict: str
) -> None:
    with pytest.raises(UserError, match=r"width 4 times smaller.*as measured") as e:
        carried(folder, judged(verdict))
    assert e.value.key == "settings.weight_decay"
    beside = carried(folder, judged(verdict), lawful=("weight_decay",))["weight_decay"]
    assert beside.factor == 1.0
    assert "the fitted law" in beside.caution
    # along an axis on which the target is no larger it is not asked
    assert "no verdict over" in carried(folder, judged(verdict, axis="B"))["weight_decay"].caution


def test_a_kept_verdict_reaches_the_recommendation(folder: tuple[Study, Store], tmp_path: Path) -> None:
    import shutil

    asked, keep = folder
    shutil.copytree(keep.root, tmp_path / "copy")
    other = Store(tmp_path / "copy")
    store.write_json(other.path("verdict.json"), {"lr": {**judged("transfers"), "readings_hash": "x"}})
    told = recommend.made(asked, other, asked.target[0], other.readings())
    assert told["settings"]["lr"]["source"].endswith("the rule alone: transfers")


# another batch at the target


def test_lr_moves_to_the_target_s_batch_by_the_measured_power() -> None:
    table = {"batch_tokens": np.full(6, 512.0)}
    moves = {"lr": {"over": {"batch_tokens": {"value": 0.4, "low": 0.3, "high": 0.5}}}}
    assert ladder.batch_power(table, 2048, moves) == moves["lr"]["over"]["batch_tokens"]
    assert ladder.batch_power(table, 512, moves) is None
    assert ladder.batch_power(table, 2048, None) is None


@pytest.mark.slow
def test_a_study_that_varies_the_batch_moves_the_target_s_lr(study_file: Callable[..., Path], tmp_path: Path) -> None:
    """A verdict stage over batches at one shape, and a target of twice the ladder's batch, where lr* stays."""
    path = study_file(
        ('tokens = "1M"', 'tokens = "1M"\nbatch_tokens = 2048'),
        ("lr = { low = 1e-3, high = 1e-1 }", "lr = { low = 2e-2, high = 2.4e-2 }"),
        (
            LADDER,
            LADDER.replace('"50k", "100k"', '"500k", "1M"')
            + """
widen = 0
[[stage]]
name = "batch"
kind = "verdict"
after = "calibrate"
shapes = [[32, 2]]
fan = [0.25, 0.5, 1, 2, 4]
batches = [1024, 2048, 4096]
widen = 0
rungs = { tokens = ["500k"] }
""",
        ),
    )
    asked, keep = sweep.opened(path, tmp_path / "out")
    sweep.sweep(asked, keep)
    fit = ladder.fitted(asked, keep)
    power = fit["lr"]["batch_power"]
    assert power["low"] <= 0 <= power["high"]
    assert fit["horizon"]["stage"] == "batch"
    told = recommend.made(asked, keep, asked.target[0], keep.readings())
    assert "moved to the target's batch by the power" in told["settings"]["lr"]["source"]
    lr = told["settings"]["lr"]
    truth = TRUTH.best_lr(told["target"]["N"], told["target"]["tokens"])
    assert abs(math.log(lr["value"] / truth)) < 0.3  # of log lr: 0.4% of the loss
    assert "the rule alone: " in lr["source"]  # its verdict over D and B, made on the way
    assert keep.path("verdict.json").exists()


def test_a_diverged_reading_is_part_of_what_a_fit_rests_on(folder: tuple[Study, Store]) -> None:
    asked, keep = folder
    readings = keep.readings()
    lost = readings.assign(loss=readings.loss.where(readings.index > 0), status=readings.status)
    assert ladder.hash_of(asked, lost) != ladder.hash_of(asked, readings)
    assert ladder.hash_of(asked, lost) == ladder.hash_of(asked, lost.iloc[::-1])


def test_a_reading_that_two_stages_ask_for_is_in_both(tmp_path: Path) -> None:
    """Measured once, under the first; the ladder has all its shapes, also where an older folder has not noted it."""
    text = (Path(__file__).parent.parent / "studies/calibration.toml").read_text()
    before, stage = text.split("[[stage]]")[0], '[[stage]]\nname = "%s"\nkind = "ladder"\nshapes = %s\n'
    stage += 'fan = [0.5, 1, 2]\nrungs = { tokens = ["32M", "64M", "128M"] }\n'
    study_file = tmp_path / "two.toml"
    study_file.write_text(before + stage % ("first", "[[64, 4]]") + stage % ("last", "[[64, 4], [96, 6], [128, 8]]"))
    asked, keep = sweep.opened(study_file, tmp_path / "two")
    for _ in range(2):
        sweep.sweep(asked, keep)
        assert keep.readings().stage.value_counts().to_dict() == {"first": 9, "last": 18}
        found = tuned.of_stage(keep.readings(), "last")
        assert found.width.value_counts().to_dict() == {64: 9, 96: 9, 128: 9}
        assert set(ladder.fitted(asked, keep)["laws"])
        keep.path("shared.json").unlink()
