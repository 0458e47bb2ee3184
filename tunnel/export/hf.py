"""transformers' Trainer: config.json (Granite), TrainingArguments as YAML, and an optimizer hook.

Read and measured on transformers 5.23. TrainingArguments has one learning rate and one initialisation, so the bundle
is used with its `optimizer.py`; the scheduler may be the Trainer's own (near our curve) or the hook's (our curve).
"""

from __future__ import annotations

from collections.abc import Callable
from json import dumps
from pathlib import Path
from typing import Any

import yaml

from tunnel import families
from tunnel.errors import UserError
from tunnel.export import Carried, Parts, steps_of
from tunnel.run import RunSpec
from tunnel.schedule import SHAPES

CARRIES = (
    "shape and multipliers (config.json)",
    "schedule, batch, Adam, clipping, precision (training_args.yaml)",
    "per-role lr, weight decay, eps and init std, and the exact schedule (optimizer.py)",
)
CANNOT_CARRY = ("exponential decay", "a decay's floor above two warmup steps", "data and data order")

DECAYS = ("1-sqrt", "linear", "cosine")  # of get_wsd_schedule, the same functions as ours  *measured here*
HOOK = Path(__file__).with_name("_hf_optimizer.py")
HEADER = """\
# transformers.TrainingArguments; HfArgumentParser(TrainingArguments).parse_yaml_file reads it.
# Use it with optimizer.py: without the hook every parameter would train at learning_rate, from transformers' own init.
#   model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(BUNDLE)); optimizer.initialise(model)
#   Trainer(model, args, optimizers=optimizer.optimizers(model), ...)     the exact schedule; or (adamw(model), None)
# The batch is {batch} sequences of {seq_len} tokens on 1 process: divide gradient_accumulation_steps by the world size.
"""


def parts(recommendation: dict[str, Any], run: RunSpec) -> Parts:
    """The Trainer's files; raises UserError for a family that transformers has no model for."""
    config = config_of(recommendation, run)
    wsd = scheduler(run)
    args = training_args(run, wsd)
    s, seq_len = run.trunk.settings, run.trunk.body.seq_len
    header = HEADER.format(batch=s.batch_tokens // seq_len, seq_len=seq_len)
    return Parts(
        files={
            "config.json": dumps(config, indent=1) + "\n",
            "training_args.yaml": header + yaml.safe_dump(args, sort_keys=False),
            "optimizer.py": HOOK.read_text(encoding="utf-8"),
        },
        fields=fields(run, wsd),
        multiplier=stepped(wsd),
        lost=lost(run),
    )


def config_of(recommendation: dict[str, Any], run: RunSpec) -> dict[str, Any]:
    """config.json: what `GraniteConfig` needs to be the tunnel's model, and no more."""
    family = families.load(run.trunk.family)
    if not hasattr(family, "config_dict"):
        raise UserError(
            "is not a model that transformers builds; `--to json` takes any family",
            key="family",
            value=run.trunk.family,
        )
    config = recommendation.get("config")
    if config != family.config_dict(run.trunk.shape, run.trunk.body, run.trunk.rules):
        raise UserError("is not the config of its own run: recommend again", file="recommendation.json", key="config")
    return {"architectures": ["GraniteForCausalLM"], "model_type": "granite", "dtype": "float32", **config}


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
        "decay_type": run.decay_shape if run.decay_shape in DECAYS else nearest(run.decay_shape),
        "min_lr_ratio": run.min_ratio,
    }


def nearest(shape: str) -> str:
    """The decay of transformers whose area to ours is the smallest."""
    grid = [i / 200 for i in range(201)]
    return min(DECAYS, key=lambda name: sum(abs(SHAPES[name](x) - SHAPES[shape](x)) for x in grid))


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


def training_args(run: RunSpec, wsd: dict[str, Any]) -> dict[str, Any]:
    s, seq_len = run.trunk.settings, run.trunk.body.seq_len
    return {
        "output_dir": "out",
        "max_steps": wsd["max_steps"],
        "per_device_train_batch_size": s.micro_batch_tokens // seq_len,
        "gradient_accumulation_steps": s.batch_tokens // s.micro_batch_tokens,
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
    if run.decay_shape in DECAYS:
        return {}
    return {"decay_shape": f"{run.decay_shape} is not a decay of transformers' WSD ({', '.join(DECAYS)})"}


def fields(run: RunSpec, wsd: dict[str, Any]) -> dict[str, Carried]:
    """Each field with how it comes over. What the YAML cannot say the hook does, exactly."""
    args, hook = "training_args.yaml", "optimizer.py"
    one = "TrainingArguments has one for all parameters"
    known, s = run.decay_shape in DECAYS, run.trunk.settings
    short = s.warmup > s.batch_tokens
    return {
        "config": Carried("exact", "config.json"),
        "multipliers": Carried("exact", "config.json"),
        "init_std": Carried("exact", f"{hook}: initialise", "transformers' init knows one std, and no roles"),
        "lr": Carried("exact", f"{args}: learning_rate", "the base value; the groups' are in optimizer.py"),
        "groups.lr": Carried("exact", f"{hook}: adamw", one),
        "groups.weight_decay": Carried("exact", f"{hook}: adamw", one),
        "groups.eps": Carried("exact", f"{hook}: adamw", one),
        "beta1": Carried("exact", f"{args}: adam_beta1"),
        "beta2": Carried("exact", f"{args}: adam_beta2"),
        "eps": Carried("exact", f"{args}: adam_epsilon", "the base value; the groups' are in optimizer.py"),
        "weight_decay": Carried("exact", f"{args}: weight_decay", "the base value; the groups' are in optimizer.py"),
        "clip": Carried("exact", f"{args}: max_grad_norm"),
        "precision": Carried("exact", f"{args}: bf16"),
        "tokens": Carried("exact", f"{args}: max_steps"),
        "batch_tokens": Carried(
            "exact",
            f"{args}: per_device_train_batch_size, gradient_accumulation_steps, on 1 process",
            "counted in sequences; give seq_len + 1 tokens with labels, so that seq_len of them are predicted",
        ),
        "schedule": Carried("exact", f"{hook}: schedule, reading schedule.csv"),
        "warmup": Carried(
            "approximated" if short else "exact",
            f"{args}: warmup_steps",
            f"the Trainer's warmup starts at {run.min_ratio:g} × the peak and counts a step less; see `schedule`"
            if short
            else "",
        ),
        "decay": Carried("exact", f"{args}: lr_scheduler_kwargs.num_decay_steps"),
        "decay_shape": Carried(
            "exact" if known else "approximated",
            f"{args}: lr_scheduler_kwargs.decay_type",
            "" if known else f"no {run.decay_shape} there; {wsd['decay_type']} is the nearest by area",
        ),
        "min_ratio": Carried("exact", f"{args}: lr_scheduler_kwargs.min_lr_ratio"),
        "seed": Carried("exact", f"{args}: seed", "of the initial weights; the Trainer shuffles its data its own way"),
        "data": Carried("impossible", "recommendation.json: run.trunk.source", "the dataset is the job's own code"),
    }
