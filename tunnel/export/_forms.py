"""One model written in several ways: a trainer that lacks a multiplier gets it inside weights and learning rates.

Under Adam a tensor W trained at lr η with epsilon ε and weight decay λ is c·W trained at c·η, ε/c and λ/c, and a
residual stream before a norm may have any unit. So each `Form` of a model trains step by step as every other; only the
gradients' common norm, and with it clipping, weighs its tensors otherwise. (The symmetry of abc-parametrisations, Yang
and Hu, arXiv 2011.14522.)  *derived*; the tests train the forms side by side
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

OUT = r"(o|down)_proj\.weight$"  # what writes to the residual stream
NORM_EPS = 1e-6  # of GraniteConfig, which the family leaves as it is; a test reads it there


@dataclass(frozen=True)
class Tensors:
    """The values for the parameters whose names match `pattern`; the first that matches counts."""

    role: str  # embedding, hidden, vector, and `out` where what writes to the stream is apart from hidden
    pattern: str
    lr: float
    weight_decay: float
    eps: float
    init_std: float  # 0 for vectors, which start at 1

    def times(self, c: float) -> Tensors:
        """The values where the trainer keeps c × the tensor."""
        return replace(
            self, lr=self.lr * c, init_std=self.init_std * c, weight_decay=self.weight_decay / c, eps=self.eps / c
        )


@dataclass(frozen=True)
class Form:
    """A model's constants and groups, in one way of writing it."""

    embedding: float
    residual: float
    attention: float
    logits: float  # divides
    norm_eps: float
    groups: tuple[Tensors, ...]

    def of(self, role: str) -> Tensors:
        """A role's first group; raises KeyError for a role that the model lacks."""
        found = next((g for g in self.groups if g.role == role), None)
        if found is None:
            raise KeyError(role)
        return found

    def named(self, patterns: Mapping[str, str]) -> Form:
        """The same with a trainer's own patterns by role."""
        named = (replace(g, pattern=patterns[g.role]) for g in self.groups)
        return replace(self, groups=tuple(dict.fromkeys(named)))  # experts and what else is hidden are one group

    def scaled(self, role: str, c: float) -> tuple[Tensors, ...]:
        return tuple(g.times(c) if g.role == role else g for g in self.groups)

    def without_logits(self) -> Form:
        """The readout's divisor goes into the tied embedding, and comes back as the embedding's multiplier."""
        groups = self.scaled("embedding", 1 / self.logits)
        return replace(self, logits=1.0, embedding=self.embedding * self.logits, groups=groups)

    def without_residual(self) -> Form:
        """The stream's unit is the residual multiplier, so that only the embedding needs one."""
        r = self.residual
        return replace(self, residual=1.0, embedding=self.embedding / r, norm_eps=self.norm_eps / r**2)

    def plain(self) -> Form:
        """No multiplier but attention's: the stream's unit is the embedding's; what writes to it has its own group."""
        without = self.without_logits()
        e, r = without.embedding, without.residual
        hidden = without.of("hidden")
        out = replace(hidden, role="out", pattern=OUT).times(r / e)
        rest = replace(without, embedding=1.0, residual=1.0, norm_eps=without.norm_eps / e**2)
        return replace(rest, groups=(out, *without.groups))

    @property
    def multipliers(self) -> dict[str, float]:
        """In Granite's words."""
        return {
            "embedding_multiplier": self.embedding,
            "residual_multiplier": self.residual,
            "attention_multiplier": self.attention,
            "logits_scaling": self.logits,
        }


def granite(recommendation: Mapping[str, Any]) -> Form:
    """The recommendation's model as the tunnel trains it: tied embeddings, and Granite's four multipliers."""
    m = recommendation["multipliers"]
    names = ("role", "pattern", "lr", "weight_decay", "eps", "init_std")
    return Form(
        embedding=m["embedding_multiplier"],
        residual=m["residual_multiplier"],
        attention=m["attention_multiplier"],
        logits=m["logits_scaling"],
        norm_eps=NORM_EPS,
        groups=tuple(Tensors(**{k: g[k] for k in names}) for g in recommendation["groups"]),
    )


def folded(weights: Mapping[str, Any], form: Form) -> dict[str, Any]:
    """A Granite's trained weights (tensors or arrays by name) for `plain`: the same logits without its multipliers."""
    import re

    stream = form.embedding * form.logits
    factors = {r"embed_tokens\.weight$|lm_head\.weight$": 1 / form.logits, OUT: form.residual / stream}
    found = {}
    for name, w in weights.items():
        factor = next((f for pattern, f in factors.items() if re.search(pattern, name)), None)
        found[name] = w if factor is None else w * factor
    return found
