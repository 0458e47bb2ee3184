"""One model over several processes: each trains its part of every batch, and their gradients are averaged.

The first process leads: it runs the trial as ever (`tunnel.training.forks`), and what it asks of its model it asks of
all. So the others know neither trunks nor folders; where the leader goes on from a checkpoint, it reads that aloud.
The global batch is that of the spec, however many take part; a step's loss is that of one process but for the rounding
of a sum in another order: within 1e-5 of it in fp32, 1e-2 in bf16 (tests/test_parallel.py). Training amplifies what
differs in the last bit, so that finished models differ as two seeds do (studies/LOG.md).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import distributed

from tunnel import families
from tunnel.families import Arrays, Grown, State
from tunnel.folder import checkpoint
from tunnel.run import Mixed, Stability, TrunkSpec
from tunnel.training import memory
from tunnel.training.members import Member, Replica, Shard
from tunnel.training.stream import Corpus


@dataclass(frozen=True)
class Means:
    """How the processes hold one model; the losses are the same but for rounding."""

    shard: Literal["auto", "none", "full"] = "auto"  # auto: where weights, gradients and moments do not fit one device
    recompute: bool = False  # activations, in the backward pass
    halved: bool = False  # half the micro-batch at a time, from the first step on: the whole was too much


class Held(checkpoint.Parts):
    """The state of a sharded model, as its leader sees it."""

    def __init__(self, own: Shard) -> None:
        self.own, self.names = own, list(own.tensors())

    def __getitem__(self, name: str) -> np.ndarray:
        tell("gather", name)
        return self.own.gather(name).cpu().numpy()

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def put(self, where: checkpoint.Where) -> dict[str, str]:
        tell("put", where)
        written = self.own.put(where)
        for _, _, wrong in written:
            if wrong is not None:
                raise wrong
        return {file: found for file, found, _ in written}


class Aloud(Mapping[str, np.ndarray]):
    """A state that the leader has (`arrays`), and all read: each tensor when it is asked for, in the same order."""

    def __init__(self, names: list[str], device: torch.device, arrays: Arrays | None = None) -> None:
        self.names, self.device, self.arrays = dict.fromkeys(names), device, arrays

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.names:
            raise KeyError(name)
        value = None if self.arrays is None else np.array(self.arrays[name])
        about = [None if value is None else (value.shape, value.dtype.str)]
        distributed.broadcast_object_list(about, device=self.device)
        if value is None:
            value = np.empty(*cast(Any, about[0]))
        tensor = torch.from_numpy(value).to(self.device)
        distributed.broadcast(tensor, 0)
        return tensor.cpu().numpy()

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


class Leader:
    """A model as a `families.Grown`: what is asked of it is asked of all processes.

    Between the parts of an evaluation there is no pause: the others are in the middle of it, too.
    """

    def __init__(self, own: Member, halved: bool) -> None:
        self.own, self.halved = own, halved

    def step(self, multiplier: float) -> bool:
        if self.halved and self.own.halved_at is None and not self.asked("halve"):
            raise memory.OutOfMemory(memory.line(self.own.trunk, workers=self.own.world))
        return bool(self.asked("step", multiplier))

    def evaluate(self, pause: Callable[[], None] = lambda: None) -> float:
        pause()
        return float(self.asked("evaluate"))

    def mix_in(self, mix: tuple[Mixed, ...], at: int) -> None:
        self.asked("mix_in", mix, at)

    def begin(self, others: Mapping[str, State]) -> None:
        for use, (arrays, meta) in others.items():
            tell("begin", use, list(arrays), meta)
            self.own.begin({use: (Aloud(list(arrays), self.own.device, arrays), meta)})

    def stability(self) -> Stability:
        return cast(Stability, self.asked("stability"))

    def state(self) -> tuple[Arrays, dict[str, Any]]:
        return (Held(self.own), self.own.cursor()) if isinstance(self.own, Shard) else self.own.state()

    def restore(self, arrays: Arrays, meta: dict[str, Any]) -> None:
        tell("restore", list(arrays), meta)
        self.own.restore(Aloud(list(arrays), self.own.device, arrays), meta)

    def asked(self, what: str, *given: Any) -> Any:
        tell(what, *given)
        return getattr(self.own, what)(*given)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.own, name)


def lead(trunk: TrunkSpec, corpus: Corpus | None, means: Means = Means()) -> Grown:
    """The model of a trunk at 0 tokens, in all processes."""
    sharded = shards(trunk, means)
    tell("made", trunk.model_dump_json(), sharded, means.recompute)
    return cast(Grown, Leader(made(trunk, corpus, sharded, means.recompute), means.halved))


def shards(trunk: TrunkSpec, means: Means) -> bool:
    """Whether each process holds rows: replicas that do not fit are of no use."""
    return means.shard == "full" or (means.shard == "auto" and memory.state(trunk) > memory.ROOM * room())


def made(trunk: TrunkSpec, corpus: Corpus | None, sharded: bool, recompute: bool) -> Member:
    kind = partial(Shard if sharded else Replica, recompute=recompute)
    return cast(Member, families.load(trunk.family).grown(trunk, corpus, kind))


def use(device: torch.device) -> None:
    """For this process: all of a node's see all of its GPUs."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def room() -> int:
    """Bytes of this process's device: a GPU, or its share of the host's memory."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", distributed.get_world_size()))
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // processes


def follow(corpus: Corpus | None) -> None:
    """Does what the leader asks, until it ends."""
    own: Any = None
    while True:
        heard: list[Any] = [None]
        distributed.broadcast_object_list(heard)
        what, *given = heard[0]
        if what == "end":
            return
        if what == "made":
            trunk, *how = given
            own = made(TrunkSpec.model_validate_json(trunk), corpus, *how)
        elif what == "begin":
            use, names, meta = given
            own.begin({use: (Aloud(names, own.device), meta)})
        elif what == "restore":
            names, meta = given
            own.restore(Aloud(names, own.device), meta)
        else:
            getattr(own, what)(*given)


def end() -> None:
    """Lets the followers go."""
    tell("end")


def tell(*what: Any) -> None:
    distributed.broadcast_object_list([what])
