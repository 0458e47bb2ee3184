"""WSD in tokens: warmup, stable, decay (MiniCPM, arXiv 2404.06395, Eq. 1).

A new decay shape is one function of x, the fraction of the decay that has passed, and one row of `SHAPES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

# MiniCPM's half-life is absolute (5,000 steps in a decay of about 110B tokens) and would leave a proxy undecayed;
# as a part of the decay's own length it is 1/5.5, which ends at 0.022 of the peak.  *derived*
HALF_LIFE = 1 / 5.5

SHAPES: dict[str, Callable[[float], float]] = {
    "1-sqrt": lambda x: 1 - math.sqrt(x),  # best of its paper, arXiv 2405.18392  *from paper*
    "linear": lambda x: 1 - x,
    "cosine": lambda x: (1 + math.cos(math.pi * x)) / 2,
    "exponential": lambda x: 0.5 ** (x / HALF_LIFE),
}


def warmup_multiplier(tokens: int, batch_tokens: int, warmup: int) -> float:
    """The trunk's multiplier for the step that starts after `tokens` tokens, in (0, 1].

    The step's own batch counts, so that step 0 already moves: (s + 1) / W.
    """
    return min(1.0, (tokens + batch_tokens) / warmup) if warmup else 1.0


def decay_multiplier(
    tokens: int, start: int, length: int, shape: str, min_ratio: float = 0.0, half_life: float = HALF_LIFE
) -> float:
    """The decay's multiplier for the step that starts after `tokens` tokens, in [min_ratio, 1].

    `half_life` is the exponential's, as a part of the decay's length. Raises KeyError for a shape that `SHAPES` lacks;
    the study file is checked before.
    """
    x = min(max(tokens - start, 0) / length, 1.0)
    fallen = 0.5 ** (x / half_life) if shape == "exponential" else SHAPES[shape](x)
    return min_ratio + (1 - min_ratio) * fallen


def multiplier(
    tokens: int,
    batch_tokens: int,
    warmup: int,
    start: int,
    length: int,
    shape: str,
    min_ratio: float = 0.0,
    half_life: float = HALF_LIFE,
) -> float:
    """The whole schedule's multiplier for the step that starts after `tokens` tokens (lengths in tokens).

    >>> [round(multiplier(s * 10, 10, 20, 60, 40, "linear"), 2) for s in range(10)]
    [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25]
    """
    if tokens >= start:
        return decay_multiplier(tokens, start, length, shape, min_ratio, half_life)
    return warmup_multiplier(tokens, batch_tokens, warmup)


def whole_batches(tokens: float, batch_tokens: int, at_least: int = 0) -> int:
    """A length rounded once, to whole batches (tokens)."""
    return max(round(tokens / batch_tokens), at_least) * batch_tokens
