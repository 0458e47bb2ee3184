"""L(N, D) = E + A/N^alpha + B/D^beta.

N non-embedding parameters, D training tokens, L and E in nats per token, A in nats·parameters^alpha, B in
nats·tokens^beta. Source: Hoffmann et al. 2022 (arXiv 2203.15556, Eq. 10); objective and golden numbers:
SCIENCE.md §4.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tunnel.fitting import forms
from tunnel.laws import Array

KIND = "loss"
FORM = forms.Form("chinchilla", (("N", "A", "alpha"), ("D", "B", "beta")), floor=True)
COLUMNS, PARAMS = FORM.needed, FORM.params
answers, select, fit, predict, refit = FORM.answers, FORM.select, FORM.fit, FORM.predict, FORM.refit


def optimal(params: Mapping[str, float], flops: float | Array) -> tuple[Array, Array]:
    """Compute-optimal N and D for a budget at C = 6ND (derived: ∂L/∂log N = ∂L/∂log D on N·D = C/6)."""
    alpha, beta, room = params["alpha"], params["beta"], np.asarray(flops, float) / 6
    g = (alpha * params["A"] / (beta * params["B"])) ** (1 / (alpha + beta))
    return g * room ** (beta / (alpha + beta)), room ** (alpha / (alpha + beta)) / g
