"""The figures of training: losses as they came in, a trunk with its forks, the trunks of a stage.

Tables in, plotly figures out, as in `figures`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dashboard.figures import best_of, legend_only, shape_name
from dashboard.style import DASHES, NATS, NEUTRAL, PHASES, colour, framed, nats, short, symbol
from tunnel import schedule

POINTS = 400  # of a drawn curve: more than a screen shows  *assumed*
CURVES = 200  # in one figure (PLATFORM: more is slow)


def progress(readings: pd.DataFrame) -> go.Figure:
    """The readings' losses in the order in which they came, and the best so far of each stage."""
    rows = readings.reset_index(drop=True)
    fig = go.Figure()
    for i, (stage, here) in enumerate(rows.groupby("stage", sort=False)):
        look = {"color": colour(i), "symbol": symbol(i), "size": 7}
        over = "%{text}<br>loss %{y:.4f}<extra></extra>"
        text = [f"{shape_name(w, d)} D {short(t)}" for w, d, t in zip(here.width, here.depth, here.D, strict=True)]
        fig.add_trace(
            go.Scatter(
                x=here.index + 1,
                y=here.loss,
                name=f"stage {stage}",
                mode="markers",
                marker=look,
                text=text,
                hovertemplate=over,
            )
        )
        line = {"color": colour(i), "shape": "hv", "dash": DASHES[i % len(DASHES)]}
        fig.add_trace(
            go.Scatter(
                x=here.index + 1,
                y=here.loss.cummin(),
                name=f"best of {stage}",
                mode="lines",
                line=line,
                hoverinfo="skip",
            )
        )
    fig.update_xaxes(title_text="reading (in the order they finished)")
    fig.update_yaxes(title_text=NATS)
    finding = f"{len(rows)} finished models; the best is {best_of(rows)}"
    return framed(
        fig, finding, "Each mark is one finished model of a proxy; the steps are the best of its stage so far.", 400
    )


def tree(rows: pd.DataFrame, trunk: pd.DataFrame | None, forks: Mapping[str, pd.DataFrame]) -> go.Figure:
    """A trunk and its forks against tokens: training loss above, the lr's multiplier below, phases shaded.

    `rows`: the readings of one trunk, finished or diverged; `forks`: curves by fingerprint.
    """
    rows = rows.sort_values("D")
    first = rows.iloc[0]
    fig = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.06, row_heights=[0.68, 0.32])
    if trunk is not None and len(trunk):
        t = thinned(trunk)
        line(fig, t.tokens, t.loss, "trunk (training loss)", NEUTRAL, 1)
    for i, (_, r) in enumerate(rows.iterrows()):
        name, c = f"fork to D = {short(r.D)}", colour(i if i < 4 else i + 1)  # grey is the trunk's
        kept = forks.get(r.fingerprint)
        if kept is not None and len(kept):
            line(fig, thinned(kept).tokens, thinned(kept).loss, name, c, 1, group=r.fingerprint)
        at, m = multipliers(r)
        line(fig, at, m, name, c, 2, group=r.fingerprint, legend=kept is None or not len(kept))
    done = rows[rows.loss.notna()]
    over = "D %{x:,.0f} tokens<br>held-out loss %{y:.4f}<extra></extra>"
    mark = {"symbol": "diamond-open", "size": 11, "color": NEUTRAL, "line": {"width": 2}}
    fig.add_trace(
        go.Scatter(
            x=done.D, y=done.loss, mode="markers", name="reading (held-out loss)", marker=mark, hovertemplate=over
        ),
        row=1,
        col=1,
    )
    shade(fig, rows)
    fig.update_xaxes(title_text="tokens", tickformat="~s", row=2, col=1)
    fig.update_yaxes(title_text=NATS, row=1, col=1, range=sight(trunk, forks, done.loss))
    fig.update_yaxes(title_text="lr ÷ peak lr", row=2, col=1, range=[-0.05, 1.1])
    name = f"{shape_name(first.width, first.depth)} at lr {first.lr:.3g}"
    low = f"down to {nats(done.loss.min())} nats per token" if len(done) else "without a finished model"
    finding = f"{name}: one trunk, {len(rows)} finished model{'s' * (len(rows) != 1)}, {low}"
    read = "The grey trunk is trained once; each coloured fork leaves it where its decay begins and ends as a finished model, measured at the diamond."
    return framed(fig, finding, read, 600)


def line(
    fig: go.Figure, x: Any, y: Any, name: str, c: str, row: int, group: str | None = None, legend: bool | None = None
) -> None:
    show = (row == 1) if legend is None else legend
    kind = go.Scattergl if len(x) > POINTS else go.Scatter
    over = "%{x:,.0f} tokens<br>%{y:.4f}<extra></extra>"
    look = {"color": c, "width": 1.8}
    fig.add_trace(
        kind(
            x=x, y=y, name=name, mode="lines", line=look, legendgroup=group or name, showlegend=show, hovertemplate=over
        ),
        row=row,
        col=1,
    )


def multipliers(r: Any) -> tuple[np.ndarray, list[float]]:
    """A run's lr multiplier by the schedule itself, from 0 tokens to D."""
    length = int(r.D - r.decay_start)
    corners = [
        np.linspace(0, max(r.warmup, 1), 20),
        [r.decay_start],
        r.decay_start + length * np.linspace(0, 1, 60) ** 2,
    ]
    at = np.unique(np.concatenate(corners).astype(int))
    batch = int(r.batch_tokens)
    args = (batch, int(r.warmup), int(r.decay_start), length, r.decay_shape, float(r.min_ratio))
    return at, [schedule.multiplier(int(t), *args) for t in at]


def shade(fig: go.Figure, rows: pd.DataFrame) -> None:
    """Warmup, stable and the decays as bands behind both panels."""
    warmup = float(rows.iloc[0].warmup)
    bands, before = [("warmup", 0.0, warmup)], warmup
    for start, end in zip(rows.decay_start.astype(float), rows.D.astype(float), strict=True):
        bands += [("stable", before, start), ("decay", max(start, before), end)]
        before = end
    for phase, start, end in bands:
        look = {
            "fillcolor": PHASES[phase],
            "opacity": 0.07 if phase == "stable" else 0.18,
            "line_width": 0,
            "layer": "below",
        }
        fig.add_vrect(x0=start, x1=end, row="all", col=1, **look)
    for phase in PHASES:
        legend_only(
            fig,
            f"phase: {phase}",
            mode="markers",
            marker={"symbol": "square", "size": 12, "color": PHASES[phase], "opacity": 0.4},
        )


def sight(trunk: pd.DataFrame | None, forks: Mapping[str, pd.DataFrame], ends: pd.Series) -> list[float] | None:
    """The losses worth seeing: the first steps' fall would hide all the rest."""
    found = [c.loss.to_numpy(float) for c in (trunk, *forks.values()) if c is not None and len(c)] + [
        ends.to_numpy(float)
    ]
    all_of = np.concatenate(found)
    all_of = all_of[np.isfinite(all_of)]
    if len(all_of) < 5:
        return None
    low, high = float(all_of.min()), float(np.quantile(all_of, 0.93))
    room = 0.08 * max(high - low, 1e-3)
    return [low - room, high + room]


def thinned(curve: pd.DataFrame) -> pd.DataFrame:
    """A curve as at most `POINTS` points: means of equal runs of rows."""
    if len(curve) <= POINTS:
        return curve
    return curve.groupby(np.arange(len(curve)) * POINTS // len(curve)).mean()


def fan(curves: Sequence[tuple[str, float, pd.DataFrame]], stage: str, total: int) -> go.Figure:
    """Trunks of a stage, one over another: (shape, lr, curve) each; at most `CURVES` of `total` are drawn."""
    fig = go.Figure()
    shapes = {s: i for i, s in enumerate(dict.fromkeys(s for s, _, _ in curves))}
    seen: set[str] = set()
    for shape, lr, curve in curves[:CURVES]:
        t, i = thinned(curve), shapes[shape]
        look = {"color": colour(i), "width": 1.3, "dash": DASHES[(i // 6) % len(DASHES)]}
        over = f"{shape} lr {lr:.3g}<br>%{{x:,.0f}} tokens<br>%{{y:.4f}}<extra></extra>"
        fig.add_trace(
            go.Scatter(
                x=t.tokens,
                y=t.loss,
                mode="lines",
                name=shape,
                legendgroup=shape,
                showlegend=shape not in seen,
                line=look,
                hovertemplate=over,
            )
        )
        seen.add(shape)
    fig.update_xaxes(title_text="tokens", tickformat="~s")
    fig.update_yaxes(
        title_text="training " + NATS,
        range=sight(None, {str(i): c for i, (_, _, c) in enumerate(curves)}, pd.Series(dtype=float)),
    )
    drawn = min(len(curves), CURVES)
    finding = f"Stage {stage}: {drawn} trunk{'s' * (drawn != 1)} of {len(shapes)} shape{'s' * (len(shapes) != 1)}" + (
        f" (of {total})" if total > drawn else ""
    )
    return framed(
        fig,
        finding,
        "Each line is a trunk before any decay; one colour is one shape, and its lines differ in lr and in what else was searched.",
        420,
    )
