"""OLMo-core 3.0: Python that builds its config objects from olmo.json.

Read and measured on ai2-olmo-core 3.0.0. Embedding and residual multipliers are its own; the readout's divisor goes
into the tied embedding. Its WSD decays linearly only, and is a step ahead; its ComposableScheduler takes any curve as
straight pieces, counts steps from 1 as our warmup does, and is stepped here.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from json import dumps
from pathlib import Path
from typing import Any

from tunnel.export._forms import Form, granite
from tunnel.export._parts import Batch, Carried, Parts, batch_of, exact, grouped, steps_of, undropped
from tunnel.export.hf import config_of
from tunnel.run import RunSpec

CARRIES = (
    "shape and multipliers (olmo.json)",
    "per-role lr, weight decay and eps (group_overrides)",
    "any schedule, in straight pieces",
    "batch, Adam, clipping, precision",
)
CANNOT_CARRY = ("untruncated initial weights: its normal ends at 3 std", "data and data order")

PATTERNS = {
    "embedding": r"embeddings\.weight$|lm_head\.w_out\.weight$",
    "hidden": r"(w_q|w_k|w_v|w_out|w1|w2|w3)\.weight$",
    "vector": r"norm\.weight$",
}
GLOBS = {
    "embedding": ["embeddings.weight"],
    "hidden": [f"blocks.*.{w}.weight" for w in ("w_q", "w_k", "w_v", "w_out", "w1", "w2", "w3")],
    "vector": ["*norm.weight"],
}
PIECES = 1024  # a decay of so many steps is exact, a longer one falls as much in each: 1-sqrt within 1/4096  *derived*
CUT = 0.98658  # the std of a unit normal that is cut at ±3, as its initial weights are  *derived*
TRAIN = Path(__file__).with_name("_olmo_core_train.py")
START = """\
PYTHONPATH=BUNDLE torchrun --nproc-per-node {world} BUNDLE/train.py checkpoints YOUR_TOKENS.npy
"""


def parts(recommendation: dict[str, Any], run: RunSpec, world: int = 1) -> Parts:
    """The script and its numbers; raises UserError for a family that is no decoder of transformers."""
    config_of(recommendation, run)
    form, batch, knots = granite(recommendation).without_logits().named(PATTERNS), batch_of(run, world), pieces(run)
    olmo = {
        "model": model(run, form),
        "globs": GLOBS,
        "betas": [run.trunk.settings.beta1, run.trunk.settings.beta2],
        "stages": stages(knots),
        "train": train(run, batch),
    }
    where = dict.fromkeys(("lr", "weight_decay", "eps"), "train.py: group_overrides")
    carried, lost = grouped(form, form.groups, where | {"init_std": "olmo.json: model.init_std, embedding_init_std"})
    cut = replace(carried["init_std"], how="approximated", reason="the same std, of a normal without its tails")
    multiplier = stepped(knots)
    return Parts(
        files={"train.py": TRAIN.read_text("utf-8"), "olmo.json": dumps(olmo, indent=1) + "\n"},
        fields={**carried, "init_std": cut, **fields(run, batch, multiplier)},
        multiplier=multiplier,
        lost={**lost, **undropped(run, "OLMo-core's")},
        form=form,
        start=START.format(world=world),
    )


Knots = list[tuple[int, float]]  # steps as OLMo-core counts them, from 1; multiplier


def pieces(run: RunSpec) -> Knots:
    """The corners of our curve as straight pieces: the warmup's, the decay's start, and every large enough fall."""
    batch = run.trunk.settings.batch_tokens
    warmup, start, last = run.trunk.settings.warmup // batch, run.decay_start // batch, steps_of(run) - 1
    first = [(0, 0.0), (warmup, 1.0)] if warmup else [(0, 1.0)]
    knots, fall = [*first, (start + 1, 1.0)], (1 - run.min_ratio) / PIECES
    for step in range(start + 1, last + 1):
        here = run.multiplier(step * batch)
        after = run.multiplier((step + 1) * batch) if step < last else here
        if step == last or last - start < PIECES or abs(knots[-1][1] - after) > fall:
            knots.append((step + 1, here))
    return [k for i, k in enumerate(knots) if i == 0 or k[0] > knots[i - 1][0]]


def stages(knots: Knots) -> list[dict[str, Any]]:
    """ComposableSchedulerStage's arguments (steps, fractions of every group's own lr)."""
    pairs = pairwise(knots)
    return [
        {"duration": b - a, "shape": "linear", "start_lr_fraction": low, "end_lr_fraction": high}
        for (a, low), (b, high) in pairs
    ]


def stepped(knots: Knots) -> Callable[[int], float]:
    """`ComposableScheduler` as arithmetic: the multiplier of a step, which is its step + 1."""

    ends = [end for end, _ in knots]

    def multiplier(step: int) -> float:
        i = bisect_right(ends, step + 1)
        if i == len(knots):
            return knots[-1][1]
        (a, low), (b, high) = knots[i - 1], knots[i]
        return low + (high - low) * (step + 1 - a) / (b - a)

    return multiplier


def model(run: RunSpec, form: Form) -> dict[str, Any]:
    """Arguments of TransformerConfig.llama_like, and two that its block takes."""
    shape, body = run.trunk.shape, run.trunk.body
    return {
        "d_model": shape.width,
        "vocab_size": body.vocab,
        "n_layers": shape.depth,
        "n_heads": shape.width // body.head_dim,
        "n_kv_heads": shape.kv_heads,
        "head_dim": body.head_dim,
        "hidden_size": round(body.ffn_ratio * shape.width),
        "layer_norm_eps": form.norm_eps,
        "qk_norm": False,
        "rope_theta": 10000,
        "tie_word_embeddings": True,
        "embed_scale": form.embedding,
        "residual_multiplier": form.residual,
        "init_std": form.of("hidden").init_std / CUT,
        "embedding_init_std": form.of("embedding").init_std / CUT,
        "init_seed": run.trunk.seed,
    }


def train(run: RunSpec, batch: Batch) -> dict[str, Any]:
    """Lengths in tokens, but for the steps."""
    s, seq_len = run.trunk.settings, run.trunk.body.seq_len
    return {
        "global_batch_size": s.batch_tokens,
        "rank_microbatch_size": batch.per_device * seq_len,
        "sequence_length": seq_len,
        "steps": steps_of(run),
        "max_grad_norm": s.clip,
        "bf16": s.precision == "bf16",
        "seed": run.trunk.seed,
    }


def fields(run: RunSpec, batch: Batch, own: Callable[[int], float]) -> dict[str, Carried]:
    olmo, groups, size = "olmo.json", "train.py: group_overrides", run.trunk.settings.batch_tokens
    ours = all(abs(own(s) - run.multiplier(s * size)) <= 1e-9 for s in range(steps_of(run)))
    shaped = Carried("exact", f"{olmo}: stages")
    if not ours:
        shaped = replace(shaped, how="approximated", reason=f"in at most {PIECES} straight pieces")
    clip = "the gradients' norm weighs the embedding by the readout's divisor more"
    where = {
        "config": f"{olmo}: model",
        "multipliers": f"{olmo}: embed_scale, residual_multiplier; the readout's in the embedding",
        **dict.fromkeys(("lr", "eps", "weight_decay"), groups),
        **dict.fromkeys(("beta1", "beta2"), f"{olmo}: betas"),
        "precision": f"{olmo}: train.bf16",
        "tokens": f"{olmo}: train.steps",
        "batch_tokens": f"{olmo}: train.global_batch_size; {batch}",
        **dict.fromkeys(("warmup", "decay", "min_ratio"), f"{olmo}: stages"),
    }
    return {
        **exact(where),
        "schedule": shaped,
        "decay_shape": shaped,
        "clip": Carried("approximated", f"{olmo}: train.max_grad_norm", clip),
        "seed": Carried("exact", f"{olmo}: train.seed", "another generator: the same values on average"),
        "data": Carried("impossible", "train.py: paths", "the tokens are the job's own"),
    }
