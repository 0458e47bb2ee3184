"""What a step costs: ours against transformers' Trainer, against a bare loop, and packs against one at a time.

    python benchmarks/train.py [--only loops packs overhead] [--steps 40] [--compiled]

Both sides of a ratio take turns, step by step, in one process; a ratio is the median over the pairs. On the CPU the
clock is this process's own CPU time, one thread, so that a busy machine does not decide; on a GPU it is the wall, with
the device waited for. Prints the ratios last; exits 1 where one is missed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch reads it

import torch
from found import Found
from torch.nn import functional as F
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from tunnel.families import gpt
from tunnel.folder.store import Store
from tunnel.run import Body, RunSpec, Settings, Shape, Source, Trial, TrunkSpec
from tunnel.study import Data
from tunnel.training import data, forks
from tunnel.training.pack import Pack, stepper
from tunnel.training.train import Trained

GPU = torch.cuda.is_available()
PEAK = 989e12  # FLOP/s, bf16 dense, of an H100 SXM: its data sheet  *from paper*
WARM = 4  # steps of a side that are not counted


@dataclass(frozen=True)
class Size:
    """A shape with its batch, and the ratios asked of it."""

    width: int
    depth: int
    sequences: int
    against_trainer: float | None = None
    against_bare: float | None = 0.97


# PLATFORM.md's sizes, batch 8 × 128 bytes
ON_CPU = [Size(32, 2, 8, 1.1), Size(64, 4, 8, 1.1), Size(128, 4, 8, 1.0), Size(256, 4, 8, 1.0)]
# MiniCPM's 9M, 30M and 0.1B (SCIENCE §2), batch 16 × 1024
ON_GPU = [Size(320, 8, 16, 2.0), Size(512, 12, 16, 2.0), Size(768, 16, 16, 1.5)]
PACKS = [(32, 7), (32, 21), (64, 7), (64, 21), (128, 7), (256, 7)]  # width, members; depth 2, batch 4 × 128
PACKS_ON_GPU = [(64, 7), (128, 7), (256, 7), (320, 21)]


def never_stopped() -> None:
    """What an evaluation asks between its parts."""


def clock() -> float:
    if GPU:
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def timed(work: Callable[[], Any]) -> float:
    began = clock()
    work()
    return clock() - began


def trunk_of(size: Size, lr: float = 0.01) -> TrunkSpec:
    """The quickstart's body on the CPU; a real proxy's on a GPU."""
    length, head_dim, vocab = (1024, 64, 32_768) if GPU else (128, 16, 256)
    tokens = size.sequences * length
    return TrunkSpec(
        family="gpt",
        rules="minicpm",
        shape=Shape(width=size.width, depth=size.depth),
        body=Body(
            head_dim=head_dim, base_width=8 * head_dim if GPU else 32, base_depth=2, seq_len=length, ffn_ratio=2.5,
            scale_emb=12, scale_depth=1.4, init_std=0.1, vocab=vocab,
        ),
        settings=Settings(
            lr=lr, warmup=0, batch_tokens=tokens, micro_batch_tokens=tokens, weight_decay=0.01, beta1=0.9, beta2=0.95,
            eps=1e-8, clip=1.0, precision="bf16" if GPU else "fp32",
        ),
        source=Source(corpus="stdlib", corpus_hash="", tokenizer="bytes", held_out=0.05, eval_tokens=32_768),
        seed=0,
    )  # fmt: skip


def grown(size: Size, corpus: data.Corpus, lr: float = 0.01) -> Trained:
    found = gpt.grown(trunk_of(size, lr), corpus)
    assert isinstance(found, Trained)
    return found


def bare(model: Trained, loss: Callable[[Any, torch.Tensor], torch.Tensor]) -> Callable[[], None]:
    """A step of a plain PyTorch loop on a model that is not otherwise used."""
    s = model.trunk.settings

    def step() -> None:
        with torch.autocast(model.device.type, torch.bfloat16, enabled=s.precision == "bf16"):
            value = loss(model.model, model.batch())
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters, s.clip)
        model.optimizer.step()
        model.optimizer.zero_grad(set_to_none=True)
        model.tokens += s.batch_tokens

    return step


def plain_loss(model: Any, batch: torch.Tensor) -> torch.Tensor:
    logits = model(input_ids=batch[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())


# ours against transformers' Trainer and a bare loop


class Sequences(torch.utils.data.Dataset):
    """What the others read, in their order, as the Trainer takes it."""

    def __init__(self, corpus: data.Corpus, trunk: TrunkSpec) -> None:
        self.corpus, self.trunk = corpus, trunk

    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        row = torch.from_numpy(self.corpus.sequences(self.trunk.seed, i, 1, self.trunk.body.seq_len)[0])
        return {"input_ids": row[:-1], "labels": row[:-1], "shift_labels": row[1:]}


class Beside(TrainerCallback):
    """After each of the Trainer's steps the other sides take theirs; each side's times, the Trainer's own as `trainer`.

    The Trainer's time runs from the end of one step's visit here to the next: data, step and bookkeeping.
    """

    def __init__(self, sides: dict[str, Callable[[], Any]]) -> None:
        self.sides, self.since = sides, 0.0
        self.times: dict[str, list[float]] = {"trainer": [], **{name: [] for name in sides}}

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.times["trainer"].append(clock() - self.since)
        for name, step in self.sides.items():
            self.times[name].append(timed(step))
        self.since = clock()


def loops(size: Size, corpus: data.Corpus, steps: int, compiled: bool, found: Found) -> None:
    ours, theirs = grown(size, corpus), grown(size, corpus)
    sides: dict[str, Callable[[], Any]] = {
        "ours": (lambda step: lambda: step(1.0))(stepper(ours)),  # a pack of one, which is how a sweep trains
        "bare": bare(grown(size, corpus), plain_loss),
        "reference": (lambda other: lambda: other.step(1.0))(grown(size, corpus)),
    }
    warm_up = 0.0
    if compiled:
        sides["compiled"] = bare(grown(size, corpus), torch.compile(plain_loss, dynamic=False))
        warm_up = timed(lambda: [sides["compiled"]() for _ in range(2)])
    beside = Beside(sides)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, max_steps=steps + WARM, per_device_train_batch_size=size.sequences, max_grad_norm=1.0,
            bf16=GPU, use_cpu=not GPU, logging_strategy="no", save_strategy="no", report_to=[], disable_tqdm=True,
            remove_unused_columns=False, train_sampling_strategy="sequential", dataloader_pin_memory=GPU,
        )  # fmt: skip
        trainer = Trainer(
            model=theirs.model, args=arguments, train_dataset=Sequences(corpus, theirs.trunk), callbacks=[beside],
            optimizers=(theirs.optimizer, torch.optim.lr_scheduler.LambdaLR(theirs.optimizer, lambda _: 1.0)),
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        beside.since = clock()
        trainer.train()
    times = {name: t[WARM:] for name, t in beside.times.items()}
    name, tokens = f"{size.width}x{size.depth} batch {size.sequences}x{ours.trunk.body.seq_len}", ours.batch().numel()
    apart = abs(ours.held_out(corpus, never_stopped) - theirs.held_out(corpus, never_stopped))
    speeds = "  ".join(f"{side} {tokens / statistics.median(t):.0f}" for side, t in times.items())
    print(f"{name}: tokens/s {speeds}; held-out loss apart by {apart:.1e} after {steps + WARM} steps", flush=True)
    found.at_least(f"{name}: ours / Trainer", ratio(times["trainer"], times["ours"]), size.against_trainer)
    found.at_least(f"{name}: ours / bare loop", ratio(times["bare"], times["ours"]), size.against_bare)
    found.at_least(f"{name}: ours / reference loop", ratio(times["reference"], times["ours"]))
    if compiled:
        found.at_least(f"{name}: compiled / ours, after {warm_up:.0f} s", ratio(times["ours"], times["compiled"]))
    if GPU:
        flops = gpt.flops_per_token(ours.trunk.shape, ours.trunk.body) * tokens
        best = min(statistics.median(times[side]) for side in times)
        found.at_least(f"{name}: MFU of an H100, ours", flops / statistics.median(times["ours"]) / PEAK)
        found.at_least(f"{name}: MFU of an H100, best side", flops / best / PEAK)


def ratio(a: Sequence[float], b: Sequence[float]) -> float:
    """How much faster b is: the median over the pairs."""
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


# packs


def packs(width: int, members: int, rounds: int) -> Iterator[tuple[float, float]]:
    """Times of `members` steps one after the other, and of the same steps as a pack."""
    corpus, size = data.opened(Data(corpus="stdlib"), 1024 if GPU else 128), Size(width, 2, 4)
    lrs = [0.001 * (1 + i) for i in range(members)]
    single, pack = grown(size, corpus), Pack([grown(size, corpus, lr) for lr in lrs])
    for i in range(rounds + 1):
        one = timed(lambda: [single.step(1.0) for _ in range(members)])
        together = timed(lambda: pack.step([1.0] * members))
        if i:
            yield one, together


def packs_at_once(width: int, members: int, rounds: int, found: Found) -> None:
    """Two processes at once on a CPU, as a sweep's workers are: each by itself one at a time, then as a pack."""
    command = [sys.executable, __file__, "--worker", str(width), str(members), str(rounds)]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(1 if GPU else 2)]
    pairs = [tuple(map(float, row.split())) for w in workers for row in w.communicate()[0].splitlines()]
    assert all(w.returncode == 0 for w in workers)
    tokens = members * 4 * (1024 if GPU else 128)
    ones, together = ([p[i] for p in pairs] for i in (0, 1))
    name = f"{width}x2, {members} members, batch 4x{1024 if GPU else 128}, {len(workers)} process(es)"
    speeds = " and ".join(f"{tokens / statistics.median(t):.0f}" for t in (ones, together))
    print(f"{name}: tokens/s of each process {speeds} as a pack", flush=True)
    found.at_least(f"{width}x2, {members} members: pack / one at a time", ratio(ones, together))


# what is not training

METHODS: dict[str, Any] = {"evaluate": Trained, "save": forks.Work, "load_state": Store, "restore": Trained}


def overhead(folder: Path, corpus: data.Corpus, found: Found) -> None:
    """A ladder trial of the quickstart's kind: the share of its time that is not steps, and what takes it."""
    batch, trunk = 512, trunk_of(Size(32, 2, 4))
    rungs = [tokens // batch for tokens in (100_000, 160_000, 250_000, 400_000)]
    runs = tuple(
        RunSpec(trunk=trunk, decay_start=(r - r // 5) * batch, decay_tokens=r // 5 * batch, decay_shape="1-sqrt")
        for r in rungs
    )
    steps = forks.stepwise(Trial(stage="ladder", number=0, runs=runs), Store(folder), corpus)
    parts = dict.fromkeys(METHODS, 0.0)

    def watched(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            began = clock()
            result = method(*args, **kwargs)
            parts[name] += clock() - began
            return result

        return call

    kept = {name: getattr(owner, name) for name, owner in METHODS.items()}
    for name, owner in METHODS.items():
        setattr(owner, name, watched(name, kept[name]))
    began, training, answer = clock(), 0.0, None
    try:
        while True:
            said = steps.send(answer)
            answer, at = None, clock()
            if isinstance(said, forks.Step):
                answer = said.grown.step(said.multiplier)
                training += clock() - at
    except StopIteration:
        whole = clock() - began
    finally:
        for name, owner in METHODS.items():
            setattr(owner, name, kept[name])
    shares = ", ".join(f"{name} {100 * s / whole:.2f}%" for name, s in parts.items())
    print(
        f"a ladder trial of 4 rungs to 400k tokens, 32x2: {whole:.1f} s; {shares}, steps {100 * training / whole:.2f}%"
    )
    found.at_most("evaluating, saving, restoring: share of a ladder trial", sum(parts.values()) / whole, 0.05)
    found.lines.append(f"{'all that is not steps (curves, records, build too)':58s} {1 - training / whole:6.3f}")


def main() -> int:
    options = argparse.ArgumentParser()
    options.add_argument("--only", nargs="+", default=["loops", "packs", "overhead"])
    options.add_argument("--steps", type=int, default=80, help="counted steps of a side at the smallest size")
    options.add_argument("--compiled", action="store_true", help="also torch.compile'd, with its warm-up")
    options.add_argument("--worker", type=int, nargs=3, help=argparse.SUPPRESS)
    given = options.parse_args()
    torch.set_num_threads(1)
    if given.worker:
        for one, together in packs(*given.worker):
            print(one, together)
        return 0
    corpus = data.opened(Data(corpus="stdlib"), 1024 if GPU else 128)
    found, began = Found(), time.monotonic()
    where = torch.cuda.get_device_name() if GPU else "CPU, one thread"
    print(f"torch {torch.__version__} on {where}")
    if "loops" in given.only:
        for i, size in enumerate(ON_GPU if GPU else ON_CPU):
            loops(size, corpus, max(given.steps // 2**i, 12), given.compiled, found)
    if "packs" in given.only:
        for width, members in PACKS_ON_GPU if GPU else PACKS:
            packs_at_once(width, members, max(given.steps * 32 // (width * members), 3), found)
    if "overhead" in given.only:
        for counted in (Found(), found):  # the first one pays for what is imported on the way
            with tempfile.TemporaryDirectory() as folder:
                overhead(Path(folder), corpus, counted)
    print(f"\n{time.monotonic() - began:.0f} s. Ratios, medians over the pairs:")
    print("\n".join(found.lines))
    return int(found.missed > 0)


if __name__ == "__main__":
    sys.exit(main())
