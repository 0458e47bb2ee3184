"""NeMo Automodel 0.7: its YAML, with `param_group_overrides`; best effort, no test asks the real package.

Read on nemo-automodel 0.7.0: groups are multiples of a base learning rate and weight decay, which its copy of
Megatron's scheduler applies at every step; the model is transformers' Granite, from prepare.py's folder.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import yaml

from tunnel.export import _folder, _wsd, megatron
from tunnel.export._forms import Form, granite
from tunnel.export._parts import Batch, Carried, Parts, batch_of, exact, grouped
from tunnel.run import RunSpec

BEST_EFFORT = True
CARRIES = (
    "shape, multipliers and init std (config.json and prepare.py)",
    "per-role lr and weight decay (param_group_overrides)",
    "schedule, batch, Adam, clipping (automodel.yaml)",
)
CANNOT_CARRY = ("per-role eps", "exponential decay", "data and data order")

ARGS = "automodel.yaml"
HEADER = "# NeMo Automodel. `python BUNDLE/prepare.py model` makes model/. The batch is {batch}.\n"
START = """\
python BUNDLE/prepare.py model                  # the initialised model and its tokenizer
automodel BUNDLE/automodel.yaml --nproc-per-node {world} --dataset.path YOUR_DATASET
"""


def parts(recommendation: dict[str, Any], run: RunSpec, world: int = 1) -> Parts:
    """The YAML and what makes its model folder; raises UserError for a family that transformers has no model for."""
    form, batch, wsd = granite(recommendation), batch_of(run, world), _wsd.nearest_to(run)
    given = tuple(replace(g, eps=form.of("hidden").eps) for g in form.groups)
    where = dict.fromkeys(("lr", "weight_decay"), f"{ARGS}: param_group_overrides")
    where |= {"eps": f"{ARGS}: optimizer.eps", "init_std": "prepare.py: initialise"}
    carried, lost = grouped(form, given, where)
    text = yaml.safe_dump(arguments(run, wsd, batch, form), sort_keys=False)
    return Parts(
        files={**_folder.files(recommendation, run, form), ARGS: HEADER.format(batch=batch) + text},
        fields={**carried, **fields(run, batch)},
        multiplier=wsd.multiplier,
        lost={**lost, **_wsd.lacking(run, "NeMo Automodel")},
        form=replace(form, groups=given),
        start=START.format(world=world),
    )


def arguments(run: RunSpec, wsd: _wsd.Wsd, batch: Batch, form: Form) -> dict[str, Any]:
    s, base = run.trunk.settings, form.of("embedding")
    decay = base.weight_decay or 1.0
    groups = [{"pattern": g.pattern, "lr_mult": g.lr / base.lr, "wd_mult": g.weight_decay / decay} for g in form.groups]
    return {
        "recipe": "TrainFinetuneRecipeForNextTokenPrediction",
        "seed": run.trunk.seed,
        "model": {
            "_target_": "nemo_automodel.NeMoAutoModelForCausalLM.from_pretrained",
            "pretrained_model_name_or_path": "model",
        },
        "step_scheduler": {
            "global_batch_size": batch.sequences,
            "local_batch_size": batch.per_device,
            "max_steps": wsd.steps,
        },
        "optimizer": {
            "_target_": "torch.optim.AdamW",
            "lr": base.lr,
            "betas": [s.beta1, s.beta2],
            "eps": form.of("hidden").eps,
            "weight_decay": base.weight_decay,
            "param_group_overrides": groups,
        },
        "lr_scheduler": {
            "lr_decay_style": "WSD",
            "lr_warmup_steps": wsd.warmup,
            "lr_decay_steps": wsd.steps,
            "wsd_decay_steps": wsd.decay,
            "lr_wsd_decay_style": megatron.DECAYS[wsd.shape],
            "init_lr": 0.0,
            "min_lr": base.lr * wsd.floor,
        },
        "clip_grad_norm": {"max_norm": s.clip},
        "dataset": {"seq_length": run.trunk.body.seq_len},
    }


def fields(run: RunSpec, batch: Batch) -> dict[str, Carried]:
    optimizer, schedule = f"{ARGS}: optimizer", f"{ARGS}: lr_scheduler"
    where = {
        **dict.fromkeys(("config", "multipliers", "dropout"), "config.json"),
        **dict.fromkeys(("lr", "weight_decay", "eps", "beta1", "beta2"), optimizer),
        "clip": f"{ARGS}: clip_grad_norm",
        "tokens": f"{ARGS}: step_scheduler.max_steps",
        "batch_tokens": f"{ARGS}: {batch}",
    }
    shape = dict.fromkeys(("warmup", "schedule", "decay", "decay_shape", "min_ratio"), schedule)
    return {
        **exact(where),
        **_wsd.carried(run, shape, "its warmup starts at 0 and counts a step less"),
        "precision": Carried("approximated", f"{ARGS}: model", "as its own recipe sets it"),
        "seed": Carried("exact", f"{ARGS}: seed", "the weights are prepare.py's; the data's order is its own"),
        "data": Carried("impossible", f"{ARGS}: dataset", "the dataset is the job's own"),
    }
