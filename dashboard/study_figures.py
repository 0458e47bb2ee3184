"""The figures of whole studies: losses as they came in, a running trial, studies on one axis. Tables in, plotly out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from dashboard.address import trial_of
from dashboard.figures import best_of, names_of
from dashboard.style import DASHES, NATS, colour, framed, log_axis, nats, short, symbol

PROGRESS = ["stage", "trial", "width", "depth", "lr", "D", "loss", "started"]
DRAWN = 600  # readings of a stage that are drawn, beside those that were the best so far  *assumed*
POINTS = 800  # of a running trial's curve: more than a screen shows  *assumed*
SEEN = 0.05  # of a running trial's losses that may lie above the figure: the first steps' fall


def progress(readings: pd.DataFrame) -> go.Figure:
    """The readings' losses in the order in which they came, and the best so far of each stage.

    `readings`: finished ones, at least one; of very many, those that were the best so far and every so-manieth.
    """
    rows = readings[PROGRESS].sort_values(["started", "D"], ignore_index=True)
    fig, left_out = go.Figure(), False
    for i, stage in enumerate(rows.stage.unique()):
        here = rows[rows.stage == stage]
        best = here.loss.cummin()
        few = thinned(here, best)
        left_out |= len(few) < len(here)
        text = [f"{name} D {short(d)}" for name, d in zip(names_of(few), few.D, strict=True)]
        names = [trial_of(stage, t) for t in few.trial]
        look = {"marker": {"color": colour(i), "symbol": symbol(i), "size": 7}, "text": text, "customdata": names}
        over = "%{text}<br>loss %{y:.4f}<extra></extra>"
        fig.add_trace(go.Scatter(x=few.index + 1, y=few.loss, name=stage, mode="markers", hovertemplate=over, **look))
        line = {"color": colour(i), "shape": "hv", "dash": DASHES[i % len(DASHES)]}
        name = f"best of {stage} so far"
        falls = best.iloc[np.append(some(np.flatnonzero(~best.duplicated())), len(best) - 1)]
        fig.add_trace(go.Scatter(x=falls.index + 1, y=falls, name=name, mode="lines", line=line, hoverinfo="skip"))
    fig.update_xaxes(title_text="reading (number, in the order they finished)")
    fig.update_yaxes(title_text=NATS)
    finding = f"{len(rows):,} finished models; the best is {best_of(rows)}"
    read = "each mark is one finished model of a proxy, a click opens its trial; the steps are its stage's best so far"
    more = f"; of each stage {DRAWN} are drawn, and as many of those that were the best so far" * left_out
    return framed(fig, finding, f"{read}{more}.", 420)


def thinned(rows: pd.DataFrame, best: pd.Series) -> pd.DataFrame:
    """Every so-manieth row, and of those that were the best so far too, the last one included."""
    better = np.flatnonzero(~best.duplicated())
    few = np.union1d(some(np.arange(len(rows))), some(better))
    return rows.iloc[few]


def some(places: np.ndarray) -> np.ndarray:
    """At most `DRAWN` of them, evenly, with the last."""
    return places[np.unique(np.linspace(0, len(places) - 1, min(DRAWN, len(places))).astype(int))]


def running(curve: pd.DataFrame, name: str, what: str, of: float) -> go.Figure:
    """A running trial's training loss against tokens; `of`: the tokens that it takes in all, its forks included."""
    rows = curve.iloc[:: max(len(curve) // POINTS, 1)]
    rest = curve.loss.iloc[int(len(curve) * SEEN) :]
    now, lowest = curve.iloc[-1], float(curve.loss.min())
    room = 0.08 * max(float(rest.max()) - lowest, 1e-3)
    over = "%{x:,.0f} tokens<br>%{y:.4f}<extra></extra>"
    line = {"color": colour(0), "width": 1.8}
    fig = go.Figure(
        go.Scatter(x=rows.tokens, y=rows.loss, mode="lines", name="training loss", line=line, hovertemplate=over)
    )
    fig.update_xaxes(title_text="tokens", tickformat="~s")
    fig.update_yaxes(title_text=NATS, range=[lowest - room, float(rest.max()) + room])
    finding = f"{name} ({what}) is at {nats(float(now.loss))} after {short(float(now.tokens))} of {short(of)} tokens"
    return framed(
        fig, finding, "the line is the loss on what it is trained with, step by step; it moves by itself.", 360
    )


def compared(lines: Mapping[str, pd.DataFrame], x_title: str, finding: str, read: str, marks: bool) -> go.Figure:
    """Several studies or stages on one axis. `lines`: x (above 0) and y by name, at least one with a row."""
    fig = go.Figure()
    for i, (name, rows) in enumerate(lines.items()):
        look: dict[str, Any] = {"line": {"color": colour(i), "dash": DASHES[i % len(DASHES)], "width": 2}}
        look |= {"marker": {"color": colour(i), "symbol": symbol(i), "size": 8}} if marks else {}
        text = rows.text if "text" in rows else None
        over = ("%{text}<br>" if text is not None else "") + "%{x:.4g}<br>loss %{y:.4f}<extra>%{fullData.name}</extra>"
        mode = "lines+markers" if marks else "lines"
        fig.add_trace(go.Scatter(x=rows.x, y=rows.y, text=text, name=name, mode=mode, hovertemplate=over, **look))
    values = pd.concat([rows.x for rows in lines.values()])
    fig.update_xaxes(**log_axis(x_title, float(values.min()), float(values.max())))
    fig.update_yaxes(title_text=NATS)
    return framed(fig, finding, read, 480)
