"""LLaMA-Factory 0.9.5: its YAML, `stage: pt`, with one learning rate for all.

Read and measured on llamafactory 0.9.5 with transformers 5.6. It has no parameter groups, so the readout's divisor goes
into the tied embedding: under muP's rules the embedding and the hidden matrices then have one learning rate and one
weight decay, and only the norms' gains, which keep the base learning rate elsewhere, get the hidden one.
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
    "schedule, batch, Adam, clipping, precision (train.yaml)",
    "muP as one learning rate: the embedding holds the readout's divisor",
)
CANNOT_CARRY = (
    "per-role lr, weight decay and eps: the norms' gains get the matrices' lr",
    "rules whose hidden and embedding lr differ by another factor than the readout's divisor",
    "exponential decay",
    "data and data order",
)

ARGS = "train.yaml"
TRAIN = Path(__file__).with_name("_llamafactory_train.py")
HEADER = """\
# LLaMA-Factory. Relative paths are from where it is started: `python BUNDLE/prepare.py model` makes model/ there.
# The batch is {batch}.
"""
START = """\
python BUNDLE/prepare.py model                  # the initialised model and its tokenizer
PYTHONPATH=BUNDLE torchrun --nproc-per-node {world} BUNDLE/train.py BUNDLE/train.yaml dataset=YOUR_DATASET
"""


def parts(recommendation: dict[str, Any], run: RunSpec, world: int = 1) -> Parts:
    """The YAML and what makes its model folder; raises UserError for a family that transformers has no model for."""
    form, batch = granite(recommendation).without_logits(), batch_of(run, world)
    wsd, hidden = _wsd.nearest_to(run, first=run.min_ratio), form.of("hidden")
    text = yaml.safe_dump(arguments(run, wsd, batch, hidden), sort_keys=False)
    yml, init = f"{ARGS}: learning_rate, weight_decay, adam_epsilon", "prepare.py: initialise"
    where = dict.fromkeys(("lr", "weight_decay", "eps"), yml) | {"init_std": init}
    carried, lost = grouped(form, applied(form, hidden), where)
    return Parts(
        files={
            **_folder.files(recommendation, run, form),
            ARGS: HEADER.format(batch=batch) + text,
            "train.py": TRAIN.read_text("utf-8"),
        },
        fields={**_wsd.fields(run, batch, ARGS), **carried, **fields(form)},
        multiplier=wsd.multiplier,
        lost={**lost, **_wsd.lacking(run, "transformers' WSD")},
        form=promised(form, hidden),
        start=START.format(world=world),
    )


def applied(form: Form, hidden: Tensors) -> tuple[Tensors, ...]:
    """Every group as the hidden one, but for what no trainer of transformers decays: norms."""

    def one(g: Tensors) -> Tensors:
        decay = 0.0 if g.role == "vector" else hidden.weight_decay
        return replace(g, lr=hidden.lr, weight_decay=decay, eps=hidden.eps)

    return tuple(one(g) for g in form.groups)


def promised(form: Form, hidden: Tensors) -> Form:
    """What the job is held to: the form with the values that LLaMA-Factory applies."""
    return replace(form, groups=applied(form, hidden))


def arguments(run: RunSpec, wsd: _wsd.Wsd, batch: Batch, hidden: Tensors) -> dict[str, Any]:
    args = _wsd.arguments(run, wsd, batch)
    stable = wsd.steps - wsd.warmup - wsd.decay  # left out, it would be a third of the run
    one = {"learning_rate": hidden.lr, "weight_decay": hidden.weight_decay, "adam_epsilon": hidden.eps}
    return {
        "stage": "pt",
        "do_train": True,
        "finetuning_type": "full",
        "model_name_or_path": "model",
        "dataset": run.trunk.source.corpus,
        "cutoff_len": run.trunk.body.seq_len,
        "packing": True,
        "output_dir": "out",
        **args,
        "lr_scheduler_kwargs": {"num_stable_steps": stable, **args["lr_scheduler_kwargs"]},
        **one,
    }


def fields(form: Form) -> dict[str, Carried]:
    base = "every tensor's: the hidden matrices', with the readout's divisor in the embedding"
    folded = f"one learning rate: embedding_multiplier {form.embedding:g}, logits_scaling 1"
    clip = "the gradients' norm weighs the embedding by the readout's divisor more"
    return {
        **exact(dict.fromkeys(("config", "dropout"), "config.json")),
        "multipliers": Carried("exact", "config.json", folded),
        "lr": Carried("exact", f"{ARGS}: learning_rate", base),
        "eps": Carried("exact", f"{ARGS}: adam_epsilon", base),
        "weight_decay": Carried("exact", f"{ARGS}: weight_decay", base),
        "clip": Carried("approximated", f"{ARGS}: max_grad_norm", clip),
        "data": Carried("impossible", f"{ARGS}: dataset", "the dataset is the job's own"),
    }
