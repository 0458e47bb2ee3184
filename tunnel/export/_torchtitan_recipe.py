# mypy: ignore-errors
"""torchtitan 0.3: the tunnel's model, optimizer groups and schedule, from recipe.json, which lies beside it.

    PYTHONPATH=BUNDLE torchrun --nproc-per-node 8 -m torchtitan.train --module tunnel_recipe --config target

The model is Llama 3's with Granite's multipliers; `selfcheck` runs at steps 0 and 10 by itself.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import selfcheck
import torch.nn as nn
from torchtitan.components.loss import ChunkedLossWrapper, CrossEntropyLoss
from torchtitan.components.optimizer import LRSchedulersContainer, OptimizersContainer, ParamGroupConfig
from torchtitan.config import DebugConfig, TrainingConfig
from torchtitan.distributed.pipeline_parallel import pipeline_llm
from torchtitan.hf_datasets.text_datasets import HuggingFaceTextDataLoader
from torchtitan.models.common import ComplexRoPE, Embedding, Linear, RMSNorm
from torchtitan.models.common.config_utils import get_attention_config, make_ffn_config, make_gqa_config
from torchtitan.models.common.param_init import skip_param_init
from torchtitan.models.llama3.model import Llama3Model, Llama3TransformerBlock
from torchtitan.models.llama3.parallelize import parallelize_llama
from torchtitan.models.llama3.state_dict_adapter import Llama3StateDictAdapter
from torchtitan.protocols.model_spec import ModelSpec
from torchtitan.trainer import Trainer

HERE = Path(__file__).resolve().parent
RECIPE = json.loads((HERE / "recipe.json").read_text(encoding="utf-8"))


class ScaledEmbedding(Embedding):
    @dataclass(kw_only=True, slots=True)
    class Config(Embedding.Config):
        multiplier: float = 1.0

    def __init__(self, config: Config):
        super().__init__(config)
        self.multiplier = config.multiplier

    def forward(self, input):
        return super().forward(input) * self.multiplier


class ScaledNorm(RMSNorm):
    """The last norm, divided by the logits' scaling: what is linear after it is divided too."""

    @dataclass(kw_only=True, slots=True)
    class Config(RMSNorm.Config):
        divisor: float = 1.0

    def __init__(self, config: Config):
        super().__init__(config)
        self.divisor = config.divisor

    def forward(self, input):
        return super().forward(input) / self.divisor


class Block(Llama3TransformerBlock):
    @dataclass(kw_only=True, slots=True)
    class Config(Llama3TransformerBlock.Config):
        residual: float = 1.0

    def __init__(self, config: Config):
        super().__init__(config)
        self.residual = config.residual

    def forward(self, x, attention_masks, positions=None):
        h = x + self.residual * self.attention(self.attention_norm(x), attention_masks, positions)
        return h + self.residual * self.feed_forward(self.ffn_norm(h))


class Checked(LRSchedulersContainer):
    """The schedule, which looks before steps 0 and 10 whether the groups' learning rates are what the bundle says."""

    @dataclass(kw_only=True, slots=True)
    class Config(LRSchedulersContainer.Config):
        def build(self, *, optimizers, training_steps):
            built = LRSchedulersContainer.Config.build(self, optimizers=optimizers, training_steps=training_steps)
            built.__class__ = Checked
            built.look()
            return built

    def look(self):
        for s in self.schedulers:
            wanted = [g["lr_own_scheduler"].get(str(s.last_epoch)) for g in selfcheck.promised()["groups"]]
            got = [float(g["lr"]) for g in s.optimizer.param_groups]
            if any(w is not None and selfcheck.off(g, w) for g, w in zip(got, wanted, strict=True)):
                raise SystemExit(f"this job is not what the bundle says: step {s.last_epoch}: lr {got}, not {wanted}")

    def step(self):
        super().step()
        self.look()


def normal(std: float) -> dict[str, Any]:
    return {"weight": partial(nn.init.normal_, std=std)}


ONES = {"weight": nn.init.ones_}


def model() -> Llama3Model.Config:
    r = RECIPE["model"]
    dim, std = r["dim"], r["hidden_std"]
    rope = ComplexRoPE.Config(dim=r["head_dim"], max_seq_len=r["seq_len"], theta=r["rope_theta"], scaling="none")
    norm = partial(RMSNorm.Config, normalized_shape=dim, eps=r["norm_eps"], param_init=ONES)

    def block() -> Block.Config:
        return Block.Config(
            residual=r["residual_multiplier"],
            attention_norm=norm(),
            ffn_norm=norm(),
            attention=make_gqa_config(
                dim=dim,
                n_heads=r["n_heads"],
                n_kv_heads=r["n_kv_heads"],
                head_dim=r["head_dim"],
                fuse_qkv=False,
                wqkv_param_init=normal(std),
                wo_param_init=normal(std),
                inner_attention=get_attention_config("flex"),
                rope=rope,
            ),
            feed_forward=make_ffn_config(
                dim=dim, hidden_dim=r["hidden_dim"], w1_param_init=normal(std), w2w3_param_init=normal(std)
            ),
        )

    return Llama3Model.Config(
        dim=dim,
        vocab_size=r["vocab"],
        enable_weight_tying=True,
        tok_embeddings=ScaledEmbedding.Config(
            num_embeddings=r["vocab"],
            embedding_dim=dim,
            multiplier=r["embedding_multiplier"],
            param_init={"weight": skip_param_init},
        ),
        norm=ScaledNorm.Config(normalized_shape=dim, eps=r["norm_eps"], divisor=r["logits_scaling"], param_init=ONES),
        lm_head=Linear.Config(in_features=dim, out_features=r["vocab"], param_init=normal(r["embedding_std"])),
        layers=[block() for _ in range(r["n_layers"])],
    )


def target() -> Trainer.Config:
    t = RECIPE["training"]
    groups = [
        ParamGroupConfig(
            pattern=g["pattern"],
            optimizer_name="AdamW",
            optimizer_kwargs={
                "lr": g["lr"],
                "betas": (t["beta1"], t["beta2"]),
                "eps": g["eps"],
                "weight_decay": g["weight_decay"],
            },
        )
        for g in selfcheck.promised()["groups"]
    ]
    return Trainer.Config(
        loss=ChunkedLossWrapper.Config(loss_fn=CrossEntropyLoss.Config(global_vocab_size=RECIPE["model"]["vocab"])),
        hf_assets_path=str(HERE),
        model_spec=ModelSpec(
            name="llama3",
            flavor="target",
            model=model(),
            parallelize_fn=parallelize_llama,
            pipelining_fn=pipeline_llm,
            post_optimizer_build_fn=None,
            state_dict_adapter=Llama3StateDictAdapter,
        ),
        optimizer=OptimizersContainer.Config(param_groups=groups),
        lr_scheduler=Checked.Config(**RECIPE["schedule"]),
        training=TrainingConfig(
            local_batch_size=t["local_batch_size"],
            global_batch_size=t["global_batch_size"],
            seq_len=t["seq_len"],
            max_norm=t["clip"],
            steps=t["steps"],
            mixed_precision_param=t["precision"],
        ),
        dataloader=HuggingFaceTextDataLoader.Config(dataset=t["dataset"]),
        debug=DebugConfig(seed=t["seed"]),
    )
