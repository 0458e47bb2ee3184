"""One model over several real processes: the same losses as one, from scratch, after a stop, and by another number."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import resource
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import BATCH, SEQ_LEN, run_spec, trunk_spec

from tunnel.errors import Stopped, UserError
from tunnel.families import gpt
from tunnel.folder.checkpoint import part
from tunnel.folder.store import Store
from tunnel.run import Record, Trial, TrunkSpec
from tunnel.sweeps import launch
from tunnel.training import data, forks, members, memory, parallel
from tunnel.training.parallel import Means

REPLICAS, SHARDS = Means("none"), Means("full")
STEPS = 8


def a_trunk(**changed: Any) -> TrunkSpec:
    """Four sequences a batch, accumulated in two passes."""
    return trunk_spec(shape=(16, 2), **{"micro_batch_tokens": 2 * SEQ_LEN, **changed})


def a_trial() -> Trial:
    """Two forks of a trunk."""
    return Trial(stage="s", number=0, runs=(run_spec(a_trunk(), 12, 4), run_spec(a_trunk(), 30, 6)))


def joined(rank: int, world: int, port: int) -> None:
    from torch import distributed

    from tunnel.training.train import one_thread

    one_thread()
    distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)


def group(world: int, target: Callable[..., None], *given: Any, ends: int = 0) -> None:
    """Runs real processes, which have torch and transformers from this one, until they end with this exit code."""
    importlib.import_module("transformers.models.granite.modeling_granite")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = multiprocessing.get_context("fork")
    processes = [start.Process(target=target, args=(rank, world, port, *given)) for rank in range(world)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(180)
    assert [p.exitcode for p in processes] == [ends] * world


# step by step

FAST = {"fp32": a_trunk(), "three passes": a_trunk(micro_batch_tokens=SEQ_LEN), "bf16": a_trunk(precision="bf16")}
CASES: dict[str, tuple[str, Means]] = {
    "replicas": ("fp32", REPLICAS),
    "replicas, three passes": ("three passes", REPLICAS),
    "replicas, recomputed": ("fp32", Means("none", recompute=True)),
    "replicas, bf16": ("bf16", REPLICAS),
    "shards": ("fp32", SHARDS),
    "shards, three passes": ("three passes", SHARDS),
    "shards, recomputed": ("fp32", Means("full", recompute=True)),
    "shards, bf16": ("bf16", SHARDS),
}
QUICK = ("replicas, three passes", "shards", "shards, recomputed", "shards, three passes")
Told = dict[str, Any]


def told(grown: Any) -> Told:
    """What a model says of its steps, and of itself after them."""
    own, losses, passes = getattr(grown, "own", grown), list[float](), list[int]()
    first: Any = members.layers(own.model)[0]
    first.self_attn.register_forward_hook(lambda *_: passes.append(1))
    update = own.update

    def noted(loss: Any, multiplier: float) -> bool:
        losses.append(loss.item())
        return bool(update(loss, multiplier))

    own.update = noted
    alive = [grown.step(1.0) for _ in range(STEPS)]
    taken, (arrays, meta) = len(passes), grown.state()
    held_out, stability = grown.evaluate(), grown.stability().model_dump()
    sums = {k: float(abs(arrays[k]).sum()) for k in arrays if not k.startswith("rng")}
    found = {"alive": alive, "losses": losses, "held_out": held_out, "stability": stability, "sums": sums, "meta": meta}
    return {**found, "passes": taken}


def step_by_step(rank: int, world: int, port: int, corpus: data.Corpus, path: Path, cases: Sequence[str]) -> None:
    joined(rank, world, port)
    if rank:
        parallel.follow(corpus)
        return
    asked = {name: CASES[name] for name in cases}
    found = {name: told(parallel.lead(FAST[trunk], corpus, means)) for name, (trunk, means) in asked.items()}
    parallel.end()
    path.write_text(json.dumps(found))


@pytest.fixture(scope="module")
def alone(corpus: data.Corpus) -> dict[str, Told]:
    return {name: told(gpt.grown(trunk, corpus)) for name, trunk in FAST.items()}


ALL = [pytest.param((world, tuple(CASES)), marks=pytest.mark.slow) for world in (2, 3)]  # three do not divide four


@pytest.fixture(scope="module", params=[(2, QUICK), *ALL], ids=["two", "two, all", "three, all"])
def together(request: pytest.FixtureRequest, corpus: data.Corpus, tmp_path_factory: pytest.TempPathFactory) -> Told:
    path, (world, cases) = tmp_path_factory.mktemp("told") / "found.json", request.param
    group(world, step_by_step, corpus, path, cases)
    return json.loads(path.read_text())


def test_every_step_has_the_loss_of_one_process(together: Told, alone: dict[str, Told]) -> None:
    """Within 1e-5 in fp32, and 1e-2 in bf16, where a sum in another order is another rounding of three digits."""
    for case, theirs in together.items():
        ours = alone[CASES[case][0]]
        loss, weights = (1e-2, 0.2) if "bf16" in case else (1e-5, 1e-2)
        assert theirs["losses"] == pytest.approx(ours["losses"], rel=loss), case
        assert theirs["held_out"] == pytest.approx(ours["held_out"], rel=loss), case
        assert (theirs["alive"], theirs["meta"]) == (ours["alive"], ours["meta"]), case
        assert theirs["sums"] == pytest.approx(ours["sums"], rel=weights), case
        for name, value in ours["stability"].items():
            assert theirs["stability"][name] == pytest.approx(value, rel=weights), (case, name)


def test_recomputed_activations_are_the_same_bits(together: Told) -> None:
    for held in (c for c in together if f"{c}, recomputed" in together):
        assert together[f"{held}, recomputed"] == together[held] | {"passes": 2 * together[held]["passes"]}


# trials, and their checkpoints


def work(rank: int, world: int, port: int, folder: Path, corpus: data.Corpus, means: Means, stop: int | None) -> None:
    """What a Ray Train worker does, in a process of its own; from step `stop` on it is asked to end."""
    joined(rank, world, port)
    if rank:
        parallel.follow(corpus)
        return
    keep, asked = Store(folder), 0

    def made(*given: Any) -> Any:
        model: Any = parallel.lead(*given, means)
        step = model.step

        def counted(multiplier: float) -> bool:
            nonlocal asked
            asked += 1
            if asked == stop:
                keep.path("stop").touch()
                forks.LOOK_SECONDS = -1.0  # seen at once
            return bool(step(multiplier))

        model.step = counted
        return model

    try:
        list(forks.grow(a_trial(), keep, corpus, made))
    except Stopped:
        keep.path("stop").unlink()
    parallel.end()


def trained(world: int, folder: Path, corpus: data.Corpus, means: Means, stop: int | None = None) -> list[Record]:
    group(world, work, folder, corpus, means, stop)
    return sorted(Store(folder).records(), key=lambda r: r.D)


def by_one(folder: Path, corpus: data.Corpus) -> list[Record]:
    return [e for e in forks.grow(a_trial(), Store(folder), corpus) if isinstance(e, Record)]


@pytest.mark.slow
@pytest.mark.parametrize(("world", "means"), [(2, REPLICAS), (2, SHARDS), (3, SHARDS)])
def test_several_processes_train_what_one_does(tmp_path: Path, corpus: data.Corpus, world: int, means: Means) -> None:
    alone = by_one(tmp_path / "alone", corpus)
    found = trained(world, tmp_path / "together", corpus, means)
    assert [r.fingerprint_of for r in found] == [r.fingerprint_of for r in alone]
    assert [r.loss for r in found] == pytest.approx([r.loss for r in alone], rel=1e-5)
    assert [r.tokens_trained for r in found] == [r.tokens_trained for r in alone]


@pytest.mark.slow
@pytest.mark.parametrize("means", [REPLICAS, SHARDS])
def test_a_stop_in_mid_trunk_is_gone_on_from_bit_for_bit(tmp_path: Path, corpus: data.Corpus, means: Means) -> None:
    whole = trained(2, tmp_path / "whole", corpus, means)
    halves = trained(2, tmp_path / "halves", corpus, means, stop=19)
    assert len(halves) == 1
    halves = trained(2, tmp_path / "halves", corpus, means)
    assert [r.final for r in halves] == [r.final for r in whole]
    assert [r.loss for r in halves] == [r.loss for r in whole]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "then"), [((3, SHARDS), (2, SHARDS)), ((2, SHARDS), (3, REPLICAS)), ((2, REPLICAS), (2, SHARDS))]
)
def test_another_number_goes_on_from_a_checkpoint(
    tmp_path: Path, corpus: data.Corpus, first: tuple[int, Means], then: tuple[int, Means]
) -> None:
    """Its shards are cut anew, and what one process reads of them is what it would have trained."""
    folder, alone = tmp_path / "s", by_one(tmp_path / "alone", corpus)
    assert len(trained(first[0], folder, corpus, first[1], stop=19)) == 1
    files = sorted(p.name for p in Store(folder).checkpoints(a_trial().trunk.fingerprint)[-1].glob("*.safetensors"))
    assert files == ([part(i, first[0]) for i in range(first[0])] if first[1] == SHARDS else ["state.safetensors"])
    found = trained(then[0], folder, corpus, then[1])
    assert [r.loss for r in found] == pytest.approx([r.loss for r in alone], rel=1e-5)
    assert sum(r.tokens_trained for r in found) == sum(r.tokens_trained for r in alone), "nothing twice"
    (one,) = (e for e in forks.grow(a_trial_on(), Store(folder), corpus) if isinstance(e, Record))
    assert one.tokens_trained == 10 * BATCH


def a_trial_on() -> Trial:
    """A fork further on, from the trunk's last checkpoint."""
    return Trial(stage="s", number=1, runs=(run_spec(a_trunk(), 34, 6),))


@pytest.mark.parametrize(
    ("device", "shard", "sharded"),
    [(1.0, "auto", True), (1.5, "auto", False), (9.0, "full", True), (0.1, "none", False)],
)
def test_shards_are_for_what_does_not_fit(
    monkeypatch: pytest.MonkeyPatch, corpus: data.Corpus, device: float, shard: Any, sharded: bool
) -> None:
    """`device`: its memory over that of weights, gradients and moments."""
    model = gpt.grown(a_trunk(), corpus)
    numbers = sum(p.numel() for p in model.parameters)  # type: ignore[attr-defined]
    assert memory.state(a_trunk()) == 16 * numbers
    monkeypatch.setattr(parallel, "room", lambda: int(device * 16 * numbers))
    assert parallel.shards(a_trunk(), Means(shard)) == sharded


# memory

LARGE = a_trunk(batch_tokens=2**17, micro_batch_tokens=2**17)
LEAVES = 150 * 2**20  # bytes: less than half of what a pass takes


def large(rank: int, world: int, port: int, corpus: data.Corpus, path: Path, halved: bool) -> None:
    """One step; the last process has no room for a whole pass, as its kernel sees to."""
    joined(rank, world, port)
    if rank == world - 1 and not halved:
        most = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE") + LEAVES
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    try:
        if rank:
            parallel.follow(corpus)
            return
        model: Any = parallel.lead(LARGE, corpus, Means("full", halved=halved))
        model.step(1.0)
        path.write_text(json.dumps([model.smoothed.item(), model.state()[1]]))
        parallel.end()
    except (RuntimeError, MemoryError) as e:
        path.with_suffix(f".{rank}").write_text(str(memory.is_out_of_memory(e)))
        os._exit(1)


@pytest.mark.slow
@pytest.mark.fault(9)
def test_a_pass_that_does_not_fit_one_process_ends_all_and_goes_through_in_halves(
    tmp_path: Path, corpus: data.Corpus
) -> None:
    path = tmp_path / "told"
    group(2, large, corpus, path, False, ends=1)
    assert [path.with_suffix(f".{rank}").read_text() for rank in range(2)] == ["False", "True"], "the leader hears"
    group(2, large, corpus, path, True)
    loss, meta = json.loads(path.read_text())
    one: Any = gpt.grown(LARGE, corpus)
    one.step(1.0)
    assert loss == pytest.approx(one.smoothed.item(), rel=1e-5)
    assert meta == {"tokens": 2**17, "halved_at": 0}


def test_halves_of_a_pass_of_one_sequence_do_not_exist(corpus: data.Corpus, tmp_path: Path) -> None:
    def alone(rank: int, world: int, port: int) -> None:
        joined(rank, world, port)
        model = parallel.lead(a_trunk(micro_batch_tokens=SEQ_LEN), corpus, Means(halved=True))
        with pytest.raises(memory.OutOfMemory, match=r"16×2 with a batch of 128 tokens, 32 at a time"):
            model.step(1.0)

    group(1, alone)


@pytest.mark.parametrize(
    ("workers", "changed", "said"),
    [
        (BATCH // SEQ_LEN + 1, {}, "sequences of a batch"),
        (2, {"dropout": 0.1}, "dropout"),
        (2, {"family": "synthetic"}, "in one process"),
    ],
)
def test_what_cannot_be_shared_is_said(workers: int, changed: dict[str, Any], said: str) -> None:
    trunk = a_trunk(**changed)
    launch.require_shareable(trunk, 1)
    with pytest.raises(UserError, match=said):
        launch.require_shareable(trunk, workers)
