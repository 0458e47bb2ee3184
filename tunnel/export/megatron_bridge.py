"""Megatron-Bridge 0.6 (on megatron-core 0.19): its YAML over the bare GPT recipe; best effort.

Read on Megatron-Bridge 0.6.2, whose config has every key of ours as a field. It trains by Megatron's own muP, scheduler
and groups, so the bundle is `megatron`'s, with each flag where Bridge has it. Its scheduler sets the weight decay anew
at every step, from start_weight_decay.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from tunnel.export import _wsd, megatron
from tunnel.export._parts import Parts, batch_of
from tunnel.export.hf import config_of
from tunnel.run import RunSpec

BEST_EFFORT = True
CARRIES = (
    "shape, multipliers, muP (model.use_mup)",
    "schedule, batch, Adam, clipping, precision (bridge.yaml)",
    "per-role lr, weight decay and eps, init std of what writes to the stream (tunnel_megatron.py)",
)
CANNOT_CARRY = megatron.CANNOT_CARRY

ARGS = "bridge.yaml"
TRAIN = Path(__file__).with_name("_megatron_bridge_train.py")
START = """\
PYTHONPATH=BUNDLE torchrun --nproc-per-node {world} BUNDLE/train.py dataset.data_path=YOUR_DATASET \\
    checkpoint.save=checkpoints
"""
PLACES: dict[str, tuple[str, ...]] = {  # of Megatron-LM's flags; none where Bridge's own default is ours
    "--num-layers": ("model.num_layers",),
    "--hidden-size": ("model.hidden_size",),
    "--ffn-hidden-size": ("model.ffn_hidden_size",),
    "--num-attention-heads": ("model.num_attention_heads",),
    "--kv-channels": ("model.kv_channels",),
    "--group-query-attention": (),
    "--num-query-groups": ("model.num_query_groups",),
    "--seq-length": ("model.seq_length", "dataset.seq_length"),
    "--max-position-embeddings": (),
    "--vocab-size": ("model.vocab_size", "tokenizer.vocab_size"),
    "--make-vocab-size-divisible-by": ("model.make_vocab_size_divisible_by",),
    "--normalization": ("model.normalization",),
    "--norm-epsilon": ("model.layernorm_epsilon",),
    "--swiglu": ("model.gated_linear_unit",),
    "--disable-bias-linear": (),
    "--position-embedding-type": ("model.position_embedding_type",),
    "--rotary-base": ("model.rotary_base",),
    "--attention-dropout": ("model.attention_dropout",),
    "--hidden-dropout": ("model.hidden_dropout",),
    "--use-mup": ("model.use_mup",),
    "--mup-base-hidden-size": ("model.mup_base_hidden_size",),
    "--mup-embedding-mult": ("model.mup_embedding_mult",),
    "--mup-attn-scale-power": ("model.mup_attn_scale_power",),
    "--init-method-std": ("model.init_method_std",),
    "--embedding-init-method-std": ("model.embedding_init_method_std",),
    "--micro-batch-size": ("train.micro_batch_size",),
    "--global-batch-size": ("train.global_batch_size",),
    "--train-iters": ("train.train_iters",),
    "--lr": ("optimizer.lr",),
    "--min-lr": ("optimizer.min_lr",),
    "--weight-decay": ("optimizer.weight_decay", "scheduler.start_weight_decay", "scheduler.end_weight_decay"),
    "--adam-beta1": ("optimizer.adam_beta1",),
    "--adam-beta2": ("optimizer.adam_beta2",),
    "--adam-eps": ("optimizer.adam_eps",),
    "--clip-grad": ("optimizer.clip_grad",),
    "--lr-warmup-iters": ("scheduler.lr_warmup_iters",),
    "--lr-decay-style": ("scheduler.lr_decay_style",),
    "--lr-decay-iters": ("scheduler.lr_decay_iters",),
    "--lr-wsd-decay-iters": ("scheduler.lr_wsd_decay_iters",),
    "--lr-wsd-decay-style": ("scheduler.lr_wsd_decay_style",),
    "--seed": ("rng.seed", "dataset.random_seed"),
    "--bf16": ("optimizer.bf16",),
    "--tokenizer-type": ("tokenizer.tokenizer_type",),
    "--no-rope-fusion": (),
    "--no-create-attention-mask-in-dataloader": (),
}
WHERE = {
    "multipliers": "model.use_mup, mup_embedding_mult, mup_attn_scale_power",
    "dropout": "model.attention_dropout",
    "lr": "optimizer.lr",
    "eps": "optimizer.adam_eps",
    "weight_decay": "optimizer.weight_decay, scheduler.start_weight_decay",
    "beta1": "optimizer.adam_beta1",
    "beta2": "optimizer.adam_beta2",
    "clip": "optimizer.clip_grad",
    "precision": "mixed_precision",
    "tokens": "train.train_iters",
    "schedule": "scheduler",
    "warmup": "scheduler.lr_warmup_iters",
    "decay": "scheduler.lr_wsd_decay_iters",
    "decay_shape": "scheduler.lr_wsd_decay_style",
    "min_ratio": "optimizer.min_lr, which use_mup scales by role",
    "seed": "rng.seed",
    "data": "dataset.data_path, tokenizer",
}


def parts(recommendation: dict[str, Any], run: RunSpec, world: int = 1) -> Parts:
    """The YAML, the script and Megatron's hook; raises UserError for what Megatron's muP cannot be."""
    config_of(recommendation, run)  # of dense bodies alone
    theirs, batch = megatron.parts(recommendation, run, world), batch_of(run, world)
    assert theirs.form is not None
    flags = megatron.arguments(run, _wsd.nearest_to(run), batch, theirs.form)
    text = yaml.safe_dump(sections(flags), sort_keys=False)
    kept = {name: f for name, f in theirs.fields.items() if name.startswith("groups.")}
    init = replace(theirs.fields["init_std"], where=f"{ARGS}, {megatron.APPLIED}")
    return replace(
        theirs,
        files={
            ARGS: f"# Megatron-Bridge's overrides of its bare GPT recipe. The batch is {batch}.\n{text}",
            "train.py": TRAIN.read_text("utf-8"),
            "tunnel_megatron.py": theirs.files["tunnel_megatron.py"],
        },
        fields={**kept, "init_std": init, **megatron.fields(run, batch, WHERE, ARGS)},
        start=START.format(world=world),
    )


def sections(flags: dict[str, Any]) -> dict[str, Any]:
    """Megatron-LM's arguments as Bridge's config has them; a flag that PLACES lacks is an error, never a guess."""
    found: dict[str, Any] = {"mixed_precision": "bf16_mixed" if "--bf16" in flags else None}
    pairs = [(place, value) for flag, value in {"--bf16": False, **flags}.items() for place in PLACES[flag]]
    pairs += [("model.add_bias_linear", False), ("model.share_embeddings_and_output_weights", True)]
    for place, value in pairs:
        section, key = place.split(".")
        found.setdefault(section, {})[key] = value
    return found
