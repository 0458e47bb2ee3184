"""transformers' WSD scheduler, which the Trainer, LLaMA-Factory and Axolotl step.

Read and measured on transformers 5.23 and 5.6: `get_wsd_schedule`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tunnel.export._parts import Batch, Carried, steps_of
from tunnel.run import RunSpec
from tunnel.schedule import SHAPES

DECAYS = ("1-sqrt", "linear", "cosine")  # of get_wsd_schedule, the same functions as ours  *measured here*


def scheduler(run: RunSpec) -> dict[str, Any]:
    """The arguments of `get_wsd_schedule` that come nearest to our curve (steps).

    Step s has the multiplier s/W' there and (s + 1)/W here. W' = W − 1 reaches the peak on the same step as ours, is
    never above it, never more than 1/W below, and half a peak step short in sum; W' = W would be one short. Stable and
    decay are then the same, step by step.  *derived*
    """
    batch = run.trunk.settings.batch_tokens
    return {
        "warmup_steps": max(run.trunk.settings.warmup // batch - 1, 0),
        "max_steps": steps_of(run),
        "num_decay_steps": run.decay_tokens // batch,
        "decay_type": nearest(run.decay_shape, DECAYS),
        "min_lr_ratio": run.min_ratio,
    }


def nearest(shape: str, decays: tuple[str, ...]) -> str:
    """The shape itself, or the decay of a trainer whose area to it is the smallest."""
    if shape in decays:
        return shape
    grid = [i / 200 for i in range(201)]
    return min(decays, key=lambda name: sum(abs(SHAPES[name](x) - SHAPES[shape](x)) for x in grid))


def stepped(wsd: dict[str, Any]) -> Callable[[int], float]:
    """`get_wsd_schedule` as arithmetic: the multiplier of a step. `min_lr_ratio` is also where its warmup starts."""
    warmup, length, floor = wsd["warmup_steps"], wsd["num_decay_steps"], wsd["min_lr_ratio"]
    start = wsd["max_steps"] - length

    def multiplier(step: int) -> float:
        if step < warmup:
            return floor + (1 - floor) * step / warmup
        if step < start:
            return 1.0
        return floor + (1 - floor) * SHAPES[wsd["decay_type"]](min((step - start) / length, 1.0))

    return multiplier


def arguments(run: RunSpec, wsd: dict[str, Any], batch: Batch) -> dict[str, Any]:
    """What the Trainer's arguments say of a run, by their names there."""
    s = run.trunk.settings
    return {
        "max_steps": wsd["max_steps"],
        "per_device_train_batch_size": batch.per_device,
        "gradient_accumulation_steps": batch.accumulation,
        "learning_rate": s.lr,
        "lr_scheduler_type": "warmup_stable_decay",
        "warmup_steps": wsd["warmup_steps"],
        "lr_scheduler_kwargs": {k: wsd[k] for k in ("num_decay_steps", "decay_type", "min_lr_ratio")},
        "optim": "adamw_torch_fused",
        "weight_decay": s.weight_decay,
        "adam_beta1": s.beta1,
        "adam_beta2": s.beta2,
        "adam_epsilon": s.eps,
        "max_grad_norm": s.clip,
        "bf16": s.precision == "bf16",
        "seed": run.trunk.seed,
    }


def lost(run: RunSpec) -> dict[str, str]:
    return lacking(run, DECAYS, "transformers' WSD")


def lacking(run: RunSpec, decays: tuple[str, ...], whose: str) -> dict[str, str]:
    """The decay's shape, where a trainer has no such one."""
    if run.decay_shape in decays:
        return {}
    return {"decay_shape": f"{run.decay_shape} is not a decay of {whose} ({', '.join(decays)})"}


def fields(run: RunSpec, wsd: dict[str, Any], batch: Batch, args: str) -> dict[str, Carried]:
    """How what stands in the Trainer's arguments comes over; `args` is their file."""
    known, s = run.decay_shape in DECAYS, run.trunk.settings
    short = s.warmup > s.batch_tokens
    late = f"the Trainer's warmup starts at {run.min_ratio:g} × the peak and counts a step less; see `schedule`"
    other = f"no {run.decay_shape} there; {wsd['decay_type']} is the nearest by area"
    return {
        "beta1": Carried("exact", f"{args}: adam_beta1"),
        "beta2": Carried("exact", f"{args}: adam_beta2"),
        "clip": Carried("exact", f"{args}: max_grad_norm"),
        "precision": Carried("exact", f"{args}: bf16"),
        "tokens": Carried("exact", f"{args}: max_steps"),
        "batch_tokens": Carried("exact", f"{args}: {batch}"),
        "warmup": Carried("approximated" if short else "exact", f"{args}: warmup_steps", late if short else ""),
        "decay": Carried("exact", f"{args}: lr_scheduler_kwargs.num_decay_steps"),
        "decay_shape": Carried(
            "exact" if known else "approximated",
            f"{args}: lr_scheduler_kwargs.decay_type",
            "" if known else other,
        ),
        "min_ratio": Carried("exact", f"{args}: lr_scheduler_kwargs.min_lr_ratio"),
        "seed": Carried("exact", f"{args}: seed", "of the initial weights; the Trainer shuffles its data its own way"),
    }
