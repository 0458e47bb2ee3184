"""torchtitan 0.3: a Python recipe, `--module tunnel_recipe --config target`, with Granite's multipliers in its model.

Read and measured on torchtitan 0.3.0. Its warmup counts as ours does and its decay starts a step later and is a step
ahead, so its own scheduler is our curve, step by step.
"""

from __future__ import annotations

from collections.abc import Callable
from json import dumps
from pathlib import Path
from typing import Any

from tunnel.export import _tokenizer, _wsd
from tunnel.export._forms import Form, granite
from tunnel.export._parts import Batch, Carried, Parts, batch_of, exact, grouped, steps_of, undropped
from tunnel.export.hf import config_of
from tunnel.run import RunSpec
from tunnel.schedule import SHAPES

CARRIES = (
    "shape and multipliers (classes in tunnel_recipe.py)",
    "per-role lr, weight decay, eps and init std (param_groups, param_init)",
    "schedule, batch, Adam, clipping, precision",
)
CANNOT_CARRY = ("exponential decay", "pipeline parallelism (tied embeddings)", "data and data order")

DECAYS = {"1-sqrt": "sqrt", "linear": "linear", "cosine": "cosine"}
PATTERNS = {
    "embedding": r"tok_embeddings\.weight$|lm_head\.weight$",
    "hidden": r"(wq|wk|wv|wo|w1|w2|w3)\.weight$",
    "vector": r"norm\.weight$",
}
RECIPE = Path(__file__).with_name("_torchtitan_recipe.py")
ROPE_THETA = 10000.0  # of GraniteConfig, which the family leaves as it is; a test reads it there
START = """\
PYTHONPATH=BUNDLE torchrun --nproc-per-node {world} -m torchtitan.train --module tunnel_recipe --config target \\
    --dataloader.dataset YOUR_DATASET
"""


def parts(recommendation: dict[str, Any], run: RunSpec, world: int = 1) -> Parts:
    """The recipe and its numbers; raises UserError for a family that is no decoder of transformers."""
    config_of(recommendation, run)
    form, batch, wsd = granite(recommendation).named(PATTERNS), batch_of(run, world), schedule(run)
    recipe = {"model": model(run, form), "schedule": wsd, "training": training(run, batch)}
    applied, lost = grouped(
        form, form.groups, dict.fromkeys(("lr", "weight_decay", "eps"), GROUPS) | {"init_std": INIT}
    )
    return Parts(
        files={
            "tunnel_recipe.py": RECIPE.read_text("utf-8"),
            "recipe.json": dumps(recipe, indent=1) + "\n",
            **_tokenizer.files(run.trunk.source.tokenizer),
        },
        fields={**applied, **fields(run, batch)},
        multiplier=stepped(wsd),
        lost={**lost, **_wsd.lacking(run, "torchtitan"), **undropped(run, "torchtitan's")},
        form=form,
        start=START.format(world=world),
    )


GROUPS, INIT = "tunnel_recipe.py: param_groups", "tunnel_recipe.py: param_init"


def model(run: RunSpec, form: Form) -> dict[str, Any]:
    shape, body = run.trunk.shape, run.trunk.body
    return {
        "dim": shape.width,
        "n_layers": shape.depth,
        "n_heads": shape.width // body.head_dim,
        "n_kv_heads": shape.kv_heads or shape.width // body.head_dim,
        "head_dim": body.head_dim,
        "hidden_dim": round(body.ffn_ratio * shape.width),
        "vocab": body.vocab,
        "seq_len": body.seq_len,
        "rope_theta": ROPE_THETA,
        "norm_eps": form.norm_eps,
        "embedding_multiplier": form.embedding,
        "residual_multiplier": form.residual,
        "logits_scaling": form.logits,
        "embedding_std": form.of("embedding").init_std,
        "hidden_std": form.of("hidden").init_std,
    }


def schedule(run: RunSpec) -> dict[str, Any]:
    """The arguments of LRSchedulersContainer (steps). Its decay is round(total_steps · decay_ratio) steps long."""
    steps, batch = steps_of(run), run.trunk.settings.batch_tokens
    return {
        "warmup_steps": run.trunk.settings.warmup // batch,
        "total_steps": steps,
        "decay_ratio": run.decay_tokens // batch / steps,
        "decay_type": DECAYS[_wsd.nearest(run.decay_shape, _wsd.DECAYS)],
        "min_lr_factor": run.min_ratio,
    }


def stepped(wsd: dict[str, Any]) -> Callable[[int], float]:
    """`LRSchedulersContainer` as arithmetic: the multiplier of a step."""
    total, warmup, floor = wsd["total_steps"], wsd["warmup_steps"], wsd["min_lr_factor"]
    decay = min(round(total * wsd["decay_ratio"]), total - warmup)
    shape = next(SHAPES[ours] for ours, theirs in DECAYS.items() if theirs == wsd["decay_type"])

    def multiplier(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        if step < total + 1 - decay:
            return 1.0
        return floor + (1 - floor) * shape((step + 1 - (total + 1 - decay)) / decay)

    return multiplier


def training(run: RunSpec, batch: Batch) -> dict[str, Any]:
    s = run.trunk.settings
    return {
        "local_batch_size": batch.per_device,
        "global_batch_size": batch.sequences,
        "seq_len": run.trunk.body.seq_len,
        "steps": steps_of(run),
        "clip": s.clip,
        "beta1": s.beta1,
        "beta2": s.beta2,
        "precision": "bfloat16" if s.precision == "bf16" else "float32",
        "seed": run.trunk.seed,
        "dataset": run.trunk.source.corpus,
    }


def fields(run: RunSpec, batch: Batch) -> dict[str, Carried]:
    recipe = "recipe.json"
    schedule = {
        "schedule": f"{recipe}: schedule",
        "warmup": f"{recipe}: schedule.warmup_steps",
        "decay_shape": f"{recipe}: schedule.decay_type",
        "min_ratio": f"{recipe}: schedule.min_lr_factor",
    }
    return {
        **exact({name: GROUPS for name in ("lr", "eps", "weight_decay", "beta1", "beta2")}),
        "config": Carried("exact", f"{recipe}: model"),
        "multipliers": Carried("exact", "tunnel_recipe.py: ScaledEmbedding, Block, ScaledNorm"),
        "clip": Carried("exact", f"{recipe}: training.clip"),
        "precision": Carried("exact", f"{recipe}: training.precision", "weights and optimizer stay fp32"),
        "tokens": Carried("exact", f"{recipe}: training.steps"),
        "batch_tokens": Carried("exact", f"{recipe}: {batch}"),
        **_wsd.carried(run, schedule),
        "decay": Carried("exact", f"{recipe}: schedule.decay_ratio", "of total_steps, which it rounds back to steps"),
        "seed": Carried("exact", f"{recipe}: training.seed", "another generator: the same values on average"),
        "data": Carried("impossible", "--dataloader.dataset", "the dataset is the job's own; documents are kept apart"),
    }
