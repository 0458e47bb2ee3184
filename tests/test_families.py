"""The registry's contract, and arithmetic held to built models and to published counts."""

from __future__ import annotations

import re

import pytest
import torch
from conftest import trunk_spec
from torch.utils.flop_counter import FlopCounterMode
from transformers import GraniteConfig, GraniteForCausalLM

from tunnel import families
from tunnel.errors import UserError
from tunnel.families import gpt, synthetic
from tunnel.run import Body, Mixture, Shape
from tunnel.training import data, forks
from tunnel.transfer import ROLES

PAPER = Body(
    head_dim=64,
    base_width=256,
    base_depth=8,
    seq_len=4096,
    ffn_ratio=2.5,
    scale_emb=12,
    scale_depth=1.4,
    init_std=0.1,
    vocab=122_753,
)
PUBLISHED = {  # non-embedding parameters: MiniCPM, arXiv 2404.06395  *from paper*
    "1.2B": (Shape(width=1536, depth=52, kv_heads=8), 1_247_442_432),
    "2.4B": (Shape(width=2304, depth=40), 2_442_057_984),
}


def built(shape: Shape, body: Body, device: str = "meta") -> GraniteForCausalLM:
    config = GraniteConfig(**gpt.config_dict(shape, body, "minicpm"))
    config._attn_implementation = "eager"
    with torch.device(device):
        return GraniteForCausalLM(config)


# the registry


BODIES: list[tuple[str, Mixture | None]] = [(name, None) for name in families.names()]
BODIES += [(name, Mixture(experts=4, top_k=2)) for name in families.names() if families.mixes(name)]


@pytest.mark.parametrize(("name", "mixture"), BODIES, ids=str)
def test_every_family_keeps_the_contract(name: str, mixture: Mixture | None, corpus: data.Corpus) -> None:
    family = families.load(name)
    trunk = trunk_spec(family=name)
    trunk = trunk.replaced(shape=trunk.shape.replaced(mixture=mixture))
    assert set(family.ROLES.values()) <= set(ROLES)
    assert all(re.compile(pattern) for pattern in family.ROLES)
    n, flops = (f(trunk.shape, trunk.body) for f in (family.count, family.flops_per_token))
    assert isinstance(n, int)
    assert families.total(name, trunk.shape, trunk.body) >= n
    assert flops > 6 * n
    grown = family.grown(trunk, corpus if family.reads else None)
    assert grown.tokens == 0
    assert grown.step(1.0)
    assert grown.tokens == trunk.settings.batch_tokens
    arrays, meta = grown.state()
    loss = grown.evaluate()
    other = family.grown(trunk, corpus if family.reads else None)
    other.restore(arrays, meta)
    assert (other.tokens, other.evaluate()) == (grown.tokens, loss)
    assert forks.progress("trunk", other).loss is None


def test_a_family_is_found_by_its_name_or_the_choices_are_named() -> None:
    assert {"gpt", "synthetic"} <= set(families.names())
    with pytest.raises(UserError, match=r"family: is not a family; got 'gtp'; choices: .*gpt, .*synthetic"):
        families.load("gtp")


# gpt: counts and FLOPs


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_counts_exactly(name: str) -> None:
    shape, n = PUBLISHED[name]
    assert gpt.count(shape, PAPER) == n
    assert sum(p.numel() for p in built(shape, PAPER).parameters()) == n + PAPER.vocab * shape.width


@pytest.mark.parametrize(
    ("width", "depth", "kv_heads", "ffn_ratio"), [(32, 2, None, 2.5), (64, 3, 2, 2.5), (48, 1, 1, 8 / 3), (96, 5, 3, 4)]
)
def test_arithmetic_counts_what_is_built(width: int, depth: int, kv_heads: int | None, ffn_ratio: float) -> None:
    shape = Shape(width=width, depth=depth, kv_heads=kv_heads)
    body = trunk_spec().body.model_copy(update={"ffn_ratio": ffn_ratio})
    model = built(shape, body)
    assert gpt.count(shape, body) == sum(p.numel() for p in model.parameters()) - body.vocab * width


@pytest.mark.parametrize(("width", "depth", "kv_heads"), [(32, 2, None), (64, 3, 2)])
def test_flops_are_what_torch_counts(width: int, depth: int, kv_heads: int | None) -> None:
    """Forward and backward of real steps; 6N holds the norm gains too, which are in no matrix product."""
    shape, body = Shape(width=width, depth=depth, kv_heads=kv_heads), trunk_spec().body
    model, n = built(shape, body, "cpu"), 4
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.zeros(n, body.seq_len, dtype=torch.long), use_cache=False).logits.sum().backward()
    expected = gpt.flops_per_token(shape, body) - 6 * (2 * depth + 1) * width
    assert counter.get_total_flops() / (n * body.seq_len) == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize(("shape", "times"), [(Shape(width=320, depth=8), 7.4), (PUBLISHED["2.4B"][0], 1.42)])
def test_the_full_count_over_6n(shape: Shape, times: float) -> None:
    assert gpt.flops_per_token(shape, PAPER) / (6 * gpt.count(shape, PAPER)) == pytest.approx(times, abs=0.01)


def test_the_config_says_what_granite_would_get_wrong() -> None:
    config = GraniteConfig(**gpt.config_dict(Shape(width=512, depth=32), PAPER, "minicpm"))
    assert config.tie_word_embeddings
    assert config.attention_multiplier == 1 / 8
    assert config.residual_multiplier == pytest.approx(1.4 / 32**0.5)
    assert (config.embedding_multiplier, config.logits_scaling) == (12, 2)
    assert (
        config.head_dim == 64 if hasattr(config, "head_dim") else config.hidden_size // config.num_attention_heads == 64
    )


# synthetic: the surface it promises


def test_the_synthetic_body_reaches_its_stated_minimum() -> None:
    """At lr*, the best decay and a finished decay the held-out loss is E + A/N^alpha + B/D^beta."""
    truth, batch = synthetic.TRUTH, 128
    probe = trunk_spec(family="synthetic")
    n, d = synthetic.count(probe.shape, probe.body), 100 * batch
    trunk = trunk_spec(family="synthetic", lr=truth.best_lr(n, d))
    grown = synthetic.grown(trunk, None)
    for step in range(100):
        grown.step(1.0 if step < 85 else 1 - (step - 84) / 15)
    assert grown.evaluate() == pytest.approx(truth.best_loss(n, d), rel=5 * truth.noise)
    assert not synthetic.grown(trunk_spec(family="synthetic", lr=0.31), None).step(1.0)
