"""Decoder-only transformers whose feed-forward networks may be experts: `GraniteMoeForCausalLM` where a shape has a
mixture, which is gpt's block but for them; where it has none, gpt itself, so that both live in one study.

Every token goes through `top_k` experts of a layer, by a linear router; the gates are a softmax over those few, so that
they sum to 1. The training loss's gradient has the Switch balance loss in it (arXiv 2101.03961, Eq. 4-6), over all
layers together; transformers' is k at perfect balance, so its weight is `settings.balance` / k. What is reported is
cross-entropy alone. Balance is of what goes through at a time: smaller micro-batches, or several processes, balance
each its own part, so that there they are no rounding of one another.

Of the rules of transfer: an expert is a hidden weight by itself, for an Adam step looks at no other; the third
dimension, how many there are, scales nothing here. The router has a role of its own (`transfer.scale`). Known to
differ: an expert sees top_k/experts of the batch, so its gradient is noisier, and its best lr may be lower than a dense
network's; `granularity` narrows the fan-in of the expert's last matrix and leaves its std as it is. Neither is
corrected: both are *open*, and a study's to measure.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from tunnel import transfer
from tunnel.errors import UserError
from tunnel.families import gpt
from tunnel.run import BALANCE, Body, Mixture, Shape, TrunkSpec

if TYPE_CHECKING:
    from tunnel.families import Grown
    from tunnel.training.data import Corpus
    from tunnel.training.train import Trained

reads = True
ROUTER_STD = 0.1  # of an upcycled body's new routers: variance 0.01, MiniCPM-MoE  *from paper*

ROLES: dict[str, transfer.Role] = {
    **gpt.ROLES,
    r"experts\.(gate_up|down)_proj$": "hidden",
    r"router\.weight$": "router",
}


def roles(shape: Shape) -> dict[str, transfer.Role]:
    """The roles of a shape's own parameters."""
    return gpt.ROLES if shape.mixture is None else ROLES


def expert(shape: Shape, body: Body) -> int:
    """An expert's inner width; raises UserError where the granularity does not divide the dense network's."""
    wide, finer = gpt.ffn(shape, body), mixture(shape).granularity
    if wide % finer:
        raise UserError(f"does not divide the feed-forward network's {wide}", key="granularity", value=finer)
    return wide // finer


def mixture(shape: Shape) -> Mixture:
    assert shape.mixture is not None
    return shape.mixture


def count(shape: Shape, body: Body) -> int:
    """Non-embedding parameters that a token goes through: the router, and top_k experts of each layer.  *derived*"""
    return _count(shape, body, mixture(shape).top_k if shape.mixture is not None else 0)


def total(shape: Shape, body: Body) -> int:
    """Non-embedding parameters, with every expert.  *derived*"""
    return _count(shape, body, mixture(shape).experts if shape.mixture is not None else 0)


def _count(shape: Shape, body: Body, experts: int) -> int:
    dense = gpt.count(shape, body)
    if shape.mixture is None:
        return dense
    each = 3 * (experts * expert(shape, body) - gpt.ffn(shape, body)) + shape.mixture.experts
    return dense + shape.depth * shape.width * each


def flops_per_token(shape: Shape, body: Body) -> float:
    """FLOPs per trained token: of what a token goes through, attention over the whole square, logits.  *derived*"""
    return gpt.flops_per_token(shape, body) + 6.0 * (count(shape, body) - gpt.count(shape, body))


def architecture(shape: Shape) -> tuple[str, str]:
    """transformers' class, and its name for the type."""
    return gpt.architecture(shape) if shape.mixture is None else ("GraniteMoeForCausalLM", "granitemoe")


def config_dict(shape: Shape, body: Body, rules: str, dropout: float = 0.0, balance: float = BALANCE) -> dict[str, Any]:
    """The GraniteMoeConfig of a shape, as keyword arguments; without a mixture, gpt's GraniteConfig."""
    dense = gpt.config_dict(shape, body, rules, dropout)
    if shape.mixture is None:
        return dense
    return {
        **dense,
        "intermediate_size": expert(shape, body),
        "num_local_experts": shape.mixture.experts,
        "num_experts_per_tok": shape.mixture.top_k,
        "output_router_logits": True,  # or there is no balance loss
        "router_aux_loss_coef": balance / shape.mixture.top_k,
    }


def grown(trunk: TrunkSpec, corpus: Corpus | None, kind: Callable[..., Trained] | None = None) -> Grown:
    """The model of a trunk at 0 tokens; see `gpt.grown`."""
    if trunk.shape.mixture is None:
        return gpt.grown(trunk, corpus, kind)
    from transformers import GraniteMoeConfig, GraniteMoeForCausalLM

    from tunnel.training import train

    assert corpus is not None
    s = trunk.settings
    config = GraniteMoeConfig(**config_dict(trunk.shape, trunk.body, trunk.rules, s.dropout, s.balance))
    config._attn_implementation = "sdpa"
    config._experts_implementation = "grouped_mm" if s.precision == "fp32" else "eager"  # grouped_mm knows no autocast
    return (kind or train.Trained)(lambda: GraniteMoeForCausalLM(config), ROLES, trunk, corpus.of(trunk.source))


def inherited(trunk: TrunkSpec, name: str, weights: Callable[[str], np.ndarray]) -> np.ndarray:
    """A parameter of a body that begins with a dense one's `weights`: every expert is a copy of its network.

    The gates sum to 1, so that its outputs are the dense one's to rounding, whatever the router, which is new.
    """
    start, m = trunk.start, trunk.shape.mixture
    if m is None or start is None or start.trunk.shape.mixture is not None:
        return weights(name)
    before, moe, part = name.partition("block_sparse_moe.")
    if not moe:
        return weights(name)
    if part == "router.weight":
        rng = np.random.default_rng([trunk.seed, int(before.split(".")[-2])])
        return rng.normal(0.0, ROUTER_STD, (m.experts, trunk.shape.width)).astype(np.float32)
    names = ["down"] if part.endswith("down_proj") else ["gate", "up"]
    dense = np.concatenate([np.array(weights(f"{before}mlp.{n}_proj.weight")) for n in names])
    return np.broadcast_to(dense, (m.experts, *dense.shape))
