"""Axolotl 0.19: its YAML, with `lr_groups` for the hidden matrices and `embedding_lr`.

Read and measured on axolotl 0.19.0 with transformers 5.23. Its schema accepts unknown keys and any scheduler's name,
so the contract test asserts that every key is a field of its own.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from tunnel.export import _folder, _wsd
from tunnel.export._forms import Form, Tensors, granite
from tunnel.export._parts import Batch, Carried, Parts, batch_of, exact, grouped
from tunnel.run import RunSpec

CARRIES = (
    "shape, multipliers and init std (config.json and prepare.py)",
    "per-role lr (lr_groups, embedding_lr), the hidden matrices' weight decay",
    "schedule, batch, Adam, clipping, precision (axolotl.yaml)",
)
CANNOT_CARRY = (
    "weight decay of the embedding: it has none there",
    "per-role eps",
    "exponential decay",
    "data and data order",
)

ARGS = "axolotl.yaml"
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PLUGIN = Path(__file__).with_name("_axolotl_plugin.py")
HEADER = """\
# Axolotl. Relative paths are from where it is started: `python BUNDLE/prepare.py model` makes model/ there.
# The batch is {batch}.
"""
START = """\
python BUNDLE/prepare.py model                  # the initialised model and its tokenizer
PYTHONPATH=BUNDLE axolotl train BUNDLE/axolotl.yaml --launcher torchrun -- --nproc_per_node={world}
"""


def parts(recommendation: dict[str, Any], run: RunSpec, world: int = 1) -> Parts:
    """The YAML and what makes its model folder; raises UserError for a family that transformers has no model for."""
    form, batch, wsd = granite(recommendation), batch_of(run, world), _wsd.nearest_to(run, first=run.min_ratio)
    given = applied(form)
    text = yaml.safe_dump(arguments(run, wsd, batch, form), sort_keys=False)
    where = {
        "lr": f"{ARGS}: lr_groups, embedding_lr",
        "weight_decay": f"{ARGS}: weight_decay",
        "eps": f"{ARGS}: adam_epsilon",
        "init_std": "prepare.py: initialise",
    }
    carried, lost = grouped(form, given, where)
    return Parts(
        files={
            **_folder.files(recommendation, run, form),
            ARGS: HEADER.format(batch=batch) + text,
            "tunnel_plugin.py": PLUGIN.read_text("utf-8"),
        },
        fields={**_wsd.fields(run, batch, ARGS), **carried, **fields()},
        multiplier=wsd.multiplier,
        lost={**lost, **_wsd.lacking(run, "transformers' WSD")},
        form=replace(form, groups=given),
        start=START.format(world=world),
    )


def applied(form: Form) -> tuple[Tensors, ...]:
    """The groups as its optimizer mixin makes them: the embedding without decay, one epsilon."""
    hidden = form.of("hidden")
    decays = {"hidden": hidden.weight_decay}
    return tuple(replace(g, weight_decay=decays.get(g.role, 0.0), eps=hidden.eps) for g in form.groups)


def arguments(run: RunSpec, wsd: _wsd.Wsd, batch: Batch, form: Form) -> dict[str, Any]:
    args, hidden = _wsd.arguments(run, wsd, batch), form.of("hidden")
    same = ("max_steps", "gradient_accumulation_steps", "warmup_steps", "lr_scheduler_kwargs", "adam_beta1")
    return {
        "base_model": "model",
        "tokenizer_config": "model",
        "plugins": ["tunnel_plugin.Selfcheck"],
        "pretraining_dataset": [{"path": run.trunk.source.corpus, "type": "pretrain"}],
        "sequence_len": run.trunk.body.seq_len,
        "output_dir": "out",
        "micro_batch_size": batch.per_device,
        **{k: args[k] for k in same},
        "lr_scheduler": args["lr_scheduler_type"],
        "optimizer": args["optim"],
        "learning_rate": form.of("vector").lr,
        "embedding_lr": form.of("embedding").lr,
        "lr_groups": [{"name": "hidden", "modules": list(MODULES), "lr": hidden.lr}],
        "weight_decay": hidden.weight_decay,
        "adam_beta2": args["adam_beta2"],
        "adam_epsilon": hidden.eps,
        "max_grad_norm": args["max_grad_norm"],
        "bf16": args["bf16"],
        "seed": args["seed"],
    }


def fields() -> dict[str, Carried]:
    return {
        **exact(dict.fromkeys(("config", "multipliers", "dropout"), "config.json")),
        "lr": Carried("exact", f"{ARGS}: learning_rate", "the gains'; the matrices' are in lr_groups and embedding_lr"),
        "eps": Carried("exact", f"{ARGS}: adam_epsilon", "the hidden matrices', for all"),
        "weight_decay": Carried("exact", f"{ARGS}: weight_decay", "the hidden matrices'"),
        "data": Carried("impossible", f"{ARGS}: pretraining_dataset", "the dataset is the job's own"),
    }
