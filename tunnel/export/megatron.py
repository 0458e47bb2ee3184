"""Megatron-LM (core 0.19): its command-line arguments, with its own muP.

Read and measured on megatron-core 0.19.2. `--use-mup` scales logits, attention, initial variance and the hidden
matrices' learning rate by the width's ratio; the residual multiplier is the stream's unit, in --mup-embedding-mult.
What the flags cannot say (per-role weight decay and epsilon, the initial std of what writes to the stream),
`tunnel_megatron.py` does, from one line in the training script.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tunnel.export import _wsd
from tunnel.export._forms import Form, granite
from tunnel.export._parts import Batch, Carried, Parts, batch_of, grouped
from tunnel.export.hf import MIXTURES, config_of
from tunnel.families import moe
from tunnel.run import RunSpec

CARRIES = (
    "shape, experts, multipliers, muP (--use-mup)",
    "schedule, batch, Adam, clipping, precision (megatron.args)",
    "per-role lr, weight decay and eps, init std of what writes to the stream (tunnel_megatron.py)",
)
CANNOT_CARRY = ("exponential decay", "data and data order")

DECAYS = {"1-sqrt": "minus_sqrt", "linear": "linear", "cosine": "cosine"}
PATTERNS = {
    "embedding": r"word_embeddings\.weight$|output_layer\.weight$",
    "hidden": r"linear_(qkv|proj|fc1|fc2)\.weight\d*$",  # experts that are computed together have a number each
    "router": r"router\.weight$",
    "vector": r"norm\.weight$|layer_norm_weight$",
}
ARGS = "megatron.args"
APPLIED = "tunnel_megatron.py: apply"
OVERRIDDEN = dict.fromkeys(("lr", "eps", "weight_decay"), "tunnel_megatron.py: overrides")
WHERE = {
    "multipliers": "--use-mup, --mup-embedding-mult, --mup-attn-scale-power",
    "dropout": "--attention-dropout",
    "lr": "--lr",
    "eps": "--adam-eps",
    "weight_decay": "--weight-decay",
    "beta1": "--adam-beta1",
    "beta2": "--adam-beta2",
    "clip": "--clip-grad",
    "precision": "--bf16",
    "tokens": "--train-iters",
    "schedule": "--lr-decay-style WSD",
    "warmup": "--lr-warmup-iters",
    "decay": "--lr-wsd-decay-iters",
    "decay_shape": "--lr-wsd-decay-style",
    "min_ratio": "--min-lr, which --use-mup scales by role",
    "seed": "--seed",
    "data": "--data-path, --tokenizer-type",
}
TAKES = MIXTURES
HOOK = Path(__file__).with_name("_megatron_hook.py")
START = """\
# In pretrain_gpt.py, before pretrain(...):  import tunnel_megatron; tunnel_megatron.apply()
PYTHONPATH=BUNDLE torchrun --nproc-per-node {world} pretrain_gpt.py $(grep -v '^#' BUNDLE/megatron.args) \\
    --data-path YOUR_DATASET --save checkpoints
"""


def parts(recommendation: dict[str, Any], run: RunSpec, world: int = 1) -> Parts:
    """The arguments and the hook; raises UserError for a family, or a rule, that Megatron's muP cannot be."""
    config_of(recommendation, run, TAKES)
    form, batch = granite(recommendation).without_residual().named(PATTERNS), batch_of(run, world)
    wsd = _wsd.nearest_to(run)
    carried, lost = grouped(form, form.groups, OVERRIDDEN | {"init_std": f"{ARGS}, {APPLIED}"})
    lines = [line(flag, value) for flag, value in arguments(run, wsd, batch, form).items()]
    text = f"# Megatron-LM's arguments. The batch is {batch}.\n" + "\n".join(lines) + "\n"
    return Parts(
        files={ARGS: text, "tunnel_megatron.py": HOOK.read_text("utf-8")},
        fields={**carried, **fields(run, batch, WHERE, ARGS), **balanced(run)},
        multiplier=wsd.multiplier,
        lost={**lost, **_wsd.lacking(run, "Megatron")},
        form=form,
        start=START.format(world=world),
    )


def experts(run: RunSpec) -> dict[str, Any]:
    """A mixture's flags. Megatron chooses, then takes the softmax of the chosen, as Granite does, without a flag."""
    m, body = run.trunk.shape.mixture, run.trunk.body
    if m is None:
        return {}
    return {
        "--num-experts": m.experts,
        "--moe-router-topk": m.top_k,
        "--moe-ffn-hidden-size": moe.expert(run.trunk.shape, body),
        "--moe-router-load-balancing-type": "aux_loss",
        "--moe-aux-loss-coeff": run.trunk.settings.balance / run.trunk.shape.depth,
    }


def balanced(run: RunSpec) -> dict[str, Carried]:
    """The balance loss, where there are experts: Megatron adds one of each layer, transformers has one of them all."""
    why = "the mean of one a layer, where transformers has one over the loads of all layers"
    place = f"{ARGS}: --moe-aux-loss-coeff"
    return {"balance": Carried("approximated", place, why)} if run.trunk.shape.mixture is not None else {}


def line(flag: str, value: Any) -> str:
    return flag if value is True else f"{flag} {value}"


def arguments(run: RunSpec, wsd: _wsd.Wsd, batch: Batch, form: Form) -> dict[str, Any]:
    """By flag; the value True is a switch's."""
    shape, body, s = run.trunk.shape, run.trunk.body, run.trunk.settings
    heads, base = shape.width // body.head_dim, form.of("embedding")
    groups = {"--group-query-attention": True, "--num-query-groups": shape.kv_heads} if shape.kv_heads else {}
    return {
        "--num-layers": shape.depth,
        "--hidden-size": shape.width,
        "--ffn-hidden-size": round(body.ffn_ratio * shape.width),
        **experts(run),
        "--num-attention-heads": heads,
        "--kv-channels": body.head_dim,
        **groups,
        "--seq-length": body.seq_len,
        "--max-position-embeddings": body.seq_len,
        "--vocab-size": body.vocab,
        "--make-vocab-size-divisible-by": 1,
        "--normalization": "RMSNorm",
        "--norm-epsilon": form.norm_eps,
        "--swiglu": True,
        "--disable-bias-linear": True,
        "--position-embedding-type": "rope",
        "--rotary-base": 10000,
        "--attention-dropout": s.dropout,
        "--hidden-dropout": 0.0,
        "--use-mup": True,
        "--mup-base-hidden-size": round(shape.width / form.logits),
        "--mup-embedding-mult": form.embedding,
        "--mup-attn-scale-power": 0.5,
        "--init-method-std": form.of("hidden").init_std * math.sqrt(form.logits),
        "--embedding-init-method-std": base.init_std,
        "--micro-batch-size": batch.per_device,
        "--global-batch-size": batch.sequences,
        "--train-iters": wsd.steps,
        "--lr": base.lr,
        "--min-lr": base.lr * wsd.floor,
        "--lr-warmup-iters": wsd.warmup,
        "--lr-decay-style": "WSD",
        "--lr-decay-iters": wsd.steps,
        "--lr-wsd-decay-iters": wsd.decay,
        "--lr-wsd-decay-style": DECAYS[wsd.shape],
        "--weight-decay": base.weight_decay,
        "--adam-beta1": s.beta1,
        "--adam-beta2": s.beta2,
        "--adam-eps": base.eps,
        "--clip-grad": s.clip,
        "--seed": run.trunk.seed,
        **({"--bf16": True} if s.precision == "bf16" else {}),
        "--tokenizer-type": "NullTokenizer",
        "--no-rope-fusion": True,
        "--no-create-attention-mask-in-dataloader": True,
    }


def fields(run: RunSpec, batch: Batch, where: Mapping[str, str], file: str) -> dict[str, Carried]:
    """How the run comes over, by where each field stands in `file`; Bridge's are the same, elsewhere."""
    late = "Megatron's warmup starts at 0 and counts an iteration less"
    clip = "the stream's unit is the residual multiplier: the embedding weighs less in the gradients' norm"
    at = {name: f"{file}: {place}" for name, place in where.items()}
    return {
        **_wsd.carried(run, at, late),
        "config": Carried("exact", file),
        "clip": Carried("approximated", at["clip"], clip),
        "batch_tokens": Carried("exact", f"{file}: {batch}"),
        "seed": Carried("exact", at["seed"], "another generator: the same values on average"),
        "data": Carried("impossible", where["data"], "dataset and tokenizer are the job's own"),
    }
