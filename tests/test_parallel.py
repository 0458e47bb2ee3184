"""One model over several real processes: the same losses as one, from scratch and after a stop."""

from __future__ import annotations

import multiprocessing
import socket
from pathlib import Path

import pytest
from conftest import BATCH, SEQ_LEN, run_spec, trunk_spec

from tunnel.errors import Stopped, UserError
from tunnel.folder.store import Store
from tunnel.run import Record, Trial
from tunnel.training import data, forks, parallel


def a_trial() -> Trial:
    """Two forks of a trunk, four sequences a batch, accumulated in two passes."""
    trunk = trunk_spec(shape=(16, 1))
    trunk = trunk.replaced(settings=trunk.settings.replaced(micro_batch_tokens=2 * SEQ_LEN))
    return Trial(stage="s", number=0, runs=(run_spec(trunk, 12, 4), run_spec(trunk, 30, 6)))


def work(rank: int, world: int, port: int, folder: Path, corpus: data.Corpus, stop_after: int | None) -> None:
    """What a Ray Train worker does, in a process of its own."""
    from torch import distributed

    from tunnel.training.train import one_thread

    one_thread()
    distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    if rank:
        parallel.follow(corpus)
        return
    keep, asked = Store(folder), 0

    def made(*given):
        model = parallel.lead(*given)
        step = model.step

        def counted(multiplier):
            nonlocal asked
            asked += 1
            if asked == stop_after:
                keep.path("stop").touch()
                forks.LOOK_SECONDS = -1.0  # seen at once
            return step(multiplier)

        model.step = counted
        return model

    try:
        list(forks.grow(a_trial(), keep, corpus, made))
    except Stopped:
        keep.path("stop").unlink()
    parallel.end()


def together(world: int, folder: Path, corpus: data.Corpus, stop_after: int | None = None) -> list[Record]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = multiprocessing.get_context("spawn")
    group = [start.Process(target=work, args=(rank, world, port, folder, corpus, stop_after)) for rank in range(world)]
    for process in group:
        process.start()
    for process in group:
        process.join(120)
    assert [p.exitcode for p in group] == [0] * world
    return sorted(Store(folder).records(), key=lambda r: r.D)


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])  # three do not divide four sequences
def test_several_processes_train_what_one_does(tmp_path: Path, corpus: data.Corpus, world: int) -> None:
    alone = [e for e in forks.grow(a_trial(), Store(tmp_path / "alone"), corpus) if isinstance(e, Record)]
    found = together(world, tmp_path / "together", corpus)
    assert [r.fingerprint_of for r in found] == [r.fingerprint_of for r in alone]
    assert [r.loss for r in found] == pytest.approx([r.loss for r in alone], rel=1e-5)
    assert [r.tokens_trained for r in found] == [r.tokens_trained for r in alone]


@pytest.mark.slow
def test_a_stop_in_mid_trunk_is_gone_on_from_bit_for_bit(tmp_path: Path, corpus: data.Corpus) -> None:
    whole = together(2, tmp_path / "whole", corpus)
    halves = together(2, tmp_path / "halves", corpus, stop_after=19)
    assert len(halves) == 1
    halves = together(2, tmp_path / "halves", corpus)
    assert [r.final for r in halves] == [r.final for r in whole]
    assert [r.loss for r in halves] == [r.loss for r in whole]


@pytest.mark.parametrize(
    ("workers", "dropout", "said"), [(BATCH // SEQ_LEN + 1, 0.0, "sequences of a batch"), (2, 0.1, "dropout")]
)
def test_what_cannot_be_shared_is_said(workers: int, dropout: float, said: str) -> None:
    trunk = trunk_spec(shape=(16, 1))
    trunk = trunk.replaced(settings=trunk.settings.replaced(dropout=dropout))
    with pytest.raises(UserError, match=said):
        parallel.require_divisible(trunk, workers)
