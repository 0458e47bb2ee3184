"""Many proxies of one shape as one batched model: a fan's members differ in lr, seed and data, not in a tensor's size.

One stacked forward and backward fills every member's gradients; then each member clips, steps and notes by itself,
as `train.Trained` does alone. The members' parameters are slices of the stack, so that they evaluate, save and restore
as ever. A pack of one is how a sweep trains a single model: it has the forward pass written out, and so is faster than
the reference loop where models are small  *measured here*. On the CPU, in fp32, a member has the bits of training it by
itself, whoever trains beside  *measured here*: widths 32 to 256; the tests ask for equal bits among packs, and for
rounding against `Trained`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch.nn import functional as F

from tunnel.errors import Stopped
from tunnel.folder.store import Store
from tunnel.run import Trial
from tunnel.training import forks
from tunnel.training.data import Corpus
from tunnel.training.forks import packable
from tunnel.training.memory import fitted
from tunnel.training.train import Trained

log = logging.getLogger(__name__)


class Pack:
    """Members that step together, each at its own tokens and multiplier.

    From then on a member trains here and no longer by its own `step`; one that has diverged or ended is left out by
    packing the others anew. Asserts that the members are `packable`.
    """

    def __init__(self, members: Sequence[Trained]) -> None:
        first, model = members[0], cast(Any, members[0].model)
        assert all(packable(first.trunk, m.trunk) for m in members)
        self.members, self.config, self.device = list(members), model.config, first.device
        assert self.config.model_type == "granite"
        self.named = [dict(m.model.named_parameters()) for m in members]
        self.weights: dict[str, torch.Tensor] = {}
        self.work: Callable[[torch.Tensor], torch.Tensor] = self.backward
        self.captured = self.device.type != "cuda"  # or it was tried
        for name in self.named[0]:
            stack = torch.stack([own[name].detach() for own in self.named])
            for own, part in zip(self.named, stack, strict=True):
                own[name].data = part
            self.weights[name] = stack.requires_grad_()
        positions = torch.arange(first.trunk.body.seq_len, device=self.device)[None]
        cos, sin = (x[0].chunk(2, -1)[0] for x in model.model.rotary_emb(torch.zeros(1, device=self.device), positions))
        self.turn = torch.complex(cos, sin)[:, None]  # (seq_len, 1, head_dim / 2)
        if any(m.halved_at is not None for m in members):
            self.halve()

    def step(self, multipliers: Sequence[float]) -> list[bool]:
        """Trains a batch of every member at its multiplier of its peak; False for those that have diverged."""
        batch = torch.stack([m.batch() for m in self.members])
        if not self.captured:
            self.capture(batch)
        losses = fitted(lambda: self.work(batch), self.halve)
        for name, stack in self.weights.items():
            assert stack.grad is not None
            for own, gradient in zip(self.named, stack.grad, strict=True):
                own[name].grad = gradient
            stack.grad = None
        return [m.update(x, f) for m, x, f in zip(self.members, losses, multipliers, strict=True)]

    def halve(self) -> bool:
        """As `Trained.halve`, of all members: they go through the model together."""
        self.work, self.captured = self.backward, self.device.type != "cuda"
        for stack in self.weights.values():
            stack.grad = None
        return any([m.halve() for m in self.members])

    def capture(self, batch: torch.Tensor) -> None:
        """From here on a step is a CUDA graph, or, where this device and these sizes have none, what it was."""
        self.captured = True
        try:
            self.work = Captured(self.backward, batch, list(self.weights.values()))
        except RuntimeError as e:
            log.warning("steps are launched one operation at a time, for they could not be captured: %s", e)

    def backward(self, batch: torch.Tensor) -> torch.Tensor:
        """Every member's loss on its part of (members, n, seq_len + 1), and the gradients of all."""
        first, losses = self.members[0], torch.zeros(len(self.members), device=self.device)
        for part in batch.split(first.at_a_time, dim=1):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=first.trunk.settings.precision == "bf16"):
                part_losses = self.losses(part) * (part.shape[1] / batch.shape[1])
            part_losses.sum().backward()
            losses += part_losses.detach()
        return losses

    def losses(self, sequences: torch.Tensor) -> torch.Tensor:
        """Every member's mean next-token cross-entropy in nats; sequences are (members, n, seq_len + 1).

        The forward pass of `GraniteForCausalLM`, with a leading dimension. Gains and multipliers go into the weights
        beside them, which are smaller than what they would multiply.
        """
        c, (size, n, length) = self.config, sequences.shape
        rows = n * (length - 1)
        embedding = self.weights["model.embed_tokens.weight"]
        offsets = torch.arange(size, device=self.device)[:, None] * c.vocab_size
        tokens = sequences[:, :, :-1].reshape(size, rows) + offsets
        x = F.embedding(tokens, embedding.flatten(0, 1)) * c.embedding_multiplier
        for layer in range(c.num_hidden_layers):
            at = f"model.layers.{layer}."
            x = x + self.attention(self.normed(x), at, n)
            x = x + self.mlp(self.normed(x), at)
        x = self.normed(x) * (self.gain("model.norm") / c.logits_scaling)
        logits = torch.bmm(x, embedding.transpose(1, 2))
        targets = sequences[:, :, 1:].flatten(1)
        # each by itself, so that a mean sums in the order in which `Trained` does
        return torch.stack([F.cross_entropy(own.float(), wanted) for own, wanted in zip(logits, targets, strict=True)])

    def attention(self, x: torch.Tensor, at: str, n: int) -> torch.Tensor:
        c, gain = self.config, self.gain(at + "input_layernorm")
        q, k, v = (self.weight(f"{at}self_attn.{name}_proj") * gain for name in "qkv")
        out = self.weight(at + "self_attn.o_proj") * c.residual_multiplier
        grouped = c.num_attention_heads != c.num_key_value_heads
        seen = F.scaled_dot_product_attention(
            self.rotated(x, q, n),
            self.rotated(x, k, n),
            self.heads(product(x, v), n),
            is_causal=True,
            scale=c.attention_multiplier,
            enable_gqa=grouped,
        )
        return product(seen.transpose(1, 2).reshape(len(x), x.shape[1], -1), out)

    def mlp(self, x: torch.Tensor, at: str) -> torch.Tensor:
        gain = self.gain(at + "post_attention_layernorm")
        gate, up = (product(x, self.weight(f"{at}mlp.{name}_proj") * gain) for name in ("gate", "up"))
        return product(F.silu(gate) * up, self.weight(at + "mlp.down_proj") * self.config.residual_multiplier)

    def weight(self, name: str) -> torch.Tensor:
        return self.weights[name + ".weight"]

    def gain(self, name: str) -> torch.Tensor:
        return self.weight(name)[:, None]

    def normed(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, x.shape[-1:], eps=self.config.rms_norm_eps)

    def heads(self, x: torch.Tensor, n: int) -> torch.Tensor:
        """(members, rows, width) as (sequences, heads, seq_len, head_dim)."""
        return x.view(len(x) * n, x.shape[1] // n, -1, 2 * self.turn.shape[-1]).transpose(1, 2)

    def rotated(self, x: torch.Tensor, weight: torch.Tensor, n: int) -> torch.Tensor:
        """The heads of x·weightᵀ, turned by position as complex numbers: a head's two halves are laid side by side.

        So the order within a head is not the model's, alike in queries and keys: their products are the same.
        """
        size, _, width = weight.shape
        paired = weight.view(size, -1, 2, self.turn.shape[-1], width).transpose(2, 3).reshape(weight.shape)
        y = product(x, paired).float().view(size * n, x.shape[1] // n, -1, self.turn.shape[-1], 2)
        return torch.view_as_real(torch.view_as_complex(y) * self.turn).flatten(-2).transpose(1, 2)


def product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Every member's x·weightᵀ."""
    return torch.bmm(x, weight.transpose(1, 2))


class Captured:
    """`work` on a GPU, with the gradients it leaves, as one CUDA graph: a small model's step is bound by its launches.

    The steps are torch's for capturing a backward pass (pytorch.org, CUDA semantics, "Whole-network capture").
    """

    def __init__(
        self, work: Callable[[torch.Tensor], torch.Tensor], batch: torch.Tensor, leaves: list[torch.Tensor]
    ) -> None:
        self.batch, self.leaves, self.graph = batch.clone(), leaves, torch.cuda.CUDAGraph()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):  # torch's number: libraries choose and allocate before the capture
                work(self.batch)
                self.clear()
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(self.graph):
            self.result = work(self.batch)
        self.gradients = [leaf.grad for leaf in leaves]

    def clear(self) -> None:
        for leaf in self.leaves:
            leaf.grad = None

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        self.batch.copy_(batch)
        self.graph.replay()
        for leaf, gradient in zip(self.leaves, self.gradients, strict=True):
            leaf.grad = gradient
        return self.result.clone()


def stepper(grown: Any) -> Callable[[float], bool]:
    """One model's step as a pack takes it: the same bits as among others."""
    pack = Pack([grown])
    return lambda multiplier: pack.step([multiplier])[0]


class Together:
    """Trials that train as one pack: each by `forks.stepwise`, their steps as one.

    The trunks must be `packable`. Of each trial what `forks.grow` writes and says, and the same bits however many train
    together: one that ends, diverges or is stopped leaves the others as they are.
    """

    def __init__(self, trials: Sequence[Trial], keep: Store, corpus: Corpus | None) -> None:
        self.trials = {t.number: t for t in trials}
        self.growing = {t.number: forks.stepwise(t, keep, corpus, packed=len(trials)) for t in trials}
        self.answers: dict[int, bool | None] = dict.fromkeys(self.growing)
        self.wanted: dict[int, forks.Step] = {}
        self.rng: dict[int, torch.Tensor] = {}
        self.pack: Pack | None = None
        self.stopped: Stopped | None = None

    def events(self) -> Iterator[tuple[int, forks.Event | None]]:
        """What the trials say, with their numbers; None where one has ended.

        Raises Stopped where that was asked, once every trial has kept its state.
        """
        while self.growing:
            for number in list(self.growing):
                while number in self.growing and number not in self.wanted:
                    said = self.go_on(number)
                    if isinstance(said, forks.Step):
                        self.wanted[number] = said
                    elif said is not None or self.stopped is None:
                        yield number, said
            self.step()
        if self.stopped is not None:
            raise self.stopped

    def go_on(self, number: int) -> forks.Event | forks.Step | None:
        """Lets a trial run to what it next says; every trial has a random state of its own."""
        if number in self.rng:
            torch.set_rng_state(self.rng[number])
        try:
            return self.growing[number].send(self.answers.pop(number, None))
        except StopIteration:
            del self.growing[number]
        except Stopped as e:
            self.stopped = e
            del self.growing[number]
        finally:
            self.rng[number] = torch.get_rng_state()
        return None

    def step(self) -> None:
        """One step of every trial that wants one, as a pack."""
        members: list[Any] = [w.grown for w in self.wanted.values()]
        if not members:
            return
        if self.pack is None or self.pack.members != members:
            self.pack = Pack(members)
        alive = self.pack.step([w.multiplier for w in self.wanted.values()])
        self.answers.update(zip(self.wanted, alive, strict=True))
        self.wanted.clear()

    def stop(self, number: int) -> None:
        """Ends one trial where it is."""
        self.growing.pop(number).close()
        self.wanted.pop(number, None)
        self.answers.pop(number, None)
