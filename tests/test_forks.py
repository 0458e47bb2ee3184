"""A fork equals the same run from scratch, bit for bit: whatever was killed, damaged or accumulated in between."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import BATCH, SEQ_LEN, run_spec, trunk_spec

from tunnel.errors import Stopped
from tunnel.families import gpt
from tunnel.folder import checkpoint
from tunnel.folder.store import Store
from tunnel.run import Record, RunSpec, Trial
from tunnel.schedule import SHAPES
from tunnel.study import Data
from tunnel.training import data, forks

State = dict[str, np.ndarray]


def from_scratch(run: RunSpec, corpus: data.Corpus) -> tuple[State, float]:
    """The run by the plain loop: no store, no fork."""
    model: Any = gpt.grown(run.trunk, corpus)
    while model.tokens < run.tokens:
        assert model.step(run.multiplier(model.tokens))
    return model.state()[0], model.evaluate()


def drained(steps: Generator[Any, Any, Any]) -> Any:
    steps = forks.alone(steps)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def forked(trial: Trial, keep: Store, corpus: data.Corpus) -> list[tuple[State, float]]:
    """Every run of the trial as a fork: what `forks.grow` does, with the models' states kept."""
    work, found = forks.Work(trial, keep, corpus), []
    for run in trial.runs:
        drained(work.trunk(run.decay_start))
        loss = drained(work.decay(run))
        assert work.grown is not None
        found.append(({k: v.copy() for k, v in work.grown.state()[0].items()}, loss))  # the next fork reuses the model
    return found


def measured(trial: Trial, keep: Store, corpus: data.Corpus) -> list[Record]:
    return [e for e in forks.grow(trial, keep, corpus) if isinstance(e, Record)]


def assert_same(a: State, b: State) -> None:
    assert a.keys() == b.keys()
    assert {"rng", "smoothed"} < a.keys()
    assert any(k.startswith("adam.exp_avg_sq.") for k in a)
    for k in a:
        assert a[k].tobytes() == b[k].tobytes(), k


ACCUMULATED = trunk_spec(micro_batch_tokens=2 * SEQ_LEN, kv_heads=1)
EVERY_SHAPE = Trial(
    stage="s",
    number=0,
    runs=(
        *(run_spec(ACCUMULATED, 6, 3, shape) for shape in SHAPES),
        run_spec(ACCUMULATED, 12, 4),
        run_spec(ACCUMULATED, 12, 4, "linear", min_ratio=0.1),
        run_spec(ACCUMULATED, 9, 13),
    ),
)
COSINE = Trial(stage="s", number=0, runs=tuple(run_spec(ACCUMULATED, 4, n, "cosine") for n in (6, 10)))


@pytest.mark.parametrize("trial", [EVERY_SHAPE, COSINE], ids=["wsd", "cosine baseline"])
def test_forks_equal_runs_from_scratch(tmp_path: Path, corpus: data.Corpus, trial: Trial) -> None:
    for run, (state, loss) in zip(trial.runs, forked(trial, Store(tmp_path), corpus), strict=True):
        scratch, scratch_loss = from_scratch(run, corpus)
        assert_same(state, scratch)
        assert loss == scratch_loss


def test_records_say_what_was_trained(tmp_path: Path, corpus: data.Corpus) -> None:
    trunk = trunk_spec()
    trial = Trial(stage="ladder", number=7, runs=(run_spec(trunk, 8, 2), run_spec(trunk, 16, 4)))
    events = list(forks.grow(trial, Store(tmp_path), corpus))
    records = [e for e in events if isinstance(e, Record)]
    assert [r.run for r in records] == list(trial.runs)
    assert [r.tokens_trained // BATCH for r in records] == [8 + 2, 8 + 4]
    assert sum(r.tokens_trained for r in records) == trial.trained
    n, bytes_per_token = gpt.count(trunk.shape, trunk.body), corpus.bytes_per_token
    for r in records:
        assert (r.stage, r.trial, r.status, r.N, r.D) == ("ladder", 7, "complete", n, r.run.tokens)
        assert r.C == 6 * n * r.D < r.flops
        assert r.loss is not None
        assert r.bpb == pytest.approx(r.loss / np.log(2) / bytes_per_token)
        assert r.tau == pytest.approx(BATCH / (0.01 * 0.01 * r.D))
    kept = [int(p.name) for p in (tmp_path / "trunks" / trunk.fingerprint).iterdir()]
    assert sorted(kept) == [8 * BATCH, 16 * BATCH]  # the fork points, and nothing else


def test_what_is_recorded_is_not_trained_again(tmp_path: Path, corpus: data.Corpus) -> None:
    trunk, keep = trunk_spec(), Store(tmp_path)
    one, two = run_spec(trunk, 8, 2), run_spec(trunk, 16, 4)
    [first] = measured(Trial(stage="s", number=0, runs=(one,)), keep, corpus)
    again, second = measured(Trial(stage="s", number=1, runs=(one, two)), keep, corpus)
    assert again == first
    assert second.tokens_trained == (16 - 8 + 4) * BATCH  # an extension goes on from the stable checkpoint
    assert second.loss == from_scratch(two, corpus)[1]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "all gone"])
def test_a_damaged_checkpoint_changes_nothing(tmp_path: Path, corpus: data.Corpus, damage: str) -> None:
    trunk, keep = trunk_spec(), Store(tmp_path)
    short, long = run_spec(trunk, 6, 2), run_spec(trunk, 12, 3)
    measured(Trial(stage="s", number=0, runs=(short, run_spec(trunk, 10, 2))), keep, corpus)
    for tokens in (6, 10) if damage == "all gone" else (10,):
        path = keep.checkpoint(trunk.fingerprint, tokens * BATCH) / "state.safetensors"
        raw = bytearray(path.read_bytes())
        raw[len(raw) // 2] ^= 1
        path.write_bytes(raw[: len(raw) // 2] if damage == "truncated" else raw)
    [record] = measured(Trial(stage="s", number=1, runs=(long,)), keep, corpus)
    assert record.loss == from_scratch(long, corpus)[1]


def test_a_damaged_fork_point_in_the_middle_of_a_trial(tmp_path: Path, corpus: data.Corpus) -> None:
    """Two forks off one point, which is damaged between them: the trunk is trained again from the point before."""
    trunk, keep = trunk_spec(), Store(tmp_path)
    trial = Trial(stage="s", number=0, runs=(run_spec(trunk, 6, 2), run_spec(trunk, 10, 2), run_spec(trunk, 10, 4)))
    events = forks.grow(trial, keep, corpus)
    losses = []
    for event in events:
        if isinstance(event, Record):
            losses.append(event.loss)
            if len(losses) == 2:
                (keep.checkpoint(trunk.fingerprint, 10 * BATCH) / "meta.json").write_text("{}")
    assert losses == [from_scratch(run, corpus)[1] for run in trial.runs]


def test_dropout_forks_exactly_too(tmp_path: Path, corpus: data.Corpus) -> None:
    """Its draws come from the RNG that the trunk's state holds."""
    trunk = trunk_spec(micro_batch_tokens=2 * SEQ_LEN, dropout=0.2)
    trial = Trial(stage="s", number=0, runs=(run_spec(trunk, 6, 3), run_spec(trunk, 6, 3, "linear")))
    for run, (state, loss) in zip(trial.runs, forked(trial, Store(tmp_path), corpus), strict=True):
        scratch, scratch_loss = from_scratch(run, corpus)
        assert_same(state, scratch)
        assert loss == scratch_loss
    assert loss != from_scratch(run.replaced(trunk=trunk_spec(micro_batch_tokens=2 * SEQ_LEN)), corpus)[1]


def test_a_record_tells_what_the_model_was(tmp_path: Path, corpus: data.Corpus) -> None:
    [record] = measured(Trial(stage="s", number=0, runs=(run_spec(trunk_spec(), 8, 2),)), Store(tmp_path), corpus)
    model: Any = gpt.grown(record.run.trunk, corpus)
    while model.tokens < record.D:
        model.step(record.run.multiplier(model.tokens))
    assert record.final == checkpoint.digests(*model.state())
    assert record.final.keys() == {"weights", "moments", "rng", "counters", "cursor"}
    assert record.stability == model.stability()
    with torch.no_grad():
        model.parameters[0].view(-1)[0] += 1e-7
    changed = checkpoint.digests(*model.state())
    assert {k for k in changed if changed[k] != record.final[k]} == {"weights"}


@pytest.mark.parametrize("when", ["in the trunk", "in the decay"])
def test_who_is_asked_to_stop_keeps_its_step(
    tmp_path: Path, corpus: data.Corpus, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forks, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(forks.Work, "due_to_report", lambda self: True)  # each step, so that it can be stopped anywhere
    keep, trial = Store(tmp_path), Trial(stage="s", number=0, runs=(run_spec(trunk_spec(), 20, 10),))
    phase, at = ("trunk", 12) if when == "in the trunk" else ("decay", 24)
    events = forks.grow(trial, keep, corpus)
    while (e := next(events)) and isinstance(e, forks.Progress) and (e.phase, e.tokens) != (phase, at * BATCH):
        pass
    (tmp_path / "stop").touch()
    with pytest.raises(Stopped):
        next(events)
    (tmp_path / "stop").unlink()
    first = next(e for e in forks.grow(trial, keep, corpus) if isinstance(e, forks.Progress))
    assert first.tokens == (at + 2) * BATCH
    [record] = measured(trial, keep, corpus)
    assert record.loss == from_scratch(trial.runs[0], corpus)[1]
    assert record.tokens_trained == 30 * BATCH
    left = [p for p in (tmp_path / "trunks").rglob("state.safetensors")]
    assert [p.parent.name for p in left] == [f"{20 * BATCH:015d}"]  # the fork point alone
    curve = keep.curve(trial.runs[0].fingerprint)
    assert curve is not None
    assert list(curve.tokens) == [30 * BATCH]


# real kills

GROW = """
import sys
from tunnel.training import data, forks, train
from tunnel.run import Trial
from tunnel.folder.store import Store
from tunnel.study import Data

trained = train.Trained.step

def told(self, multiplier):
    alive = trained(self, multiplier)
    print(self.steps, flush=True)
    return alive

train.Trained.step = told
forks.SAVE_SECONDS = 0.0  # a checkpoint at every step
corpus = data.opened(Data.model_validate_json(sys.argv[2]), 32)
list(forks.grow(Trial.model_validate_json(sys.argv[1]), Store(sys.argv[3]), corpus))
"""
KILLED = trunk_spec(micro_batch_tokens=2 * SEQ_LEN)
TO_KILL = Trial(stage="s", number=0, runs=(run_spec(KILLED, 8, 4), run_spec(KILLED, 30, 15, "linear")))


def killed(trial: Trial, documents: Data, folder: Path, at: int) -> list[int]:
    """Trains in a process that is SIGKILLed when it has told step `at`; returns the steps it told."""
    args = [sys.executable, "-c", GROW, trial.model_dump_json(), documents.model_dump_json(), str(folder)]
    process = subprocess.Popen(args, stdout=subprocess.PIPE, text=True)
    seen: list[int] = []
    assert process.stdout is not None
    while at not in seen:
        seen.append(int(process.stdout.readline()))
    process.send_signal(signal.SIGKILL)
    process.stdout.close()
    assert process.wait() == -signal.SIGKILL
    return seen


@pytest.mark.slow
@pytest.mark.fault(1)
def test_after_kills_in_trunk_and_decay_the_result_is_the_same(
    tmp_path: Path, documents: Data, corpus: data.Corpus
) -> None:
    keep = Store(tmp_path)
    assert killed(TO_KILL, documents, tmp_path, 20)[:12] == list(range(1, 13))
    assert len(keep.records()) == 1
    assert killed(TO_KILL, documents, tmp_path, 35)[0] in (20, 21)  # gone on, not begun again
    assert len(keep.records()) == 1
    records = measured(TO_KILL, keep, corpus)
    assert [r.loss for r in records] == [from_scratch(run, corpus)[1] for run in TO_KILL.runs]
    assert [r.tokens_trained // BATCH for r in records] == [8 + 4, 30 - 8 + 15]  # as if nobody had been killed
    state = keep.load_state(KILLED.fingerprint, 30 * BATCH)
    assert state is not None
    trunk_only: Any = gpt.grown(KILLED, corpus)
    while trunk_only.tokens < 30 * BATCH:
        trunk_only.step(TO_KILL.runs[1].multiplier(trunk_only.tokens))
    assert_same(state[0], trunk_only.state()[0])
    for name in (KILLED.fingerprint, TO_KILL.runs[1].fingerprint):
        curve = keep.curve(name)
        assert curve is not None
        assert curve.tokens.is_monotonic_increasing
        assert curve.tokens.is_unique


def test_the_synthetic_body_forks_the_same_way(tmp_path: Path) -> None:
    trunk = trunk_spec(family="synthetic")
    runs = run_spec(trunk, 16, 4), run_spec(trunk, 32, 8), run_spec(trunk, 36, 4)
    together = [e for e in forks.grow(Trial(stage="s", number=0, runs=runs), Store(tmp_path / "a"), None)]
    for i, run in enumerate(runs):
        [alone] = [e for e in forks.grow(Trial(stage="s", number=0, runs=(run,)), Store(tmp_path / str(i)), None)]
        assert isinstance(alone, Record)
        assert alone.loss == together[i].loss
