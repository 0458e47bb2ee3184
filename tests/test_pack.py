"""Packs: the same records as one by one, to rounding."""

from __future__ import annotations

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
from tunnel.run import Record, Trial
from tunnel.training import data, forks
from tunnel.training.forks import packable
from tunnel.training.pack import Pack, Together, stepper

FAN: dict[str, list[dict[str, Any]]] = {
    "lr, seed and decay of weights": [
        {"lr": 0.003},
        {"lr": 0.01, "seed": 1, "weight_decay": 0.1},
        {"lr": 0.03, "clip": 0.1, "beta2": 0.99},
    ],
    "grouped heads, accumulated": [{"kv_heads": 1, "micro_batch_tokens": 2 * SEQ_LEN, "lr": x} for x in (0.003, 0.02)],
    "another width and depth": [{"shape": (64, 3), "rules": "completep", "lr": x} for x in (0.003, 0.02)],
    "one alone": [{}],
}


def grown(corpus: data.Corpus, changes: list[dict[str, Any]]) -> list[Any]:
    return [gpt.grown(trunk_spec(**c), corpus) for c in changes]


@pytest.mark.parametrize("fan", FAN.values(), ids=FAN)
def test_the_first_gradients_are_those_of_one_alone(corpus: data.Corpus, fan: list[dict[str, Any]]) -> None:
    alone, members = grown(corpus, fan), grown(corpus, fan)
    pack = Pack(members)
    losses = pack.losses(torch.stack([m.batch() for m in members]))
    losses.sum().backward()
    for i, model in enumerate(alone):
        loss = model.loss(model.batch())
        loss.backward()
        assert losses[i].item() == pytest.approx(loss.item(), rel=1e-6)
        for name, p in model.model.named_parameters():
            ours = pack.weights[name].grad
            assert p.grad is not None
            assert ours is not None
            assert torch.allclose(ours[i], p.grad, rtol=1e-4, atol=1e-6 * p.grad.abs().max().item()), name


@pytest.mark.parametrize("fan", FAN.values(), ids=FAN)
def test_sixty_steps_are_those_of_one_alone(corpus: data.Corpus, fan: list[dict[str, Any]]) -> None:
    """Every step's loss, the curve, what was noted and the held-out loss; multipliers differ from member to member."""
    alone, members = grown(corpus, fan), grown(corpus, fan)
    pack = Pack(members)
    for step in range(60):
        factors = [1 / (1 + i + step / 30) for i in range(len(members))]
        assert pack.step(factors) == [m.step(f) for m, f in zip(alone, factors, strict=True)]
        for ours, theirs in zip(members, alone, strict=True):
            assert ours.smoothed.item() == pytest.approx(theirs.smoothed.item(), rel=2e-4), step
    for ours, theirs in zip(members, alone, strict=True):
        assert np.allclose(ours.rows, theirs.rows, rtol=5e-3)
        assert ours.tally[1:].tolist() == theirs.tally[1:].tolist()
        assert ours.evaluate() == pytest.approx(theirs.evaluate(), rel=2e-4)
        assert ours.tokens == 60 * BATCH


def test_a_member_s_state_goes_on_alone_and_back(corpus: data.Corpus) -> None:
    """A state saved in a pack is one that `Trained` restores, and the other way round."""
    fan = FAN["lr, seed and decay of weights"]
    alone, members = grown(corpus, fan), grown(corpus, fan)
    pack = Pack(members)
    for _ in range(5):
        pack.step([1.0] * 3)
        [m.step(1.0) for m in alone]
    arrays, meta = members[1].state()
    left = grown(corpus, fan)[1]
    left.restore({k: v.copy() for k, v in arrays.items()}, meta)
    members[1].restore(*alone[1].state())
    for _ in range(20):
        pack.step([1.0] * 3)
        left.step(1.0)
        [m.step(1.0) for m in alone]
    for other in (left, members[1]):
        assert other.evaluate() == pytest.approx(alone[1].evaluate(), rel=2e-4)


def test_one_that_diverges_says_so_and_leaves_the_others_alone(corpus: data.Corpus) -> None:
    fan = [{"lr": 0.01}, {"lr": 1e3, "warmup": 0}, {"lr": 0.02}]
    members, alone = grown(corpus, fan), grown(corpus, fan)
    pack, alive = Pack(members), [True] * 3
    for _ in range(30):
        alive = [a and b for a, b in zip(alive, pack.step([1.0] * 3), strict=True)]
        [m.step(1.0) for m in alone]
    assert alive == [True, False, True]
    rest = Pack([members[0], members[2]])
    for _ in range(10):
        assert all(rest.step([1.0] * 2))
        [m.step(1.0) for m in alone]
    for i in (0, 2):
        assert members[i].evaluate() == pytest.approx(alone[i].evaluate(), rel=2e-4)


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ({}, {"lr": 0.5, "seed": 3, "warmup": 0, "beta2": 0.99, "eps": 1e-6, "weight_decay": 1.0}, True),
        ({}, {"shape": (64, 2)}, False),
        ({}, {"rules": "standard"}, False),
        ({}, {"micro_batch_tokens": SEQ_LEN}, False),
        ({}, {"precision": "bf16"}, False),
        ({"dropout": 0.1}, {"dropout": 0.1}, False),
        ({"family": "synthetic"}, {"family": "synthetic"}, False),
    ],
)
def test_what_fits_into_a_pack(a: dict[str, Any], b: dict[str, Any], same: bool) -> None:
    one, two = trunk_spec(**a), trunk_spec(**b)
    assert packable(one, two) == packable(two, one) == same


# exactness: what a packed trial was does not depend on who trained beside it


def test_the_same_bits_in_every_company(corpus: data.Corpus) -> None:
    changes = [{"lr": 0.003 * (1 + i), "seed": i} for i in range(5)]

    def trained(*packs: tuple[int, ...]) -> list[dict[str, np.ndarray]]:
        members = grown(corpus, changes)
        for numbers in packs:
            pack = Pack([members[i] for i in numbers])
            for _ in range(8):
                pack.step([1.0] * len(numbers))
        return [m.state()[0] for m in members]

    alone = trained(*((i,) for i in range(5)))
    for packs in (((0, 1, 2, 3, 4),), ((4, 2), (1, 0, 3)), ((3, 4, 0, 1), (2,))):
        for a, b in zip(alone, trained(*packs), strict=True):
            for k in a:
                assert k == "rng" or a[k].tobytes() == b[k].tobytes(), k


def trials(lrs: list[float], lengths: tuple[tuple[int, int], ...] = ((8, 2), (12, 4))) -> list[Trial]:
    found = []
    for number, lr in enumerate(lrs):
        trunk = trunk_spec(lr=lr, seed=number)
        runs = tuple(run_spec(trunk, *where) for where in lengths)
        found.append(Trial(stage="s", number=number, runs=runs))
    return found


def records(events: Any) -> dict[int, list[Record]]:
    found: dict[int, list[Record]] = {}
    for number, event in events:
        if isinstance(event, Record):
            found.setdefault(number, []).append(event)
    return found


def known(record: Record) -> dict[str, Any]:
    """What does not depend on when, where and with whom."""
    return record.model_dump(exclude={"started", "seconds", "packed", "host"})


def test_a_packed_trial_is_the_trial_alone(tmp_path: Path, corpus: data.Corpus) -> None:
    """Records with their digests and the trunk's checkpoints, whatever trains beside, one that diverges too."""
    asked = trials([0.003, 1e3, 0.01, 0.02])
    together = records(Together(asked, Store(tmp_path / "all"), corpus).events())
    assert [len(together[n]) for n in range(4)] == [2] * 4
    assert [r.status for r in together[1]] == ["diverged"] * 2
    for trial in asked:
        keep = Store(tmp_path / str(trial.number))
        alone = records(Together([trial], keep, corpus).events())[trial.number]
        assert [known(r) for r in alone] == [known(r) for r in together[trial.number]]
        assert [r.packed for r in (*alone, *together[trial.number])] == [1, 1, 4, 4]
        for run in trial.runs:
            a, b = (s.load_state(trial.trunk.fingerprint, run.decay_start) for s in (keep, Store(tmp_path / "all")))
            assert (a is None) == (b is None)
            if a is not None and b is not None:
                assert all(v.tobytes() == b[0][k].tobytes() for k, v in a[0].items())
        reference = [e for e in forks.grow(trial, Store(tmp_path / f"{trial.number}-reference"), corpus)]
        for ours, theirs in zip(alone, (e for e in reference if isinstance(e, Record)), strict=True):
            assert (ours.status, ours.tokens_trained) == (theirs.status, theirs.tokens_trained)
            assert ours.loss == (None if theirs.loss is None else pytest.approx(theirs.loss, rel=1e-4))


def test_a_run_from_scratch_is_the_packed_record(tmp_path: Path, corpus: data.Corpus) -> None:
    """What `tunnel rerun` does with it: the plain loop, by a pack of one."""
    asked = trials([0.003, 0.01])
    together = records(Together(asked, Store(tmp_path), corpus).events())
    for trial in asked:
        for record in together[trial.number]:
            model: Any = gpt.grown(trial.trunk, corpus)
            step = stepper(model)
            while model.tokens < record.D:
                assert step(record.run.multiplier(model.tokens))
            assert (model.evaluate(), checkpoint.digests(*model.state())) == (record.loss, record.final)


def test_stopping_one_leaves_the_others(tmp_path: Path, corpus: data.Corpus) -> None:
    asked = trials([0.003, 0.01, 0.02])
    everything = records(Together(asked, Store(tmp_path / "all"), corpus).events())
    together, found = Together(asked, Store(tmp_path / "two"), corpus), []
    for number, event in together.events():
        found.append((number, event))
        if number == 1 and isinstance(event, Record):
            together.stop(1)
    seen = records(found)
    assert [len(seen[n]) for n in range(3)] == [2, 1, 2]
    for n in (0, 2):
        assert [known(r) for r in seen[n]] == [known(r) for r in everything[n]]
    assert {n for n, event in found if event is None} == {0, 2}


def test_asked_to_stop_all_keep_their_states_and_go_on(
    tmp_path: Path, corpus: data.Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forks, "LOOK_SECONDS", -1.0)
    monkeypatch.setattr(forks.Work, "due_to_report", lambda self: True)  # a word at every step
    asked = trials([0.003, 0.01])
    whole = records(Together(asked, Store(tmp_path / "whole"), corpus).events())
    keep = Store(tmp_path / "stopped")
    with pytest.raises(Stopped):  # noqa: PT012
        for _, event in Together(asked, keep, corpus).events():
            assert event is not None
            if isinstance(event, forks.Progress) and event.tokens == 10 * BATCH:
                keep.path("stop").touch()
    keep.path("stop").unlink()
    for trial in reversed(asked):  # one by one now: packs are exact
        [*before, last] = records(Together([trial], keep, corpus).events())[trial.number]
        assert [known(r) for r in (*before, last)] == [known(r) for r in whole[trial.number]]
