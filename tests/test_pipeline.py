"""One study file in, a checked forecast out: the calibration body through the whole path, without Ray."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tunnel.answers import forecasts, ladder, recommend
from tunnel.errors import UserError
from tunnel.families.synthetic import TRUTH
from tunnel.folder import store
from tunnel.sweeps import pipeline, sweep

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
