"""A finished model off a running trunk: what the same run from scratch is, and the trunk untouched."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tunnel.answers import recommend
from tunnel.errors import UserError
from tunnel.folder.store import Store
from tunnel.run import Record, RunSpec, Trial
from tunnel.sweeps import early, pipeline, sweep
from tunnel.training import forks

STUDY = Path(__file__).parent.parent / "studies" / "calibration.toml"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study whose target was stopped half way down its trunk."""
    root = tmp_path_factory.mktemp("runs") / "calibration"
    found = pipeline.run(STUDY, root)
    keep, run = Store(root), RunSpec.model_validate(found["recommendation"]["run"])
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
        for e in forks.grow(Trial(stage="s", number=0, runs=(told.run,)), Store(tmp_path), None)
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
