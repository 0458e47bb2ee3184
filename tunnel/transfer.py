"""Transfer rules by role: how what was tuned at the base shape is written at another.

Roles go by which dimensions of a tensor scale with width. At the base shape all rules are the same model.
The table is SCIENCE's: `minicpm` from MiniCPM, arXiv 2404.06395, Table 7; `completep` from arXiv 2505.01618;
`standard` is the base model left unscaled, the control that must fail to transfer. What no source settles is a switch
after the rule's name: "minicpm+depth_lr" (`space.SWITCHES`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from tunnel.run import Body, Shape, TrunkSpec
from tunnel.space import RULES, SWITCHES

Role = Literal["embedding", "hidden", "readout", "router", "vector"]
ROLES: tuple[Role, ...] = ("embedding", "hidden", "readout", "router", "vector")

__all__ = ["ROLES", "RULES", "SWITCHES", "Group", "Multipliers", "Role", "Scale", "groups", "multipliers", "scale"]


@dataclass(frozen=True)
class Multipliers:
    """Constants of the forward pass; the names are Granite's."""

    embedding_multiplier: float
    residual_multiplier: float
    attention_multiplier: float
    logits_scaling: float


@dataclass(frozen=True)
class Scale:
    """Factors on the base values of one role's tensors."""

    lr: float = 1.0
    init_std: float = 1.0
    weight_decay: float = 1.0
    eps: float = 1.0


def multipliers(rules: str, shape: Shape, body: Body) -> Multipliers:
    """The forward constants of a shape under a rule; raises KeyError for a rule that is none."""
    rule, _ = parsed(rules)
    m_d, m_l = shape.width / body.base_width, shape.depth / body.base_depth
    at_base = body.scale_depth / math.sqrt(body.base_depth)
    residual = {
        "minicpm": body.scale_depth / math.sqrt(shape.depth),
        "completep": at_base / m_l,
        "standard": at_base,
    }
    return Multipliers(
        embedding_multiplier=body.scale_emb,
        residual_multiplier=residual[rule],
        # completep's 1/d_h, equal at base, is 1/sqrt(d_h) here: a study has one head_dim
        attention_multiplier=1 / math.sqrt(body.head_dim),
        logits_scaling=1.0 if rule == "standard" else m_d,
    )


def parsed(rules: str) -> tuple[str, set[str]]:
    """A rule and its switches; raises KeyError for a rule that is none."""
    rule, *switches = rules.split("+")
    if rule not in RULES:
        raise KeyError(rule)
    return rule, set(switches)


def scale(rules: str, role: Role, m_d: float, m_l: float) -> Scale:
    """Factors for a role at m_d = d/d_base and m_L = L/L_base.

    Embeddings, tied to the readout here, and vectors keep their base values, unless the switch `tied` says otherwise.
    A router reads a width, as a hidden weight does, and has no multiplier behind it that could be divided by m_d: it is
    scaled as one, so that its logits begin, and move, free of width. Whether they should begin smaller is open.
    """
    rule, switches = parsed(rules)
    decays = 0.0 if role == "vector" else 1.0  # norm gains are not pulled to 0  *assumed*
    deeper = 1 / math.sqrt(m_l) if "depth_lr" in switches else 1.0
    scaled = role in ("hidden", "router") or (role == "embedding" and "tied" in switches)
    if rule == "standard" or not scaled:
        return Scale(lr=deeper, weight_decay=decays)
    return Scale(
        lr=deeper / m_d,
        init_std=1 / math.sqrt(m_d),
        weight_decay=1.0 if "fixed_decay" in switches else m_d,  # lr · weight decay stays free of width
        eps=1 / (m_d * m_l) if rule == "completep" and role == "hidden" else 1.0,
    )


@dataclass(frozen=True)
class Group:
    """The optimizer's and the initialisation's values for the parameters whose names match `pattern`."""

    role: Role
    pattern: str
    lr: float
    weight_decay: float
    eps: float
    init_std: float  # 0 for vectors, which start at 1


def groups(trunk: TrunkSpec, roles: Mapping[str, Role]) -> list[Group]:
    """A trunk's parameter groups under its rule, one per pattern of `roles`."""
    s, shape, body = trunk.settings, trunk.shape, trunk.body
    found = []
    for pattern, role in roles.items():
        by = scale(trunk.rules, role, shape.width / body.base_width, shape.depth / body.base_depth)
        std = 0.0 if role == "vector" else body.init_std * by.init_std
        found.append(Group(role, pattern, s.lr * by.lr, s.weight_decay * by.weight_decay, s.eps * by.eps, std))
    return found
