"""A process's part in one model's training: a replica of it all (DDP), or its rows of every tensor (FSDP2).

What the processes do together is told by the first of them (`tunnel.training.parallel`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, cast

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint as recomputed

from tunnel.errors import Stopped
from tunnel.folder import checkpoint, fence
from tunnel.training.stream import Corpus
from tunnel.training.train import Trained

Written = tuple[str, str, Exception | None]


class Member(Trained):
    """A process's part in a model's training. Needs an initialised process group."""

    def __init__(self, *args: Any, recompute: bool = False) -> None:
        self.rank, self.world = distributed.get_rank(), distributed.get_world_size()
        super().__init__(*args)
        for layer in layers(self.model) if recompute else ():
            layer.forward = partial(recomputed, layer.forward, use_reentrant=False)

    @abstractmethod
    def accumulating(self) -> AbstractContextManager[None]:
        """Around every pass of a batch but the last."""

    def step(self, multiplier: float) -> bool:
        """As ever, but never tried again in halves: the others would wait."""
        return self.update(self.backward(self.batch()), multiplier)

    def batch(self) -> torch.Tensor:
        """This process's sequences of the next step, each of seq_len + 1 tokens."""
        t, n = self.trunk.body.seq_len, self.sequences
        low, high = (n * i // self.world for i in (self.rank, self.rank + 1))
        part = self.corpus.sequences(self.trunk.seed, self.tokens // t + low, high - low, t)
        return torch.from_numpy(part).to(self.device)

    @property
    def sequences(self) -> int:
        """Of the global batch."""
        return self.trunk.settings.batch_tokens // self.trunk.body.seq_len

    @property
    def largest(self) -> int:
        """Sequences of the process that has most."""
        return -(-self.sequences // self.world)

    @property
    def most(self) -> int:
        return min(super().most, self.largest)

    def backward(self, batch: torch.Tensor) -> torch.Tensor:
        """The global batch's loss; its gradients, averaged over the processes, are left in the parameters.

        All take as many passes, for each may be one of all together: who has less takes one of weight 0.
        """
        loss, bf16 = torch.zeros((), device=self.device), self.trunk.settings.precision == "bf16"
        parts = batch.tensor_split(-(-self.largest // self.at_a_time))
        for i, part in enumerate(parts):
            with self.accumulating() if i < len(parts) - 1 else nullcontext():
                with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
                    own = self.loss(part if len(part) else batch[:1])
                    part_loss = own * (len(part) * self.world / self.sequences)
                part_loss.backward()
            loss += part_loss.detach()
        distributed.all_reduce(loss)
        return loss / self.world


class Replica(Member):
    """The whole model in every process (DDP)."""

    def __init__(self, *args: Any, **how: Any) -> None:
        super().__init__(*args, **how)
        where = [self.device] if self.device.type == "cuda" else None
        self.forward = self.parallel = DistributedDataParallel(self.model, device_ids=where)

    def accumulating(self) -> AbstractContextManager[None]:
        return self.parallel.no_sync()


class Shard(Member):
    """This process's rows of every weight, gradient and moment; a layer is gathered when its turn comes (FSDP2).

    While it is made, a host holds its processes' models whole: 4 bytes a parameter each.
    """

    def placed(self, model: torch.nn.Module) -> torch.nn.Module:
        mesh = init_device_mesh(self.device.type, (self.world,))
        for layer in layers(model):
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh, reshard_after_forward=True)  # of an evaluation nothing may be left gathered
        return model

    def accumulating(self) -> AbstractContextManager[None]:
        """Gradients are summed as shards: whole ones would not fit."""
        return nullcontext()

    @torch.no_grad()
    def fill(self, p: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
        own = cast(DTensor, p).to_local()
        own.copy_((*whole.chunk(self.world), *[whole[:0]] * self.world)[self.rank])  # chunk's are FSDP2's rows
        return p

    def clip(self) -> torch.Tensor:
        return gathered(super().clip())

    def square(self, x: torch.Tensor) -> torch.Tensor:
        return gathered(super().square(x))

    @torch.no_grad()
    def held_out(self, corpus: Corpus, pause: Callable[[], None]) -> float:
        """As ever, by the model's own forward pass: nothing else gathers its layers."""
        t = self.trunk.body.seq_len
        sequences = torch.from_numpy(corpus.evaluation(self.trunk.source.eval_tokens, t)).to(self.device)
        self.model.eval()
        total = sum(self.loss(part).double() * len(part) for part in sequences.split(self.at_a_time))
        self.model.train()
        return float(total) / len(sequences)

    def gather(self, name: str) -> torch.Tensor:
        """A tensor of the state, whole; all must ask for it."""
        return gathered(self.tensors()[name])

    def put(self, where: checkpoint.Where) -> list[Written]:
        """Writes this process's rows; what all wrote: file, hash, and what went wrong, for the leader to raise."""
        tensors = self.tensors()
        rows = {k: v.to_local() for k, v in tensors.items() if isinstance(v, DTensor)}
        whole = {k: v for k, v in tensors.items() if k not in rows and self.rank == 0}
        file, found, wrong, every = checkpoint.part(self.rank, self.world), "", None, [None] * self.world
        try:
            found = where.put(file, {k: v.cpu().numpy() for k, v in (rows | whole).items()})
        except (OSError, Stopped, fence.Overtaken) as e:
            wrong = e
        distributed.all_gather_object(every, (file, found, wrong))
        return cast(list[Written], every)


def gathered(x: torch.Tensor) -> torch.Tensor:
    """A tensor whose rows, or whose summands, lie with several processes; all must ask for it."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def layers(model: torch.nn.Module) -> list[torch.nn.Module]:
    """What is gathered, and computed again, as one: the blocks of a transformer."""
    return [layer for m in model.modules() if isinstance(m, torch.nn.ModuleList) for layer in m]
