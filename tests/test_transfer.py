"""The rules by role, against the table of the science (SCIENCE §3)."""

from __future__ import annotations

import math

import pytest

from tunnel.run import Body, Shape
from tunnel.space import SWITCHES
from tunnel.transfer import ROLES, RULES, Multipliers, Role, Scale, multipliers, scale

BODY = Body(
    head_dim=64,
    base_width=256,
    base_depth=8,
    seq_len=32,
    ffn_ratio=2.5,
    scale_emb=12.0,
    scale_depth=1.4,
    init_std=0.1,
    vocab=256,
)
BASE = Shape(width=256, depth=8)


@pytest.mark.parametrize("rules", [*RULES, *(f"{r}+{s}" for r in RULES for s in SWITCHES)])
def test_all_rules_are_one_model_at_the_base_shape(rules: str) -> None:
    assert multipliers(rules, BASE, BODY) == Multipliers(12.0, pytest.approx(1.4 / math.sqrt(8)), 1 / 8, 1.0)
    for role in ROLES:
        assert scale(rules, role, 1.0, 1.0) == Scale(weight_decay=0.0 if role == "vector" else 1.0)


@pytest.mark.parametrize(
    ("rules", "residual", "logits"),
    [
        ("minicpm", 1.4 / math.sqrt(32), 4.0),  # scale_depth/sqrt(L), d/d_base
        ("completep", 1.4 / math.sqrt(8) / 4, 4.0),  # 1/m_L of the base's
        ("standard", 1.4 / math.sqrt(8), 1.0),  # as at base
    ],
)
def test_the_forward_pass_four_times_as_wide_and_deep(rules: str, residual: float, logits: float) -> None:
    got = multipliers(rules, Shape(width=1024, depth=32), BODY)
    assert got.residual_multiplier == pytest.approx(residual)
    assert got.logits_scaling == logits
    assert (got.embedding_multiplier, got.attention_multiplier) == (12.0, 1 / 8)


@pytest.mark.parametrize(
    ("rules", "role", "expected"),  # at m_d = 4, m_L = 3
    [
        ("minicpm", "hidden", Scale(lr=1 / 4, init_std=1 / 2, weight_decay=4, eps=1)),
        ("completep", "hidden", Scale(lr=1 / 4, init_std=1 / 2, weight_decay=4, eps=1 / 12)),
        ("standard", "hidden", Scale()),
        *((rules, role, Scale()) for rules in RULES for role in ("embedding", "readout")),
        *((rules, "vector", Scale(weight_decay=0.0)) for rules in RULES),
        ("minicpm+tied", "embedding", Scale(lr=1 / 4, init_std=1 / 2, weight_decay=4, eps=1)),
        ("completep+tied", "embedding", Scale(lr=1 / 4, init_std=1 / 2, weight_decay=4, eps=1)),
        ("minicpm+fixed_decay", "hidden", Scale(lr=1 / 4, init_std=1 / 2, weight_decay=1, eps=1)),
        ("minicpm+depth_lr", "hidden", Scale(lr=1 / 4 / math.sqrt(3), init_std=1 / 2, weight_decay=4, eps=1)),
        ("minicpm", "router", Scale(lr=1 / 4, init_std=1 / 2, weight_decay=4, eps=1)),
        ("completep", "router", Scale(lr=1 / 4, init_std=1 / 2, weight_decay=4, eps=1)),
        ("minicpm+depth_lr", "embedding", Scale(lr=1 / math.sqrt(3))),
        ("minicpm+depth_lr", "vector", Scale(lr=1 / math.sqrt(3), weight_decay=0.0)),
        ("completep+depth_lr+fixed_decay", "hidden", Scale(1 / 4 / math.sqrt(3), 1 / 2, 1, 1 / 12)),
        ("standard+tied", "embedding", Scale()),
    ],
)
def test_factors_by_role(rules: str, role: Role, expected: Scale) -> None:
    assert scale(rules, role, 4.0, 3.0) == expected


@pytest.mark.parametrize("rules", ["minicpm", "completep"])
def test_lr_times_weight_decay_is_free_of_width(rules: str) -> None:
    products = {s.lr * s.weight_decay for m_d in (0.5, 1, 2, 16) if (s := scale(rules, "hidden", m_d, 1.0))}
    assert products == {1.0}


def test_minicpm_is_a_width_rule() -> None:
    """Its table has no depth but in the residual; completep's epsilon has."""
    assert scale("minicpm", "hidden", 2.0, 1.0) == scale("minicpm", "hidden", 2.0, 8.0)
    assert scale("completep", "hidden", 2.0, 1.0) != scale("completep", "hidden", 2.0, 8.0)


def test_an_unknown_rule_is_no_default() -> None:
    with pytest.raises(KeyError):
        multipliers("mup", BASE, BODY)
