"""Megatron-LM (core 0.19): its command-line arguments, with its own muP.

Read and measured on megatron-core 0.19.2. `--use-mup` scales logits, attention, initial variance and the hidden
matrices' learning rate by the width's ratio; the residual multiplier is the stream's unit, in --mup-embedding-mult.
What the flags cannot say (per-role weight decay and epsilon, the initial std of what writes to the stream),
`tunnel_megatron.py` does, from one line in the training script.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tunnel.export import _wsd
from tunnel.export._forms import Form, granite
from tunnel.export._parts import Batch, Carried, Parts, batch_of, grouped, steps_of
from tunnel.export.hf import config_of
from tunnel.run import RunSpec
from tunnel.schedule import SHAPES

CARRIES = (
    "shape, multipliers, muP (--use-mup)",
    "schedule, batch, Adam, clipping, precision (megatron.args)",
    "per-role lr, weight decay and eps, init std of what writes to the stream (tunnel_megatron.py)",
)
CANNOT_CARRY = ("exponential decay", "data and data order")

DECAYS = {"1-sqrt": "minus_sqrt", "linear": "linear", "cosine": "cosine"}
PATTERNS = {
    "embedding": r"word_embeddings\.weight$|output_layer\.weight$",
    "hidden": r"linear_(qkv|proj|fc1|fc2)\.weight$",
    "vector": r"norm\.weight$|layer_norm_weight$",
}
ARGS = "megatron.args"
HOOK = Path(__file__).with_name("_megatron_hook.py")
START = """\
# In pretrain_gpt.py, before pretrain(...):  import tunnel_megatron; tunnel_megatron.apply()
PYTHONPATH=BUNDLE torchrun --nproc-per-node {world} pretrain_gpt.py $(grep -v '^#' BUNDLE/megatron.args) \\
    --data-path YOUR_DATASET --save checkpoints
"""


def parts(recommendation: dict[str, Any], run: RunSpec, world: int = 1) -> Parts:
    """The arguments and the hook; raises UserError for a family, or a rule, that Megatron's muP cannot be."""
    config_of(recommendation, run)
    form, batch = granite(recommendation).without_residual().named(PATTERNS), batch_of(run, world)
    wsd, hook = schedule(run), "tunnel_megatron.py"
    where = dict.fromkeys(("lr", "eps", "weight_decay"), f"{hook}: overrides") | {"init_std": f"{ARGS}, {hook}"}
    carried, lost = grouped(form, form.groups, where)
    lines = [f"{flag} {value}".strip() for flag, value in arguments(run, wsd, batch, form).items()]
    text = f"# Megatron-LM's arguments. The batch is {batch}.\n" + "\n".join(lines) + "\n"
    return Parts(
        files={ARGS: text, "tunnel_megatron.py": HOOK.read_text("utf-8")},
        fields={**carried, **fields(run, batch)},
        multiplier=stepped(wsd),
        lost={**lost, **_wsd.lacking(run, tuple(DECAYS), "Megatron")},
        form=form,
        start=START.format(world=world),
    )


def schedule(run: RunSpec) -> dict[str, Any]:
    """The arguments that come nearest to our curve (iterations); its warmup counts a step less, from 0, as `_wsd`."""
    batch = run.trunk.settings.batch_tokens
    return {
        "warmup": max(run.trunk.settings.warmup // batch - 1, 0),
        "iterations": steps_of(run),
        "decay": run.decay_tokens // batch,
        "style": DECAYS[_wsd.nearest(run.decay_shape, tuple(DECAYS))],
        "floor": run.min_ratio,
    }


def stepped(wsd: dict[str, Any]) -> Callable[[int], float]:
    """`OptimizerParamScheduler` as arithmetic: the multiplier of an iteration."""
    warmup, start, floor = wsd["warmup"], wsd["iterations"] - wsd["decay"], wsd["floor"]
    shape = next(SHAPES[ours] for ours, theirs in DECAYS.items() if theirs == wsd["style"])

    def multiplier(step: int) -> float:
        if warmup and step <= warmup:
            return step / warmup
        if step <= start:
            return 1.0
        return floor + (1 - floor) * shape((step - start) / wsd["decay"])

    return multiplier


def arguments(run: RunSpec, wsd: dict[str, Any], batch: Batch, form: Form) -> dict[str, Any]:
    """By flag; the value "" is a switch's."""
    shape, body, s = run.trunk.shape, run.trunk.body, run.trunk.settings
    heads, base = shape.width // body.head_dim, form.of("embedding")
    groups = {"--group-query-attention": "", "--num-query-groups": shape.kv_heads} if shape.kv_heads else {}
    return {
        "--num-layers": shape.depth,
        "--hidden-size": shape.width,
        "--ffn-hidden-size": round(body.ffn_ratio * shape.width),
        "--num-attention-heads": heads,
        "--kv-channels": body.head_dim,
        **groups,
        "--seq-length": body.seq_len,
        "--max-position-embeddings": body.seq_len,
        "--vocab-size": body.vocab,
        "--make-vocab-size-divisible-by": 1,
        "--normalization": "RMSNorm",
        "--norm-epsilon": repr(form.norm_eps),
        "--swiglu": "",
        "--disable-bias-linear": "",
        "--position-embedding-type": "rope",
        "--rotary-base": 10000,
        "--attention-dropout": s.dropout,
        "--hidden-dropout": 0.0,
        "--use-mup": "",
        "--mup-base-hidden-size": round(shape.width / form.logits),
        "--mup-embedding-mult": repr(form.embedding),
        "--mup-attn-scale-power": 0.5,
        "--init-method-std": repr(form.of("hidden").init_std * math.sqrt(form.logits)),
        "--embedding-init-method-std": repr(base.init_std),
        "--micro-batch-size": batch.per_device,
        "--global-batch-size": batch.sequences,
        "--train-iters": wsd["iterations"],
        "--lr": repr(base.lr),
        "--min-lr": repr(base.lr * wsd["floor"]),
        "--lr-warmup-iters": wsd["warmup"],
        "--lr-decay-style": "WSD",
        "--lr-decay-iters": wsd["iterations"],
        "--lr-wsd-decay-iters": wsd["decay"],
        "--lr-wsd-decay-style": wsd["style"],
        "--weight-decay": repr(base.weight_decay),
        "--adam-beta1": s.beta1,
        "--adam-beta2": s.beta2,
        "--adam-eps": repr(base.eps),
        "--clip-grad": s.clip,
        "--seed": run.trunk.seed,
        **({"--bf16": ""} if s.precision == "bf16" else {}),
        "--tokenizer-type": "NullTokenizer",
        "--no-rope-fusion": "",
        "--no-create-attention-mask-in-dataloader": "",
    }


def fields(run: RunSpec, batch: Batch) -> dict[str, Carried]:
    known, short = run.decay_shape in DECAYS, run.trunk.settings.warmup > run.trunk.settings.batch_tokens
    clip = "the stream's unit is the residual multiplier: the embedding weighs less in the gradients' norm"
    return {
        "config": Carried("exact", ARGS),
        "multipliers": Carried("exact", f"{ARGS}: --use-mup, --mup-embedding-mult, --mup-attn-scale-power"),
        "lr": Carried("exact", f"{ARGS}: --lr"),
        "eps": Carried("exact", f"{ARGS}: --adam-eps"),
        "weight_decay": Carried("exact", f"{ARGS}: --weight-decay"),
        "beta1": Carried("exact", f"{ARGS}: --adam-beta1"),
        "beta2": Carried("exact", f"{ARGS}: --adam-beta2"),
        "clip": Carried("approximated", f"{ARGS}: --clip-grad", clip),
        "precision": Carried("exact", f"{ARGS}: --bf16"),
        "tokens": Carried("exact", f"{ARGS}: --train-iters"),
        "batch_tokens": Carried("exact", f"{ARGS}: {batch}"),
        "schedule": Carried("approximated" if short or not known else "exact", f"{ARGS}: --lr-decay-style WSD"),
        "warmup": Carried(
            "approximated" if short else "exact",
            f"{ARGS}: --lr-warmup-iters",
            "Megatron's warmup starts at 0 and counts an iteration less" if short else "",
        ),
        "decay": Carried("exact", f"{ARGS}: --lr-wsd-decay-iters"),
        "decay_shape": Carried(
            "exact" if known else "approximated",
            f"{ARGS}: --lr-wsd-decay-style",
            "" if known else f"no {run.decay_shape} there",
        ),
        "min_ratio": Carried("exact", f"{ARGS}: --min-lr, which --use-mup scales by role"),
        "seed": Carried("exact", f"{ARGS}: --seed", "another generator: the same values on average"),
        "data": Carried("impossible", "--data-path, --tokenizer-type", "dataset and tokenizer are the job's own"),
    }
