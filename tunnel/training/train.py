"""One model in training: AdamW by role, held-out loss, and a state that another process continues bit for bit.

The loop is here; how long, and where the forks lie, is `tunnel.training.forks`' affair.
"""

from __future__ import annotations

import ctypes
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any, cast

import numpy as np
import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from tunnel import transfer
from tunnel.families import Arrays, State, inherited
from tunnel.run import Mixed, Stability, TrunkSpec
from tunnel.training.memory import fitted
from tunnel.training.stream import Corpus

CHECK_EVERY = 10  # steps between looks for divergence: a look waits for the device
HOPELESS = 2.0  # × log(vocab), the loss of a uniform guess: above it, after warmup, a run has diverged  *assumed*
EVAL_TOKENS = 16_384  # evaluated at a time  *measured here*: 8,192 to 16,384 are best at 32×2
EVAL_ROWS = 512  # of logits at a time: at a vocabulary of 256 they stay in the core's cache  *measured here*
SPIKE = 5.0  # running standard deviations that a step's loss must stand out by  *assumed*
SETTLED = 20  # steps before a spike can be told from the first fall  *assumed*
TINY = 1e-30  # a parameter that never had a gradient must not divide by zero
KEPT = {-1: 512 * 2**20, -3: 32 * 2**20}  # bytes, of M_TRIM_THRESHOLD and M_MMAP_THRESHOLD: malloc.h; the latter's most
MOMENTS = ("exp_avg", "exp_avg_sq")  # Adam's
WATCHED = 8  # held-out sequences on which attention and logits are watched


class Trained:
    """A transformers model with its optimizer, on one device; see `families.Grown`."""

    def __init__(
        self,
        build: Callable[[], torch.nn.Module],
        roles: dict[str, transfer.Role],
        trunk: TrunkSpec,
        corpus: Corpus,
    ):
        keep_memory()
        s = trunk.settings
        self.trunk, self.corpus, self.tokens = trunk, corpus, 0
        self.halved_at: int | None = None
        self.known: dict[str, float] = {}  # held-out losses, by source
        self.rows: list[tuple[int, float, float, float]] = []
        gpu = torch.cuda.is_available()
        self.device = torch.device("cuda", torch.cuda.current_device()) if gpu else torch.device("cpu")
        torch.manual_seed(trunk.seed)
        self.model = self.placed(build())
        self.forward: torch.nn.Module = self.model  # what a training loss goes through
        self.groups = grouped(self.model, roles, trunk)
        initialise(self.groups, trunk, self.fill)
        self.optimizer = torch.optim.AdamW(
            [{k: g[k] for k in ("params", "lr", "weight_decay", "eps")} for g in self.groups],
            betas=(s.beta1, s.beta2),
            fused=True,
        )
        self.parameters = [p for g in self.groups for p in g["params"]]
        self.smoothed = torch.zeros((), device=self.device)
        self.tally = torch.zeros(3, device=self.device)  # variance about `smoothed`, clipped steps, spikes
        self.hopeless = HOPELESS * math.log(trunk.body.vocab)
        self.ceiling = self.hopeless  # of a training loss

    def placed(self, model: torch.nn.Module) -> torch.nn.Module:
        """The model, on the device."""
        return model.to(self.device)

    @torch.no_grad()
    def fill(self, p: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
        """Gives a parameter, or a moment of it, its values."""
        return p.copy_(whole)

    def begin(self, others: Mapping[str, State]) -> None:
        """Takes the weights that its trunk begins with."""
        if "start" in others:
            arrays, meta = others["start"]
            given = inherited(self.trunk, arrays)
            for name, p in self.heirs():
                self.fill(p, torch.from_numpy(given(name)))
            self.tokens = meta["tokens"] if self.trunk.begun else 0

    def heirs(self) -> Iterable[tuple[str, torch.nn.Parameter]]:
        """Which of its parameters begin as those of its trunk's `start`."""
        return self.model.named_parameters()

    @property
    def steps(self) -> int:
        """Its own, since its training began."""
        return (self.tokens - self.trunk.begun) // self.trunk.settings.batch_tokens

    def step(self, multiplier: float) -> bool:
        """Trains one batch at `multiplier` times the peak; False where the run has diverged."""
        batch = self.batch()
        return self.update(fitted(lambda: self.backward(batch), self.halve), multiplier)

    def backward(self, batch: torch.Tensor) -> torch.Tensor:
        """The batch's loss; its gradients are left in the parameters."""
        loss, bf16 = torch.zeros((), device=self.device), self.trunk.settings.precision == "bf16"
        for part in batch.split(self.at_a_time):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
                part_loss = self.weighed(part, batch)
            part_loss.backward()
            loss += part_loss.detach()
        return loss

    def weighed(self, part: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
        """What a part adds to its batch's loss."""
        return self.loss(part) * (len(part) / len(batch))

    @property
    def at_a_time(self) -> int:
        """Sequences that go through the model at a time."""
        return self.most if self.halved_at is None else -(-self.most // 2)

    @property
    def most(self) -> int:
        """Sequences that should, where memory has room for them."""
        return self.trunk.settings.micro_batch_tokens // self.trunk.body.seq_len

    def halve(self) -> bool:
        """From this step on half as many sequences go through the model at a time; False where that is no help.

        The step is the same but for rounding, so the run keeps its identity; its record says from when. (Not so with
        dropout: a pass that did not fit has drawn its masks.)
        """
        if self.halved_at is not None or self.at_a_time == 1:
            return False
        self.halved_at = self.tokens
        self.optimizer.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return True

    def batch(self) -> torch.Tensor:
        """The next step's sequences, each of seq_len + 1 tokens."""
        t = self.trunk.body.seq_len
        n = self.trunk.settings.batch_tokens // t
        return torch.from_numpy(self.corpus.sequences(self.trunk.seed, self.tokens // t, n, t)).to(self.device)

    def update(self, loss: torch.Tensor, multiplier: float) -> bool:
        """The second half of a step, after the gradients of `loss`."""
        norm = self.clip()
        for group, own in zip(self.optimizer.param_groups, self.groups, strict=True):
            group["lr"] = own["lr"] * multiplier
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.tokens += self.trunk.settings.batch_tokens
        self.note(loss, norm)
        return self.look(loss, norm, multiplier) if self.steps % CHECK_EVERY == 0 else True

    def clip(self) -> torch.Tensor:
        """Clips the gradient; its norm before."""
        return torch.nn.utils.clip_grad_norm_(self.parameters, self.trunk.settings.clip)

    def note(self, loss: torch.Tensor, norm: torch.Tensor) -> None:
        """Running statistics, on the device: nothing waits for them."""
        off = loss - self.smoothed
        spike = off > SPIKE * self.tally[0].sqrt() if self.steps > SETTLED else torch.zeros_like(loss)
        clipped = norm > self.trunk.settings.clip
        variance = 0.9 * self.tally[0] + 0.1 * off * off if self.steps > 1 else torch.zeros_like(loss)
        self.tally = torch.stack([variance, self.tally[1] + clipped, self.tally[2] + spike])
        self.smoothed = loss if self.steps == 1 else 0.9 * self.smoothed + 0.1 * loss

    def look(self, loss: torch.Tensor, norm: torch.Tensor, multiplier: float) -> bool:
        """Notes a row of the curve, and whether training still makes sense."""
        smoothed = self.smoothed.item()
        self.rows.append((self.tokens, smoothed, multiplier, norm.item()))
        warm = self.tokens > self.trunk.settings.warmup
        return math.isfinite(smoothed + norm.item()) and not (warm and smoothed > self.ceiling)

    def loss(self, sequences: torch.Tensor) -> torch.Tensor:
        """Mean next-token cross-entropy in nats; where there are experts, its gradient has their balance in it."""
        out = self.forward(input_ids=sequences[:, :-1], use_cache=False)
        loss = F.cross_entropy(out.logits.flatten(0, 1).float(), sequences[:, 1:].flatten())
        balance = getattr(out, "aux_loss", None)
        if balance is None:
            return loss
        return loss + cast(Any, self.model).config.router_aux_loss_coef * (balance - balance.detach())

    def evaluate(self, pause: Callable[[], None] = lambda: None) -> float:
        """Held-out loss in nats per token; inf where it is hopeless: a short run ends between two looks."""
        self.known = {name: self.held_out(corpus, pause) for name, corpus in self.corpus.slices.items()}
        weights = self.trunk.source.loss or ((next(iter(self.known), ""), 1.0),)
        loss = sum(w * self.known[k] for k, w in weights) if self.known else self.held_out(self.corpus, pause)
        return loss if loss <= self.hopeless else math.inf

    def slices(self) -> dict[str, float]:
        """The last evaluation by source, where there are several: what the model learns, and what it forgets."""
        return self.known

    def mix_in(self, mix: tuple[Mixed, ...], at: int) -> None:
        """From `at` tokens on, where its decay starts, it reads these sources too; without any it reads as a trunk."""
        self.corpus = self.corpus.during(mix, at)

    @torch.no_grad()
    def held_out(self, corpus: Corpus, pause: Callable[[], None]) -> float:
        t, model = self.trunk.body.seq_len, cast(Any, self.model)
        sequences = torch.from_numpy(corpus.evaluation(self.trunk.source.eval_tokens, t)).to(self.device)
        model.eval()
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for part in sequences.split(max(EVAL_TOKENS // t, 1)):
            pause()
            seen = model.model(input_ids=part[:, :-1], use_cache=False).last_hidden_state.flatten(0, 1)
            for rows, targets in zip(seen.split(EVAL_ROWS), part[:, 1:].flatten().split(EVAL_ROWS), strict=True):
                logits = model.lm_head(rows).float() / model.config.logits_scaling
                total += F.cross_entropy(logits, targets, reduction="sum")
        model.train()
        return total.item() / (len(sequences) * t)

    @torch.no_grad()
    def stability(self) -> Stability:
        """Attention and logits on held-out data, and what the steps so far noted."""
        self.model.eval()
        with AttentionLogits() as seen:
            out = self.watched()
        self.model.train()
        ratios, eps = {}, 0.0
        for group in self.groups:
            step, weight, scale = self.adam(group)
            ratios[group["role"]] = group["lr"] * step / weight
            eps = max(eps, group["eps"] / scale)
        return Stability(
            attention_logit=seen.largest,
            log_partition=out.logits.float().logsumexp(-1).mean().item(),
            clip_rate=self.tally[1].item() / self.steps,
            spikes=int(self.tally[2].item()),
            update_to_weight=ratios,
            eps_ratio=eps,
            expert_load=loads(self.trunk, getattr(out, "router_logits", None) or ()),
        )

    def watched(self) -> Any:
        """What the model says to the held-out sequences on which it is watched."""
        t = self.trunk.body.seq_len
        sequences = torch.from_numpy(self.corpus.evaluation(WATCHED * t, t)).to(self.device)
        return self.model(input_ids=sequences[:, :-1], use_cache=False)

    def adam(self, group: dict[str, Any]) -> tuple[float, float, float]:
        """A group's RMS of Adam's step at rate 1, of the weights, and of the step's denominator."""
        s, sums, count = self.trunk.settings, torch.zeros(3, dtype=torch.float64), 0
        for p in group["params"]:
            kept = self.optimizer.state[p]
            n = kept["step"].item()
            scale = (kept["exp_avg_sq"] / (1 - s.beta2**n)).sqrt()
            step = kept["exp_avg"] / (1 - s.beta1**n) / (scale + group["eps"])
            sums += torch.stack([self.square(x).cpu() for x in (step, p, scale)])
            count += p.numel()
        return tuple((sums / count).sqrt().clamp(min=TINY).tolist())

    def square(self, x: torch.Tensor) -> torch.Tensor:
        """Sum of squares, in double precision."""
        return x.double().square().sum()

    def tensors(self) -> dict[str, torch.Tensor]:
        """Every tensor that the next step depends on, by name; no copies."""
        found = {f"model.{k}": v.detach() for k, v in self.model.named_parameters()}
        for name, p in self.model.named_parameters():
            found |= {f"adam.{k}.{name}": v.detach() for k, v in self.optimizer.state.get(p, {}).items()}
        cuda = {"rng_cuda": torch.cuda.get_rng_state()} if self.device.type == "cuda" else {}
        return {**found, "rng": torch.get_rng_state(), "smoothed": self.smoothed, "tally": self.tally, **cuda}

    def state(self) -> tuple[Arrays, dict[str, Any]]:
        return {k: v.cpu().numpy() for k, v in self.tensors().items()}, self.cursor()

    def cursor(self) -> dict[str, Any]:
        """What of the state is no tensor."""
        return {"tokens": self.tokens} | ({} if self.halved_at is None else {"halved_at": self.halved_at})

    def restore(self, arrays: Arrays, meta: dict[str, Any]) -> None:
        def read(name: str) -> torch.Tensor:
            return torch.from_numpy(np.array(arrays[name]))

        self.optimizer.zero_grad(set_to_none=True)
        self.optimizer.state.clear()
        for name, p in self.model.named_parameters():
            self.fill(p, read(f"model.{name}"))
            if f"adam.step.{name}" in arrays:
                moments = {k: self.fill(torch.empty_like(p), read(f"adam.{k}.{name}")) for k in MOMENTS}
                self.optimizer.state[p] = {"step": read(f"adam.step.{name}").to(self.device), **moments}
        torch.set_rng_state(read("rng"))
        if self.device.type == "cuda" and "rng_cuda" in arrays:
            torch.cuda.set_rng_state(read("rng_cuda"))
        for name in ("smoothed", "tally"):  # a checkpoint of 0.1 has no tally
            if name in arrays:
                setattr(self, name, read(name).to(self.device))
        self.tokens, self.halved_at = meta["tokens"], meta.get("halved_at")
        self.rows = []


def loads(trunk: TrunkSpec, routers: tuple[torch.Tensor, ...]) -> tuple[tuple[float, ...], ...]:
    """By layer, each expert's share of what is routed: routers' logits (tokens, experts) of one pass."""
    m = trunk.shape.mixture
    if m is None:
        return ()
    chosen = [r.topk(m.top_k).indices.flatten().bincount(minlength=m.experts) for r in routers]
    return tuple(tuple((c / c.sum()).tolist()) for c in chosen)


class AttentionLogits(TorchFunctionMode):
    """Notes the largest attention logit, in absolute value, of every scaled dot product in its block."""

    largest = 0.0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            q, k = args[:2]
            k = k.repeat_interleave(q.shape[-3] // k.shape[-3], dim=-3)
            scale = (kwargs or {}).get("scale") or q.shape[-1] ** -0.5
            logits = (q @ k.transpose(-2, -1)).abs() * scale
            logits = logits.tril() if (kwargs or {}).get("is_causal") else logits
            self.largest = max(self.largest, logits.max().item())
        return func(*args, **(kwargs or {}))


def keep_memory() -> None:
    """For this process: memory that a step frees stays for the next one.

    glibc hands back what lies at the end of its heap, and every page of it then faults again: 800 faults a step, a
    tenth of its time, at 32×2 with 8 × 128 tokens  *measured here*
    """
    adjust = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's alone
    if adjust is not None:
        for option, size in KEPT.items():
            adjust(option, size)


def one_thread() -> None:
    """For this process: a trial has one core, and a sum's last bit may go by the number of threads."""
    torch.set_num_threads(1)


def grouped(model: torch.nn.Module, roles: dict[str, transfer.Role], trunk: TrunkSpec) -> list[dict[str, Any]]:
    """Parameters by group, as the rule scales them; a parameter without a role is an error, never a guess."""
    groups = [{**asdict(g), "params": []} for g in transfer.groups(trunk, roles)]
    for name, p in model.named_parameters():
        group = next((g for g in groups if re.search(g["pattern"], name)), None)
        assert group is not None, f"parameter {name} has no role: add a pattern to its family's ROLES"
        group["params"].append(p)
    return [g for g in groups if g["params"]]


def initialise(
    groups: list[dict[str, Any]],
    trunk: TrunkSpec,
    fill: Callable[[torch.Tensor, torch.Tensor], object] = lambda p, whole: p.data.copy_(whole),
) -> None:
    """Normal with the role's std; norm gains 1, biases 0. Drawn on the CPU: a seed means the same everywhere."""
    generator = torch.Generator().manual_seed(trunk.seed)
    for group in groups:
        for p in group["params"]:
            if group["role"] == "vector":
                fill(p, torch.full(p.shape, 0.0 if group["pattern"].endswith("bias$") else 1.0))
            else:
                fill(p, torch.randn(p.shape, generator=generator) * group["init_std"])
