"""Decoder-only transformers: `GraniteForCausalLM`, which is MiniCPM's block with its multipliers (SCIENCE §2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tunnel import transfer
from tunnel.run import Body, Shape, TrunkSpec

if TYPE_CHECKING:
    from tunnel.families import Grown
    from tunnel.training.data import Corpus
    from tunnel.training.train import Trained

reads = True

ROLES: dict[str, transfer.Role] = {
    r"embed_tokens\.weight$": "embedding",  # tied: it is the readout too
    r"(q|k|v|o|gate|up|down)_proj\.weight$": "hidden",
    r"norm\.weight$": "vector",
}


def heads(shape: Shape, body: Body) -> tuple[int, int]:
    """Query heads and key-value heads."""
    n_q = shape.width // body.head_dim
    return n_q, shape.kv_heads or n_q


def ffn(shape: Shape, body: Body) -> int:
    return round(body.ffn_ratio * shape.width)


def count(shape: Shape, body: Body) -> int:
    """Non-embedding parameters: L(2·d·n_q·d_h + 2·d·n_kv·d_h + 3·d·d_ff) + (2L + 1)·d.  *derived*"""
    d, depth = shape.width, shape.depth
    n_q, n_kv = heads(shape, body)
    return depth * (2 * d * (n_q + n_kv) * body.head_dim + 3 * d * ffn(shape, body)) + (2 * depth + 1) * d


def flops_per_token(shape: Shape, body: Body) -> float:
    """FLOPs per trained token: 6N, attention over the whole square, and the logits.  *derived*"""
    n_q, _ = heads(shape, body)
    attention = 12 * shape.depth * n_q * body.head_dim * body.seq_len
    return 6.0 * count(shape, body) + attention + 6.0 * body.vocab * shape.width


def architecture(shape: Shape) -> tuple[str, str]:
    """transformers' class, and its name for the type."""
    return "GraniteForCausalLM", "granite"


def config_dict(shape: Shape, body: Body, rules: str, dropout: float = 0.0) -> dict[str, Any]:
    """The GraniteConfig of a shape, as keyword arguments."""
    n_q, n_kv = heads(shape, body)
    return {
        "vocab_size": body.vocab,
        "hidden_size": shape.width,
        "intermediate_size": ffn(shape, body),
        "num_hidden_layers": shape.depth,
        "num_attention_heads": n_q,
        "num_key_value_heads": n_kv,
        "max_position_embeddings": body.seq_len,
        "tie_word_embeddings": True,
        "attention_dropout": dropout,
        "initializer_range": body.init_std,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        **asdict(transfer.multipliers(rules, shape, body)),
    }


def grown(trunk: TrunkSpec, corpus: Corpus | None, kind: Callable[..., Trained] | None = None) -> Grown:
    """The model of a trunk at 0 tokens: initialised and scaled by role, with its optimizer.

    `kind`: how it is trained; `training.train.Trained`, or one made of it.
    """
    from transformers import GraniteConfig, GraniteForCausalLM

    from tunnel.training import train

    assert corpus is not None
    config = GraniteConfig(**config_dict(trunk.shape, trunk.body, trunk.rules, trunk.settings.dropout))
    config._attn_implementation = "sdpa"
    return (kind or train.Trained)(lambda: GraniteForCausalLM(config), ROLES, trunk, corpus.of(trunk.source))
