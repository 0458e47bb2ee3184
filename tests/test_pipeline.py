"""One study file in, a checked forecast out: the calibration body through the whole path, without Ray."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tunnel.answers import forecasts, ladder, recommend
from tunnel.errors import UserError
from tunnel.families.synthetic import TRUTH
from tunnel.folder import store
from tunnel.run import Record, RunSpec, Trial
from tunnel.sweeps import early, pipeline, sweep
from tunnel.training import forks

STUDY = Path(__file__).parent.parent / "studies" / "calibration.toml"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return pipeline.run(STUDY, tmp_path_factory.mktemp("runs") / "calibration")


def test_the_truth_is_recovered(found: dict[str, Any]) -> None:
    told = found["recommendation"]
    n, d = told["target"]["N"], told["target"]["tokens"]
    law = found["fit"]["laws"]["chinchilla"]["params"]
    assert told["settings"]["lr"]["value"] == pytest.approx(TRUTH.best_lr(n, d), rel=0.15)
    assert told["settings"]["decay"]["value"] == pytest.approx(TRUTH.decay, rel=0.2)
    assert law["alpha"] == pytest.approx(TRUTH.alpha, abs=0.02)
    assert law["beta"] == pytest.approx(TRUTH.beta, abs=0.02)
    assert told["forecast"] == pytest.approx(TRUTH.best_loss(n, d), rel=0.005)
    assert told["low"] < told["forecast"] < told["high"]


def test_the_forecast_precedes_the_target_and_is_checked(found: dict[str, Any]) -> None:
    check = found["check"]
    assert check["registered"] < check["started"]
    assert check["error_percent"] == pytest.approx(100 * (check["forecast"] / check["measured"] - 1))
    assert check["compute_ratio"] > 4


def test_forks_save_tokens(found: dict[str, Any]) -> None:
    tokens = found["status"]["tokens"]
    assert 0 < tokens["trained"] < tokens["from_scratch"]


def test_recommend_is_stored_and_nothing_is_registered_after_the_start(found: dict[str, Any]) -> None:
    asked, keep = sweep.frozen(Path(found["folder"]))
    before = keep.path("forecasts.jsonl").read_text()
    assert recommend.recommend(asked, keep) == found["recommendation"]
    keep.path("recommendation.json").write_text(json.dumps({**found["recommendation"], "readings_hash": "other"}))
    recommend.recommend(asked, keep)
    assert keep.path("forecasts.jsonl").read_text() == before
    store.write_json(keep.path("recommendation.json"), found["recommendation"])


def test_the_targets_reading_never_enters_the_fit(found: dict[str, Any]) -> None:
    asked, keep = sweep.frozen(Path(found["folder"]))
    readings = keep.readings()
    assert readings.stage.str.startswith("target:").sum() == 1
    assert ladder.hash_of(asked, readings) == found["recommendation"]["readings_hash"]
    assert max(m["N"] for m in found["fit"]["minima"]) < found["recommendation"]["target"]["N"]


def test_a_forecast_that_was_edited_is_found(found: dict[str, Any], tmp_path: Path) -> None:
    asked, keep = sweep.frozen(Path(found["folder"]))
    path = keep.path("forecasts.jsonl")
    first = next(e for e in store.chain(path) if forecasts.kind_of(e) == "target")
    entry = {k: v for k, v in first.items() if k not in ("registered", "git", "previous", "hash")}
    other = store.Store(tmp_path)
    forecasts.register(other, entry)
    forecasts.register(other, {**entry, "readings_hash": "x"})
    text = other.path("forecasts.jsonl").read_text()
    other.path("forecasts.jsonl").write_text(text.replace(f'"target": "{asked.target[0].name}"', '"target": "else"', 1))
    with pytest.raises(UserError, match="hash chain"):
        store.chain(other.path("forecasts.jsonl"))


# a finished model off a running trunk: what the same run from scratch is, and the trunk untouched


@pytest.fixture
def folder(found: dict[str, Any], tmp_path: Path) -> Path:
    """The study, its target stopped half way down its trunk."""
    root = tmp_path / "calibration"
    shutil.copytree(found["folder"], root)
    keep, run = store.Store(root), RunSpec.model_validate(found["recommendation"]["run"])
    keep.path("records", f"{run.fingerprint}.json").unlink()
    shutil.rmtree(keep.path("trunks", run.trunk.fingerprint))
    batch = run.trunk.settings.batch_tokens
    half = run.replaced(decay_start=run.decay_start // batch // 2 * batch)
    list(forks.grow(Trial(stage="other", number=0, runs=(half,)), keep, None))
    keep.path("records", f"{half.fingerprint}.json").unlink()
    return root


def test_it_is_the_same_run_from_scratch_and_leaves_the_trunk(folder: Path, tmp_path: Path) -> None:
    asked, keep = sweep.frozen(folder)
    before = {p: p.stat().st_mtime_ns for p in keep.path("trunks").rglob("*") if p.is_file()}
    told = Record.model_validate(early.decay_now(asked, keep))
    assert {p: p.stat().st_mtime_ns for p in keep.path("trunks").rglob("*") if p.is_file()} == before
    assert told.stage.endswith(":early")
    (scratch,) = (
        e
        for e in forks.grow(Trial(stage="s", number=0, runs=(told.run,)), store.Store(tmp_path / "scratch"), None)
        if isinstance(e, Record)
    )
    assert (told.loss, told.D, told.final) == (scratch.loss, scratch.D, scratch.final)
    assert told.tokens_trained == told.run.decay_tokens
    whole = RunSpec.model_validate(recommend.stored(asked, keep)[1]["run"])
    assert told.run.decay_tokens / told.D == pytest.approx(whole.decay_tokens / whole.tokens, rel=0.02)
    assert keep.record(told.fingerprint_of) == told
    assert not any(keep.path("early").iterdir())
    assert early.decay_now(asked, keep) == told.model_dump(mode="json")  # asked again, it is there


def test_its_reading_enters_no_fit(folder: Path) -> None:
    asked, keep = sweep.frozen(folder)
    early.decay_now(asked, keep)
    readings = keep.readings()
    assert readings[readings.stage.str.endswith(":early")].stage.str.startswith("target:").all()


def test_without_a_checkpoint_it_says_so(folder: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare)
    shutil.rmtree(bare / "trunks")
    with pytest.raises(UserError, match="no checkpoint"):
        early.decay_now(*sweep.frozen(bare))
