"""The figures of what is recommended: the readings behind a setting, and what compute buys. Values in, plotly out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from dashboard.figures import BAND, legend_only, setting_axis, shape_name
from dashboard.law_figures import bars
from dashboard.spend import Spent
from dashboard.style import NATS, NEUTRAL, colour, duration, framed, log_axis, nats, short, symbol


def evidence(name: str, setting: Mapping[str, Any], rows: pd.DataFrame) -> go.Figure:
    """The readings behind a setting: their loss against it, a colour per shape, with its value and interval.

    `rows`: finished readings with their `name`, at least one.
    """
    fig = go.Figure()
    shapes = {shape_name(w, d): (w, d) for w, d in sorted(set(zip(rows.width, rows.depth, strict=True)))}
    for i, (shape, (w, d)) in enumerate(shapes.items()):
        mine = rows[(rows.width == w) & (rows.depth == d)]
        text = [f"{shape}, D {short(t)}" for t in mine.D]
        over = f"%{{text}}<br>{name} %{{x:.4g}}<br>loss %{{y:.4f}}<extra></extra>"
        mark = {"color": colour(i), "symbol": symbol(i), "size": 8}
        look = {"mode": "markers", "marker": mark, "text": text, "customdata": mine["name"], "hovertemplate": over}
        fig.add_trace(go.Scatter(x=mine[name], y=mine.loss, name=shape, **look))
    value, low, high = (setting[k] for k in ("value", "low", "high"))
    shown = rows[name]
    if not isinstance(value, str):
        line = {"color": NEUTRAL, "width": 2, "dash": "dash"}
        fig.add_vline(x=value, line=line)
        legend_only(fig, f"recommended: {short(value)}", mode="lines", line=line)
        if low is not None and high is not None and low < high:
            fig.add_vrect(x0=low, x1=high, fillcolor=NEUTRAL, opacity=0.18, line_width=0, layer="below")
            mark = {"symbol": "square", "size": 14, "color": NEUTRAL, "opacity": 0.3}
            fitted = not str(setting["source"]).startswith("best trial")
            legend_only(fig, BAND if fitted else "the range tried", mode="markers", marker=mark)
        ends = [v for v in (value, low, high) if v is not None]
        shown = pd.concat([shown, pd.Series(ends, dtype=float)])
    fig.update_xaxes(**setting_axis(name, shown))
    fig.update_yaxes(title_text=NATS)
    read = "each mark is a finished proxy that this value rests on, a colour for each shape; a click opens its trial."
    return framed(fig, evidence_finding(name, setting, rows), read, 440)


def evidence_finding(name: str, setting: Mapping[str, Any], rows: pd.DataFrame) -> str:
    value, low, high = (setting[k] for k in ("value", "low", "high"))
    said = value if isinstance(value, str) else short(value)
    ends = "" if low is None or low == high else f" ({short(low)} to {short(high)})"
    return f"{name} = {said}{ends} rests on {len(rows)} readings: {setting['source']}"


def budget(path: Sequence[Spent], at: Spent, told: Mapping[str, Any], law: str, currency: str) -> go.Figure:
    """The expected loss over compute, with the target's forecast and the budget that was asked. At least one point."""
    fig = go.Figure()
    x, y = [s.C for s in path], [s.loss for s in path]
    text = [f"N {short(s.N)}, D {short(s.D)}, {duration(s.seconds)}, {s.cost:.3g} {currency}" for s in path]
    over = "C %{x:.3g} FLOPs<br>%{text}<br>loss %{y:.4f}<extra></extra>"
    fig.add_trace(go.Scatter(x=x, y=y, text=text, hovertemplate=over, mode="lines", name=f"law “{law}”"))
    fig.data[0].line = {"color": colour(0), "width": 2}
    target = told["target"]
    c = 6.0 * target["N"] * target["tokens"]
    ends = bars([told["low"]], [told["forecast"]], [told["high"]], 2)
    mark = {"symbol": "diamond", "size": 12, "color": colour(1)}
    look = {"mode": "markers", "marker": mark, "error_y": {**ends, "color": colour(1)}}
    fig.add_trace(go.Scatter(x=[c], y=[told["forecast"]], **look, name="the target’s forecast, 90% interval"))
    mark = {"symbol": "star", "size": 15, "color": colour(2)}
    fig.add_trace(go.Scatter(x=[at.C], y=[at.loss], mode="markers", marker=mark, name="this budget"))
    largest = c / told["compute_ratio"]
    if largest > x[0]:
        fig.add_vrect(x0=x[0], x1=largest, fillcolor=NEUTRAL, opacity=0.15, line_width=0, layer="below")
        mark = {"symbol": "square", "size": 14, "color": NEUTRAL, "opacity": 0.3}
        legend_only(fig, "as much compute as readings have", mode="markers", marker=mark)
    fig.update_xaxes(**log_axis("compute (FLOPs, 6ND)", x[0], x[-1]))
    fig.update_yaxes(title_text=NATS)
    read = "the line is what the law expects of each budget; right of the grey, no reading has been, and it may bend."
    return framed(fig, budget_finding(at), read, 420)


def budget_finding(at: Spent) -> str:
    far = f"{at.beyond:.2g} decades beyond the readings" if at.beyond > 0 else "among the readings"
    bought = f"{short(at.N)} parameters on {short(at.D)} tokens"
    return f"{at.C:.2g} FLOPs buy {bought}: about {nats(at.loss)} nats per token, {far}"
