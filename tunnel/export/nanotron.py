"""nanotron (main of April 2026): its YAML for a plain decoder, with every multiplier in the weights; best effort.

Read, and its parser, scheduler and groups tried, on its main branch at 2411b02 (it calls itself 0.4; the package
index's 0.4 is older, without the 1-sqrt decay). Its config has one learning rate, one initial std and no multipliers,
so the model is `Form.plain`, in the decoder that it calls Qwen2 (no biases; its Llama cannot be initialised there), and
`tunnel_nanotron.py` sets the groups' values, from one line in the training script. Its warmup counts a step less than
ours, from 0; without a warmup its style must be `constant`, and without min_decay_lr nothing would decay.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tunnel.export import _tokenizer, _wsd
from tunnel.export._forms import Form, granite
from tunnel.export._parts import Batch, Carried, Parts, batch_of, exact, grouped, undropped
from tunnel.export.hf import config_of
from tunnel.run import RunSpec

BEST_EFFORT = True
CARRIES = (
    "shape, with the multipliers in the weights (nanotron.yaml)",
    "schedule, batch, Adam, clipping (nanotron.yaml)",
    "per-role lr, weight decay, eps and init std (tunnel_nanotron.py)",
)
CANNOT_CARRY = ("fp32: its attention takes bf16", "exponential decay", "data and data order")

PATTERNS = {
    "out": r"(o|down)_proj\.weight$",
    "embedding": r"token_embedding\.weight|lm_head\.pp_block\.weight",
    "hidden": r"(qkv|gate_up)_proj\.weight$",
    "vector": r"layernorm\.weight$|layer_norm\.pp_block\.weight$",
}
ARGS, HOOK = "nanotron.yaml", "tunnel_nanotron.py"
SCRIPT = Path(__file__).with_name("_nanotron_hook.py")
HEADER = """\
# nanotron. data_stages is where your dataset goes; a bytes tokenizer is in this folder: put its path into tokenizer.
# The batch is {batch}.
"""
START = """\
# In run_train.py, before the trainer is made:  import tunnel_nanotron; tunnel_nanotron.apply()
CUDA_DEVICE_MAX_CONNECTIONS=1 PYTHONPATH=BUNDLE torchrun --nproc-per-node {world} run_train.py \\
    --config-file BUNDLE/nanotron.yaml
"""


def parts(recommendation: dict[str, Any], run: RunSpec, world: int = 1) -> Parts:
    """The YAML and the hook; raises UserError for a family that is no decoder of transformers."""
    config_of(recommendation, run)
    form, batch, wsd = granite(recommendation).plain().named(PATTERNS), batch_of(run, world), _wsd.nearest_to(run)
    where = dict.fromkeys(("lr", "weight_decay", "eps"), f"{HOOK}: groups") | {"init_std": f"{HOOK}: apply"}
    carried, lost = grouped(form, form.groups, where)
    text = yaml.safe_dump(arguments(run, wsd, batch, form), sort_keys=False)
    return Parts(
        files={
            ARGS: HEADER.format(batch=batch) + text,
            HOOK: SCRIPT.read_text("utf-8"),
            **_tokenizer.files(run.trunk.source.tokenizer),
        },
        fields={**carried, **fields(run, batch)},
        multiplier=wsd.multiplier,
        lost={**lost, **_wsd.lacking(run, "nanotron"), **undropped(run, "nanotron's")},
        form=form,
        start=START.format(world=world),
    )


def arguments(run: RunSpec, wsd: _wsd.Wsd, batch: Batch, form: Form) -> dict[str, Any]:
    s, source, base = run.trunk.settings, run.trunk.source, form.of("embedding")
    tokenizer = "tokenizer" if source.tokenizer == "bytes" else source.tokenizer
    data = {"dataset": {"hf_dataset_or_datasets": source.corpus, "text_column_name": "text"}, "seed": run.trunk.seed}
    return {
        "general": {"project": "tunnel", "run": "target", "seed": run.trunk.seed},
        "checkpoints": {"checkpoints_path": "checkpoints", "checkpoint_interval": 1000},
        "parallelism": {"dp": batch.world, "tp": 1, "pp": 1},
        "tokenizer": {"tokenizer_name_or_path": tokenizer},
        "model": {
            "dtype": "bfloat16",
            "init_method": {"std": form.of("hidden").init_std},
            "make_vocab_size_divisible_by": 1,
            "model_config": model(run, form),
        },
        "tokens": {
            "sequence_length": run.trunk.body.seq_len,
            "train_steps": wsd.steps,
            "micro_batch_size": batch.per_device,
            "batch_accumulation_per_replica": batch.accumulation,
        },
        "optimizer": {
            "zero_stage": 0,
            "weight_decay": base.weight_decay,
            "clip_grad": s.clip,
            "accumulate_grad_in_fp32": True,
            "optimizer_factory": {
                "name": "adamW",
                "adam_beta1": s.beta1,
                "adam_beta2": s.beta2,
                "adam_eps": base.eps,
                "torch_adam_is_fused": True,
            },
            "learning_rate_scheduler": {
                "learning_rate": base.lr,
                "lr_warmup_steps": wsd.warmup,
                "lr_warmup_style": "linear" if wsd.warmup else "constant",
                "lr_decay_style": wsd.shape,
                "lr_decay_starting_step": wsd.steps - wsd.decay,
                "lr_decay_steps": wsd.decay,
                "min_decay_lr": base.lr * wsd.floor,
            },
        },
        "data_stages": [{"name": "all of it", "start_training_step": 1, "data": data}],
    }


def model(run: RunSpec, form: Form) -> dict[str, Any]:
    shape, body = run.trunk.shape, run.trunk.body
    heads = shape.width // body.head_dim
    return {
        "is_qwen2_config": True,
        "hidden_size": shape.width,
        "intermediate_size": round(body.ffn_ratio * shape.width),
        "num_hidden_layers": shape.depth,
        "num_attention_heads": heads,
        "num_key_value_heads": shape.kv_heads or heads,
        "attention_bias": False,
        "hidden_act": "silu",
        "rms_norm_eps": form.norm_eps,
        "rope_theta": 10000.0,
        "max_position_embeddings": body.seq_len,
        "tie_word_embeddings": True,
        "vocab_size": body.vocab,
    }


def fields(run: RunSpec, batch: Batch) -> dict[str, Carried]:
    lr, late = "optimizer.learning_rate_scheduler", "nanotron's warmup starts at 0 and counts a step less"
    where = {
        "config": "model.model_config",
        "lr": f"{lr}.learning_rate",
        **{key: f"optimizer.optimizer_factory.adam_{key}" for key in ("beta1", "beta2", "eps")},
        "weight_decay": "optimizer.weight_decay",
        "tokens": "tokens.train_steps",
        "batch_tokens": str(batch),
    }
    schedule = {
        "schedule": lr,
        "warmup": f"{lr}.lr_warmup_steps",
        "decay": f"{lr}.lr_decay_steps",
        "decay_shape": f"{lr}.lr_decay_style",
        "min_ratio": f"{lr}.min_decay_lr",
    }
    clip = "the gradients' norm weighs every tensor by the multiplier that is in it"
    return {
        **exact({name: f"{ARGS}: {place}" for name, place in where.items()}),
        **_wsd.carried(run, {name: f"{ARGS}: {place}" for name, place in schedule.items()}, late),
        "multipliers": Carried("exact", f"{HOOK}: apply", "all of them in weights, learning rates and rms_norm_eps"),
        "clip": Carried("approximated", f"{ARGS}: optimizer.clip_grad", clip),
        "precision": Carried("approximated", f"{ARGS}: model.dtype", "bf16 weights, with fp32 ones in the optimizer"),
        "seed": Carried("exact", f"{ARGS}: general.seed", "another generator: the same values on average"),
        "data": Carried("impossible", f"{ARGS}: data_stages", "the dataset is the job's own"),
    }
