"""Warmup-stable-decay as trainers step it whose warmup's first step is 0.

transformers' `get_wsd_schedule` (read and measured on 5.23 and 5.6), Megatron's `OptimizerParamScheduler` (core 0.19,
also in Bridge and Automodel) and nanotron's `lr_scheduler_builder`: one curve, but for where the warmup starts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tunnel.export._parts import Batch, Carried, exact, steps_of
from tunnel.run import RunSpec
from tunnel.schedule import SHAPES

DECAYS = ("1-sqrt", "linear", "cosine")  # of each of them, the same functions as ours  *measured here*


@dataclass(frozen=True)
class Wsd:
    """A trainer's schedule: lengths in steps, a decay by our name, and the multiplier at its end."""

    warmup: int
    steps: int
    decay: int
    shape: str
    floor: float
    first: float  # the multiplier at the warmup's first step

    def multiplier(self, step: int) -> float:
        """The trainer's own scheduler as arithmetic."""
        start = self.steps - self.decay
        if step < self.warmup:
            return self.first + (1 - self.first) * step / self.warmup
        if step <= start:
            return 1.0
        return self.floor + (1 - self.floor) * SHAPES[self.shape](min((step - start) / self.decay, 1.0))


def nearest_to(run: RunSpec, first: float = 0.0) -> Wsd:
    """The arguments that come nearest to our curve.

    Step s has the multiplier s/W' there and (s + 1)/W here. W' = W − 1 reaches the peak on the same step as ours, is
    never above it, never more than 1/W below, and half a peak step short in sum; W' = W would be one short. Stable and
    decay are then the same, step by step.  *derived*
    """
    batch = run.trunk.settings.batch_tokens
    return Wsd(
        warmup=max(run.trunk.settings.warmup // batch - 1, 0),
        steps=steps_of(run),
        decay=run.decay_tokens // batch,
        shape=nearest(run.decay_shape, DECAYS),
        floor=run.min_ratio,
        first=first,
    )


def nearest(shape: str, decays: tuple[str, ...]) -> str:
    """The shape itself, or the decay of a trainer whose area to it is the smallest."""
    if shape in decays:
        return shape
    grid = [i / 200 for i in range(201)]
    return min(decays, key=lambda name: sum(abs(SHAPES[name](x) - SHAPES[shape](x)) for x in grid))


def lacking(run: RunSpec, whose: str, decays: tuple[str, ...] = DECAYS) -> dict[str, str]:
    """The decay's shape, where a trainer has no such one."""
    if run.decay_shape in decays:
        return {}
    return {"decay_shape": f"{run.decay_shape} is not a decay of {whose} ({', '.join(decays)})"}


def carried(run: RunSpec, where: Mapping[str, str], late: str = "") -> dict[str, Carried]:
    """The schedule's fields, by where each stands; `late` says how the trainer's warmup differs, if it does."""
    s, known = run.trunk.settings, run.decay_shape in DECAYS
    short = late if s.warmup > s.batch_tokens else ""
    other = "" if known else f"no {run.decay_shape} there; {nearest(run.decay_shape, DECAYS)} is the nearest by area"
    reasons = {"warmup": short, "decay_shape": other, "schedule": "; ".join(r for r in (short, other) if r)}
    fields = {name: Carried("approximated", where[name], why) for name, why in reasons.items() if why}
    return {**exact(where), **fields}


# transformers' Trainer, and what is built on it


def arguments(run: RunSpec, wsd: Wsd, batch: Batch) -> dict[str, Any]:
    """What the Trainer's arguments say of a run, by their names there."""
    s = run.trunk.settings
    return {
        "max_steps": wsd.steps,
        "per_device_train_batch_size": batch.per_device,
        "gradient_accumulation_steps": batch.accumulation,
        "learning_rate": s.lr,
        "lr_scheduler_type": "warmup_stable_decay",
        "warmup_steps": wsd.warmup,
        "lr_scheduler_kwargs": {"num_decay_steps": wsd.decay, "decay_type": wsd.shape, "min_lr_ratio": wsd.floor},
        "optim": "adamw_torch_fused",
        "weight_decay": s.weight_decay,
        "adam_beta1": s.beta1,
        "adam_beta2": s.beta2,
        "adam_epsilon": s.eps,
        "max_grad_norm": s.clip,
        "bf16": s.precision == "bf16",
        "seed": run.trunk.seed,
    }


def fields(run: RunSpec, batch: Batch, args: str) -> dict[str, Carried]:
    """How what stands in the Trainer's arguments comes over; `args` is their file."""
    named = {
        "beta1": "adam_beta1",
        "beta2": "adam_beta2",
        "clip": "max_grad_norm",
        "precision": "bf16",
        "tokens": "max_steps",
        "batch_tokens": str(batch),
    }
    schedule = {
        "schedule": "lr_scheduler_kwargs",
        "warmup": "warmup_steps",
        "decay": "lr_scheduler_kwargs.num_decay_steps",
        "decay_shape": "lr_scheduler_kwargs.decay_type",
        "min_ratio": "lr_scheduler_kwargs.min_lr_ratio",
    }
    late = f"the Trainer's warmup starts at {run.min_ratio:g} × the peak and counts a step less"
    return {
        **exact({name: f"{args}: {key}" for name, key in named.items()}),
        **carried(run, {name: f"{args}: {key}" for name, key in schedule.items()}, late),
        "seed": Carried("exact", f"{args}: seed", "of the initial weights; the Trainer shuffles its data its own way"),
    }
