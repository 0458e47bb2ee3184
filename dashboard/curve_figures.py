"""The figures of training: losses as they came in, a trunk with its forks, the trunks of a stage.

Tables in, plotly figures out, as in `figures`; curves are `Store.curve`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dashboard.figures import best_of, legend_only, names_of, shape_name
from dashboard.style import DASHES, NATS, NEUTRAL, PHASES, colour, framed, nats, short, symbol
from tunnel import schedule

POINTS = 400  # of a drawn curve: more than a screen shows  *assumed*
CURVES = 200  # in one figure (PLATFORM: more is slow)
SEEN = 0.93  # of a curve's losses are in sight: the first steps' fall would flatten the rest  *assumed*


def progress(readings: pd.DataFrame) -> go.Figure:
    """The readings' losses in the order in which they came, and the best so far of each stage."""
    rows = readings.reset_index(drop=True)
    fig = go.Figure()
    for i, stage in enumerate(rows.stage.unique()):
        here = rows[rows.stage == stage]
        text = [f"{name} D {short(d)}" for name, d in zip(names_of(here), here.D, strict=True)]
        look = {"marker": {"color": colour(i), "symbol": symbol(i), "size": 7}, "text": text}
        over = "%{text}<br>loss %{y:.4f}<extra></extra>"
        at = here.index + 1
        fig.add_trace(go.Scatter(x=at, y=here.loss, name=stage, mode="markers", hovertemplate=over, **look))
        best = {"color": colour(i), "shape": "hv", "dash": DASHES[i % len(DASHES)]}
        name = f"best of {stage} so far"
        fig.add_trace(go.Scatter(x=at, y=here.loss.cummin(), name=name, mode="lines", line=best, hoverinfo="skip"))
    fig.update_xaxes(title_text="reading (number, in the order they finished)")
    fig.update_yaxes(title_text=NATS)
    finding = f"{len(rows)} finished models; the best is {best_of(rows)}"
    return framed(
        fig, finding, "each mark is one finished model of a proxy; the steps are the best of its stage so far.", 420
    )


# one trunk


def tree(rows: pd.DataFrame, trunk: pd.DataFrame | None, forks: Mapping[str, pd.DataFrame]) -> go.Figure:
    """A trunk and its forks against tokens: training loss above, the lr's multiplier below, phases shaded.

    `rows`: the readings of one trunk, finished or diverged; `forks`: curves by fingerprint.
    """
    rows = rows.sort_values("D")
    fig = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.06, row_heights=[0.68, 0.32])
    if trunk is not None and len(trunk):
        line(fig, thinned(trunk).tokens, thinned(trunk).loss, "trunk (training loss)", NEUTRAL, 1, "trunk")
    for i, (_, r) in enumerate(rows.iterrows()):
        name, c = f"fork to D = {short(r.D)}", colour(i if i < 4 else i + 1)  # grey is the trunk's
        kept = joined(trunk, forks.get(r.fingerprint), r.decay_start)
        if len(kept):
            line(fig, kept.tokens, kept.loss, name, c, 1, r.fingerprint)
        at, m = multipliers(r)
        line(fig, at, m, name, c, 2, r.fingerprint, legend=not len(kept))
    done = rows[rows.loss.notna()]
    over = "D %{x:,.0f} tokens<br>held-out loss %{y:.4f}<extra></extra>"
    mark = {"symbol": "diamond-open", "size": 11, "color": NEUTRAL, "line": {"width": 2}}
    ends = go.Scatter(
        x=done.D, y=done.loss, mode="markers", marker=mark, hovertemplate=over, name="reading (held-out loss)"
    )
    fig.add_trace(ends, row=1, col=1)
    shade(fig, rows)
    fig.update_xaxes(title_text="tokens", tickformat="~s", row=2, col=1)
    fig.update_yaxes(title_text=NATS, row=1, col=1, range=sight(trunk, *forks.values(), ends=done.loss))
    fig.update_yaxes(title_text="lr ÷ peak lr", row=2, col=1, range=[-0.05, 1.1])
    read = (
        "the grey trunk is trained once; each coloured fork leaves it where its decay begins and ends as a finished "
        "model, measured at the diamond."
    )
    return framed(fig, tree_finding(rows, done), read, 640)


def tree_finding(rows: pd.DataFrame, done: pd.DataFrame) -> str:
    first, models = rows.iloc[0], f"{len(done)} finished model{'s' * (len(done) != 1)}"
    name = f"{shape_name(first.width, first.depth)} at lr {first.lr:.3g}"
    if not len(done):
        return f"{name}: diverged after {short(first.diverged_at or first.D)} tokens"
    return f"{name}: one trunk, {models}, down to {nats(done.loss.min())} nats per token"


def line(fig: go.Figure, x: Any, y: Any, name: str, c: str, row: int, group: str, legend: bool | None = None) -> None:
    over = "%{x:,.0f} tokens<br>%{y:.4f}<extra></extra>"
    look = {"line": {"color": c, "width": 1.8}, "showlegend": row == 1 if legend is None else legend}
    fig.add_trace(
        go.Scatter(x=x, y=y, name=name, mode="lines", legendgroup=group, hovertemplate=over, **look), row=row, col=1
    )


def joined(trunk: pd.DataFrame | None, fork: pd.DataFrame | None, start: float) -> pd.DataFrame:
    """A fork's curve from the trunk's last point on: the branch hangs on its tree. Empty where none was kept."""
    if fork is None or not len(fork):
        return pd.DataFrame(columns=["tokens", "loss"])
    thin = thinned(fork)
    before = trunk[trunk.tokens <= start].tail(1) if trunk is not None else thin.head(0)
    return pd.concat([before[["tokens", "loss"]], thin[["tokens", "loss"]]], ignore_index=True)


def multipliers(r: Any) -> tuple[np.ndarray, list[float]]:
    """A run's lr multiplier by the schedule itself, from 0 tokens to D."""
    start, length = int(r.decay_start), int(r.D - r.decay_start)
    risen, fallen = np.linspace(0, max(r.warmup, 1), 20), start + length * np.linspace(0, 1, 60) ** 2
    at = np.unique(np.concatenate([risen, fallen]).astype(int))
    args = (int(r.batch_tokens), int(r.warmup), start, length, r.decay_shape, float(r.min_ratio))
    return at, [schedule.multiplier(int(t), *args) for t in at]


def shade(fig: go.Figure, rows: pd.DataFrame) -> None:
    """Warmup, stable and the decays as bands behind both panels."""
    warmup = float(rows.iloc[0].warmup)
    bands, before = [("warmup", 0.0, warmup)], warmup
    for start, end in zip(rows.decay_start.astype(float), rows.D.astype(float), strict=True):
        bands += [("stable", before, max(start, before)), ("decay", max(start, before), end)]
        before = end
    for phase, start, end in bands:
        look = {"fillcolor": NEUTRAL, "opacity": PHASES[phase], "line_width": 0, "layer": "below"}
        fig.add_vrect(x0=start, x1=end, row="all", col=1, **look)
    for phase, opacity in PHASES.items():
        mark = {"symbol": "square", "size": 14, "color": NEUTRAL, "opacity": opacity}
        legend_only(fig, f"phase: {phase}", mode="markers", marker=mark)


def sight(*curves: pd.DataFrame | None, ends: Sequence[float] | pd.Series = ()) -> list[float] | None:
    """The losses worth seeing, as an axis' range; None where there are too few to say."""
    losses = [x for c in curves if c is not None for x in c.loss]
    seen = np.array([*losses, *ends], float)
    seen = seen[np.isfinite(seen)]
    if len(seen) < 5:
        return None
    low, high = float(seen.min()), float(np.quantile(seen, SEEN))
    room = 0.08 * max(high - low, 1e-3)
    return [low - room, high + room]


def thinned(curve: pd.DataFrame) -> pd.DataFrame:
    """A curve as at most `POINTS` points: means of equal runs of rows."""
    if len(curve) <= POINTS:
        return curve
    return curve.groupby(np.arange(len(curve)) * POINTS // len(curve)).mean()


# all trunks


def fan(curves: Sequence[tuple[str, float, pd.DataFrame]], stage: str, total: int) -> go.Figure:
    """Trunks of a stage, one over another: (shape, lr, curve) each, at most `CURVES` of the stage's `total`."""
    fig = go.Figure()
    shapes = {shape: i for i, shape in enumerate(dict.fromkeys(shape for shape, _, _ in curves))}
    named: set[str] = set()
    for shape, lr, curve in curves[:CURVES]:
        thin, i = thinned(curve), shapes[shape]
        over = f"{shape} lr {lr:.3g}<br>%{{x:,.0f}} tokens<br>%{{y:.4f}}<extra></extra>"
        look = {"color": colour(i), "width": 1.3, "dash": DASHES[i % len(DASHES)]}
        said = {"name": shape, "legendgroup": shape, "showlegend": shape not in named}
        fig.add_trace(go.Scatter(x=thin.tokens, y=thin.loss, mode="lines", line=look, hovertemplate=over, **said))
        named.add(shape)
    fig.update_xaxes(title_text="tokens", tickformat="~s")
    fig.update_yaxes(title_text=f"training {NATS}", range=sight(*(c for _, _, c in curves)))
    drawn = min(len(curves), CURVES)
    many = f"{drawn} trunk{'s' * (drawn != 1)}" + (f" of {total}" if total > drawn else "")
    last = min(curves, key=lambda c: float(c[2].loss.iloc[-1]))
    finding = f"Stage {stage}, {many}: before any decay, {last[0]} at lr {last[1]:.3g} comes down furthest"
    read = (
        "each line is a trunk before any decay; lines of one colour are one shape at different lr and other settings."
    )
    return framed(fig, finding, read, 440)
