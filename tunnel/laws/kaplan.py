"""L(N, D) = ((A/N)^(alpha/beta) + B/D)^beta + E.

N non-embedding parameters, D training tokens, A in parameters, B in tokens, L and E in nats per token: too little data
and too few parameters limit one another, where Chinchilla's add. Source: Kaplan et al. 2020 (arXiv 2001.08361,
Eq. 1.5), with a floor as in SCIENCE.md §4.
"""

from __future__ import annotations

from tunnel.fitting import forms

KIND = "loss"
FORM = forms.Form("kaplan", (("N", "A", "alpha"), ("D", "B", "beta")), floor=True, norm=True)
COLUMNS, PARAMS = FORM.needed, FORM.params
answers, select, fit, predict, refit = FORM.answers, FORM.select, FORM.fit, FORM.predict, FORM.refit
