"""transformers' Trainer: config.json (Granite, GraniteMoe, BERT), TrainingArguments as YAML, and an optimizer hook.

Read and measured on transformers 5.23. TrainingArguments has one learning rate and one initialisation, so the bundle
is used with its `optimizer.py`; the scheduler may be the Trainer's own (near our curve) or the hook's (our curve).
"""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import Any

import yaml

from tunnel import families
from tunnel.errors import UserError
from tunnel.export import _wsd
from tunnel.export._forms import granite
from tunnel.export._parts import Batch, Carried, Parts, batch_of, exact
from tunnel.run import RunSpec

CARRIES = (
    "shape, multipliers, experts and their balance (config.json)",
    "schedule, batch, Adam, clipping, precision (training_args.yaml)",
    "per-role lr, weight decay, eps and init std, and the exact schedule (optimizer.py)",
)
CANNOT_CARRY = ("exponential decay", "a decay's floor above two warmup steps", "data and data order")

DENSE = ("granite",)
MIXTURES = (*DENSE, "granitemoe")
TAKES = (*MIXTURES, "bert")
DROPOUT = {"bert": "attention_probs_dropout_prob"}  # as a type calls it; `attention_dropout` otherwise
HOOK = Path(__file__).with_name("_hf_optimizer.py")
HEADER = """\
# transformers.TrainingArguments; HfArgumentParser(TrainingArguments).parse_yaml_file reads it.
# Use it with optimizer.py: without the hook every parameter would train at learning_rate, from transformers' own init.
#   model = optimizer.built()
#   Trainer(model, args, optimizers=optimizer.optimizers(model), ...)     the exact schedule; or (adamw(model), None)
# The batch is {batch}, of {seq_len} tokens.
"""
START = """\
# train.py: your Trainer, with the model, the optimizer and the schedule of optimizer.py, as training_args.yaml says
PYTHONPATH=BUNDLE torchrun --nproc-per-node {world} train.py BUNDLE/training_args.yaml
"""


def parts(recommendation: dict[str, Any], run: RunSpec, world: int = 1) -> Parts:
    """The Trainer's files; raises UserError for a family that transformers has no model for."""
    config, batch = config_of(recommendation, run, TAKES), batch_of(run, world)
    wsd = _wsd.nearest_to(run, first=run.min_ratio)
    args = {"output_dir": "out", **_wsd.arguments(run, wsd, batch)}
    header = HEADER.format(batch=batch, seq_len=run.trunk.body.seq_len)
    return Parts(
        files={
            "config.json": dumps(config, indent=1) + "\n",
            "training_args.yaml": header + yaml.safe_dump(args, sort_keys=False),
            "optimizer.py": HOOK.read_text(encoding="utf-8"),
        },
        fields=fields(run, batch),
        multiplier=wsd.multiplier,
        lost=_wsd.lacking(run, "transformers' WSD"),
        form=granite(recommendation),
        start=START.format(world=world),
    )


def config_of(recommendation: dict[str, Any], run: RunSpec, takes: tuple[str, ...] = DENSE) -> dict[str, Any]:
    """config.json: what transformers' class needs to be the tunnel's model, and no more.

    Raises UserError for a type of model that is none of those that the trainer `takes`.
    """
    own = families.config(run.trunk)
    if own is None:
        raise UserError(
            "is not a model that transformers builds; `--to json` takes any family",
            key="family",
            value=run.trunk.family,
        )
    name, kind = families.load(run.trunk.family).architecture(run.trunk.shape)
    if kind not in takes:
        raise UserError(
            f"is a {name}, which this target has no form of: --to hf has", key="family", value=run.trunk.family
        )
    if recommendation.get("config") != own:
        raise UserError("is not the config of its own run: recommend again", file="recommendation.json", key="config")
    named = {"architectures": [name], "model_type": kind, "dtype": "float32"}
    return {**named, **own, DROPOUT.get(kind, "attention_dropout"): run.trunk.settings.dropout}


def fields(run: RunSpec, batch: Batch) -> dict[str, Carried]:
    """Each field with how it comes over. What the YAML cannot say the hook does, exactly."""
    args, hook = "training_args.yaml", "optimizer.py"
    one = "TrainingArguments has one for all parameters"
    base = "the base value; the groups' are in optimizer.py"
    return {
        **exact(dict.fromkeys(("config", "multipliers", "dropout"), "config.json")),
        "init_std": Carried("exact", f"{hook}: initialise", "transformers' init knows one std, and no roles"),
        "lr": Carried("exact", f"{args}: learning_rate", base),
        "groups.lr": Carried("exact", f"{hook}: adamw", one),
        "groups.weight_decay": Carried("exact", f"{hook}: adamw", one),
        "groups.eps": Carried("exact", f"{hook}: adamw", one),
        "eps": Carried("exact", f"{args}: adam_epsilon", base),
        "weight_decay": Carried("exact", f"{args}: weight_decay", base),
        **_wsd.fields(run, batch, args),
        "schedule": Carried("exact", f"{hook}: schedule, reading schedule.csv"),
        "data": Carried("impossible", "recommendation.json: run.trunk.source", "the dataset is the job's own code"),
        **bodied(run),
    }


def bodied(run: RunSpec) -> dict[str, Carried]:
    """What mixtures and encoders have beside."""
    if run.trunk.shape.mixture is not None:
        return exact({"balance": "config.json: router_aux_loss_coef, times the experts of a token"})
    if families.hides(run.trunk.family):
        place = "recommendation.json: run.trunk.settings.masking"
        return {"masking": Carried("impossible", place, "what is hidden is the job's own collator's")}
    return {}
