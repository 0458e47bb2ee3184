"""A trunk that begins with another run's weights: a stable trunk's, or a finished model's; bit for bit, as all else."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import BATCH, run_spec, trunk_spec
from test_rerun import STUDY, grown, killed, known, trial

from tunnel import families, study
from tunnel.families import State
from tunnel.folder import checkpoint
from tunnel.folder.store import Store
from tunnel.run import RunSpec, TrunkSpec
from tunnel.study import Data, Study
from tunnel.sweeps import rerun
from tunnel.training import data
from tunnel.training.train import Trained

STARTS = {"stable": (8, 0), "finished": (6, 3)}  # steps of the trunk, and of the decay


@pytest.fixture
def asked(documents: Data) -> Study:
    return study.parse(STUDY.format(paths=documents.paths[0]), "study.toml")


@pytest.fixture(params=STARTS)
def start(request: pytest.FixtureRequest, corpus: data.Corpus) -> RunSpec:
    return run_spec(known(trunk_spec(), corpus), *STARTS[request.param])


def beginning(start: RunSpec, **changed: Any) -> TrunkSpec:
    """A trunk of other settings that begins with it."""
    return start.trunk.replaced(start=start, settings=start.trunk.settings.replaced(lr=0.02, dropout=0.1, **changed))


def plainly(run: RunSpec, corpus: data.Corpus) -> tuple[State, float]:
    """The run by the plain loop: no store, no fork."""
    others = {use: plainly(other, corpus)[0] for use, other in run.trunk.needs.items()}
    model = families.load("gpt").grown(run.trunk, corpus)
    model.begin(others)
    while model.tokens < run.tokens:
        assert model.step(run.multiplier(model.tokens))
    arrays, meta = model.state()
    return ({k: v.copy() for k, v in arrays.items()}, meta), model.evaluate()


def test_it_goes_on_from_a_stable_trunk_and_begins_anew_after_a_decay(corpus: data.Corpus) -> None:
    for steps, tokens in (((8, 0), 8 * BATCH), ((6, 3), 0)):
        trunk = beginning(run_spec(trunk_spec(), *steps))
        assert trunk.start is not None
        state = plainly(trunk.start, corpus)[0]
        model = families.load("gpt").grown(trunk, corpus)
        model.begin({"start": state})
        assert isinstance(model, Trained)
        assert (model.tokens, model.steps, trunk.begun) == (tokens, 0, tokens)
        assert all(
            np.array_equal(p.detach().numpy(), state[0][f"model.{k}"]) for k, p in model.model.named_parameters()
        )
        assert not model.optimizer.state  # its moments are its own
        ahead = corpus.sequences(trunk.seed, tokens // 32, BATCH // 32, 32)
        assert np.array_equal(model.batch().numpy(), ahead)  # the data's order goes on


def test_forks_of_it_equal_the_plain_loop(start: RunSpec, corpus: data.Corpus, tmp_path: Path) -> None:
    trunk, keep = beginning(start), Store(tmp_path)
    runs = [run_spec(trunk, 14, 4), run_spec(trunk, 18, 5, "linear")]
    records = grown(trial(trunk, *runs), keep, corpus)
    for run, record in zip(runs, records, strict=True):
        (arrays, meta), loss = plainly(run, corpus)
        assert record.loss == loss
        assert record.final == checkpoint.digests(arrays, meta)
    own = [14 + 4 - trunk.begun // BATCH, 4 + 5]
    assert [r.tokens_trained // BATCH for r in records] == own
    assert keep.kept(start.state) == [start.tokens]


def test_what_it_begins_with_is_trained_once_and_again_where_it_is_gone(
    start: RunSpec, corpus: data.Corpus, tmp_path: Path
) -> None:
    keep, found = Store(tmp_path), []
    for clip, gone in ((1.0, False), (0.5, False), (0.25, True)):
        if gone:
            shutil.rmtree(keep.path("trunks"))
        before = [p.stat().st_mtime_ns for p in keep.checkpoints(start.state)]
        trunk = beginning(start, clip=clip)
        found += grown(trial(trunk, run_spec(trunk, 12, 2)), keep, corpus)
        after = [p.stat().st_mtime_ns for p in keep.checkpoints(start.state)]
        assert len(after) == 1
        assert (before == after) == (clip == 0.5)
    assert [r.loss for r in found] == [plainly(r.run, corpus)[1] for r in found]
    assert len({r.loss for r in found}) == 3


@pytest.mark.slow
def test_after_kills_in_the_start_and_in_its_own_trunk_it_is_the_same(
    start: RunSpec, corpus: data.Corpus, tmp_path: Path
) -> None:
    trunk, keep = beginning(start), Store(tmp_path)
    asked_for = trial(trunk, run_spec(trunk, 20, 3))
    killed(asked_for, keep, corpus, 4)
    assert keep.kept(trunk.fingerprint) == []
    killed(asked_for, keep, corpus, 10)
    assert keep.kept(start.state) == [start.tokens]
    assert keep.kept(trunk.fingerprint) == [trunk.begun + 10 * BATCH]
    [record] = grown(asked_for, keep, corpus)
    assert record.loss == plainly(record.run, corpus)[1]
    assert record.tokens_trained == 23 * BATCH - trunk.begun


def test_a_rerun_trains_what_it_begins_with_too(
    start: RunSpec, asked: Study, corpus: data.Corpus, tmp_path: Path
) -> None:
    trunk, keep = beginning(start), Store(tmp_path)
    [record] = grown(trial(trunk, run_spec(trunk, 12, 3)), keep, corpus)
    found = rerun.rerun(asked, keep, record.fingerprint_of)
    assert found["equal"], found["first_difference"]
    assert "trunk" in found["compared"]


def test_where_the_start_diverges_so_does_all_that_begins_with_it(
    asked: Study, corpus: data.Corpus, tmp_path: Path
) -> None:
    lost = run_spec(known(trunk_spec(lr=1e6), corpus), 12, 0)
    trunk, keep = beginning(lost), Store(tmp_path)
    [record] = grown(trial(trunk, run_spec(trunk, 16, 3)), keep, corpus)
    assert (record.status, record.loss, record.tokens_trained) == ("diverged", None, 0)
    assert rerun.rerun(asked, keep, record.fingerprint_of)["equal"]


def test_the_curve_begins_at_its_own_loss(corpus: data.Corpus, tmp_path: Path) -> None:
    trunk, keep = beginning(run_spec(trunk_spec(), 30, 0)), Store(tmp_path)
    [record] = grown(trial(trunk, run_spec(trunk, 50, 2)), keep, corpus)
    curve = keep.curve(trunk.fingerprint)
    assert curve is not None
    assert list(curve.tokens // BATCH) == [40, 50]
    assert curve.loss.iloc[0] == pytest.approx(curve.loss.iloc[1], rel=0.3)
    assert record.stability is not None
    assert record.stability.spikes == 0
