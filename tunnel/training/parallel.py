"""One model over several processes: each trains its part of every batch, and their gradients are averaged (DDP).

The first process leads: it runs the trial as ever (`tunnel.training.forks`), and what it asks of its model it asks of
all. So the others know neither trunks nor folders; where the leader goes on from a checkpoint, they are given its
state. The global batch is that of the spec, however many take part; losses are those of one process but for the
rounding of a sum in another order (tests/test_parallel.py holds it to 1e-5 of the loss).
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, cast

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from tunnel import families
from tunnel.errors import UserError
from tunnel.families import Arrays, Grown
from tunnel.run import TrunkSpec
from tunnel.training.data import Corpus
from tunnel.training.train import Trained

MOMENTS = ("step", "exp_avg", "exp_avg_sq")


class Member(Trained):
    """A process's replica of the model, and its part of every batch. Needs an initialised process group."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.rank, self.world = distributed.get_rank(), distributed.get_world_size()
        where = [self.device] if self.device.type == "cuda" else None
        self.forward = self.parallel = DistributedDataParallel(self.model, device_ids=where)

    def halve(self) -> bool:
        """Never: the others would wait for a process that tries again."""
        return False

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

    def backward(self, batch: torch.Tensor) -> torch.Tensor:
        """The global batch's loss; its gradients, averaged over the processes, are left in the parameters."""
        loss, bf16 = torch.zeros((), device=self.device), self.trunk.settings.precision == "bf16"
        parts = batch.split(self.at_a_time)
        for i, part in enumerate(parts):
            with nullcontext() if i == len(parts) - 1 else self.parallel.no_sync():
                with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
                    part_loss = self.loss(part) * (len(part) * self.world / self.sequences)
                part_loss.backward()
            loss += part_loss.detach()
        distributed.all_reduce(loss)
        return loss / self.world

    @torch.no_grad()
    def share(self) -> None:
        """Gives every process the leader's state."""
        meta = [(self.tokens, self.smoothed.cpu(), self.tally.cpu(), len(self.optimizer.state))]
        distributed.broadcast_object_list(meta)
        self.tokens, smoothed, tally, begun = meta[0]
        self.smoothed, self.tally = smoothed.to(self.device), tally.to(self.device)
        for p in self.parameters:
            distributed.broadcast(p.data, 0)
            if not begun:
                self.optimizer.state.pop(p, None)
                continue
            kept = self.optimizer.state[p]
            for name in MOMENTS:
                if name not in kept:
                    kept[name] = torch.zeros((), device=self.device) if name == "step" else torch.zeros_like(p)
                distributed.broadcast(kept[name], 0)


class Leader:
    """The leader's replica as a `families.Grown`: a step, and a state that is restored, are those of all processes."""

    def __init__(self, own: Member) -> None:
        self.own = own

    def step(self, multiplier: float) -> bool:
        tell("step", multiplier)
        return self.own.step(multiplier)

    def restore(self, arrays: Arrays, meta: dict[str, Any]) -> None:
        self.own.restore(arrays, meta)
        tell("share")
        self.own.share()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.own, name)


def lead(trunk: TrunkSpec, corpus: Corpus | None) -> Grown:
    """The model of a trunk at 0 tokens, in all processes."""
    require_divisible(trunk, distributed.get_world_size())
    tell("made", trunk.model_dump_json())
    return cast(Grown, Leader(families.load(trunk.family).grown(trunk, corpus, Member)))


def follow(corpus: Corpus | None) -> None:
    """Does what the leader asks, until it ends."""
    own: Member | None = None
    while True:
        heard: list[Any] = [None]
        distributed.broadcast_object_list(heard)
        what, *given = heard[0]
        if what == "end":
            return
        if what == "made":
            trunk = TrunkSpec.model_validate_json(given[0])
            own = families.load(trunk.family).grown(trunk, corpus, Member)
        else:
            getattr(own, what)(*given)


def end() -> None:
    """Lets the followers go."""
    tell("end")


def tell(*what: Any) -> None:
    distributed.broadcast_object_list([what])


def require_divisible(trunk: TrunkSpec, workers: int) -> None:
    """Raises UserError where a trunk cannot be trained by so many processes."""
    sequences = trunk.settings.batch_tokens // trunk.body.seq_len
    if workers > sequences:
        raise UserError(f"is more than the {sequences} sequences of a batch", key="--workers", value=workers)
    if trunk.settings.dropout and workers > 1:
        raise UserError("needs dropout 0: a follower's random state is not kept", key="--workers", value=workers)
