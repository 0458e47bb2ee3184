"""The figures of what was searched: tables in, plotly figures out. Nothing here reads a file.

Tables are `Store.readings` (contract 4's columns) and `Store.curve`; fits are DIR/fits/*.json.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dashboard.style import NATS, NEUTRAL, colour, framed, log_axis, nats, short, symbol
from tunnel.space import DIMENSIONS

COLUMNS = 3  # panels beside each other
PANEL = 300  # pixels of a row of panels


def shape_name(width: float, depth: float) -> str:
    return f"{int(width)}×{int(depth)}"


def legend_only(fig: go.Figure, name: str, **look: Any) -> None:
    """A legend's entry for a kind of mark that occurs in several colours."""
    fig.add_trace(go.Scatter(x=[None], y=[None], name=name, **look))


def panels(titles: Sequence[str], **options: Any) -> tuple[go.Figure, list[dict[str, int]]]:
    """A grid of panels, and each one's row and column."""
    columns = min(COLUMNS, len(titles))
    rows = math.ceil(len(titles) / columns)
    gap = {"horizontal_spacing": 0.09 if columns > 1 else 0.0, "vertical_spacing": 0.28 / rows if rows > 1 else 0.0}
    fig = make_subplots(rows=rows, cols=columns, subplot_titles=list(titles), **gap, **options)
    return fig, [{"row": i // columns + 1, "col": i % columns + 1} for i in range(len(titles))]


def tall(count: int) -> int:
    return 150 + PANEL * math.ceil(count / COLUMNS)


# valleys


def valleys(readings: pd.DataFrame, fit: Mapping[str, Any] | None = None) -> go.Figure:
    """Loss against lr, a panel per shape and a colour per rung; with the joint fit's valleys where there is one.

    `readings`: the finished readings of one stage, at least one.
    """
    shapes = sorted(readings.groupby(["width", "depth"], sort=True).groups)
    rungs = {d: i for i, d in enumerate(sorted(readings.D.unique()))}
    fig, places = panels([shape_name(*s) for s in shapes], shared_yaxes="all")
    for s, place in zip(shapes, places, strict=True):
        here = readings[(readings.width == s[0]) & (readings.depth == s[1])]
        for d, rows in here.groupby("D"):
            look = {"color": colour(rungs[d]), "symbol": symbol(rungs[d]), "size": 8}
            fig.add_trace(
                go.Scatter(x=rows.lr, y=rows.loss, mode="markers", marker=look, showlegend=False,
                           legendgroup=str(d), hovertemplate=f"D {short(d)}<br>lr %{{x:.3g}}<br>loss %{{y:.4f}}<extra></extra>"),
                **place,
            )  # fmt: skip
    for d, i in rungs.items():
        mark = {"color": colour(i), "symbol": symbol(i), "size": 8}
        legend_only(
            fig,
            f"D = {short(d)} tokens",
            legendgroup=str(d),
            mode="markers+lines",
            marker=mark,
            line={"color": colour(i)},
        )
    curved = bool(fit and fit["surface"]["curved"])
    if fit and curved:
        fitted_valleys(fig, fit, dict(zip(shapes, places, strict=True)), rungs)
    fig.update_xaxes(**log_axis("lr (per step, at the base shape)", readings.lr.min(), readings.lr.max()))
    fig.update_yaxes(title_text=NATS, col=1)
    read = "Each panel is a shape and each colour a length of training D: a valley's lowest point is the best lr there"
    read += (
        "; lines are one fit to all readings, ringed crosses their minima."
        if curved
        else "; the minima are fitted when the ladder is done."
    )
    return framed(fig, valley_finding(readings, fit), read, tall(len(shapes)))


def fitted_valleys(
    fig: go.Figure, fit: Mapping[str, Any], places: Mapping[Any, dict[str, int]], rungs: Mapping[float, int]
) -> None:
    """Draws log loss = m + h·(log lr − log lr*)² per shape and rung, and its minimum."""
    for m in fit["minima"]:
        place, i = places.get((m["width"], m["depth"])), rungs.get(m["D"])
        if place is None or i is None:
            continue
        lr = np.geomspace(min(*m["lrs"], m["lr"]), max(*m["lrs"], m["lr"]), 40)
        loss = m["loss"] * np.exp(fit["surface"]["h"] * (np.log(lr) - math.log(m["lr"])) ** 2)
        line = {"color": colour(i), "width": 1.5}
        fig.add_trace(
            go.Scatter(
                x=lr, y=loss, mode="lines", line=line, showlegend=False, legendgroup=str(m["D"]), hoverinfo="skip"
            ),
            **place,
        )
        fig.add_trace(
            go.Scatter(x=[m["lr"]], y=[m["loss"]], mode="markers", showlegend=False, legendgroup=str(m["D"]),
                       marker={"symbol": "circle-cross-open", "size": 12, "color": colour(i), "line": {"width": 2}},
                       hovertemplate="minimum<br>lr %{x:.3g}<br>loss %{y:.4f}<extra></extra>"),
            **place,
        )  # fmt: skip
    legend_only(
        fig,
        "fitted minimum",
        mode="markers",
        marker={"symbol": "circle-cross-open", "size": 12, "color": NEUTRAL, "line": {"width": 2}},
    )


def valley_finding(readings: pd.DataFrame, fit: Mapping[str, Any] | None) -> str:
    if fit is None:
        return f"{len(readings)} readings so far; the best is {best_of(readings)}"
    if not fit["surface"]["curved"]:
        return "The fans show no minimum: their learning rates all lie on one side of the valley"
    d = fit["lr_drift"]
    ends = {k: (d.get(f"{k}_low", d.get("low")), d.get(f"{k}_high", d.get("high"))) for k in "ND"}
    moves = [movement(d[f"per_10x_{k}_octaves"], *ends[k], k) for k in "DN"]
    return f"The best learning rate {moves[0]} and {moves[1]}"


def movement(octaves: float, low: float | None, high: float | None, along: str) -> str:
    """How lr* moves, in words, no more sure than the interval."""
    if low is None or high is None:
        return f"moves {octaves:+.2f} octaves per tenfold {along}"
    if low <= 0 <= high:
        return f"does not clearly move with {along} ({low:+.2f} to {high:+.2f} octaves per tenfold)"
    how, ends = ("falls", (-high, -low)) if octaves < 0 else ("rises", (low, high))
    return f"{how} by {abs(octaves):.2f} octaves per tenfold {along} ({ends[0]:.2f} to {ends[1]:.2f})"


def best_of(readings: pd.DataFrame) -> str:
    r = readings.loc[readings.loss.idxmin()]
    return f"{shape_name(r.width, r.depth)} at lr {r.lr:.3g}: {nats(r.loss)} nats per token"


# searches


def searched(readings: pd.DataFrame, axes: Sequence[str], evidence: Mapping[str, Any], stage: str) -> go.Figure:
    """Loss against each searched setting, with the fitted minimum and its interval where it was handed on.

    `readings`: a search's readings, diverged ones included, at least one of them finished.
    """
    rows = readings[readings.status == "complete"]
    lost = readings[readings.status == "diverged"]
    top = rows.loss.max() + 0.06 * max(np.ptp(rows.loss), 0.01)
    best = rows.loc[rows.loss.idxmin()]
    fig, places = panels([DIMENSIONS[a].meaning for a in axes], shared_yaxes="all")
    for i, (axis, place) in enumerate(zip(axes, places, strict=True)):
        once = {"showlegend": i == 0}
        over = f"{axis} %{{x:.4g}}<br>loss %{{y:.4f}}<extra></extra>"
        add = lambda x, y, name, look, where=place, once=once, over=over: fig.add_trace(  # noqa: E731
            go.Scatter(x=x, y=y, name=name, mode="markers", legendgroup=name, marker=look, hovertemplate=over, **once),
            **where,
        )
        add(rows[axis], rows.loss, "finished trial", {"color": colour(0), "size": 8, "opacity": 0.75})
        if len(lost):
            add(lost[axis], [top] * len(lost), "diverged (no loss)", {"color": colour(1), "symbol": "x", "size": 9})
        add([best[axis]], [best.loss], "best trial", {"color": colour(2), "symbol": "star", "size": 14})
        known = evidence.get(axis)
        if known and known.get("low") is not None and "minimum" in known["source"]:
            interval(fig, known, place, i == 0)
        fig.update_xaxes(**setting_axis(axis, readings[axis]), **place)
    fig.update_yaxes(title_text=NATS, col=1)
    read = (
        "Each dot is a trial, drawn once per panel against one of its settings; the lower a dot, the better the model"
    )
    read += ", and the shaded band is the 90% interval of the fitted minimum that was handed on." if evidence else "."
    return framed(fig, search_finding(stage, best, axes, evidence), read, tall(len(axes)))


def interval(fig: go.Figure, known: Mapping[str, Any], place: Mapping[str, int], legend: bool) -> None:
    """A setting's fitted minimum as a line in its 90% band."""
    name = "fitted minimum, 90% interval"
    fig.add_vrect(x0=known["low"], x1=known["high"], fillcolor=colour(3), opacity=0.25, line_width=0, layer="below",
                  name=name, showlegend=legend, legendgroup=name, **place)  # fmt: skip
    fig.add_vline(x=known["value"], line={"color": colour(3), "width": 2}, layer="below", **place)


def setting_axis(axis: str, values: pd.Series) -> dict[str, Any]:
    unit = "tokens" if axis == "warmup" else DIMENSIONS[axis].unit
    title = f"{axis} ({unit})" if unit else axis
    numeric = pd.api.types.is_numeric_dtype(values)
    if numeric and DIMENSIONS[axis].kind == "float" and values.min() > 0:
        return log_axis(title, float(values.min()), float(values.max()))
    return {"title": {"text": title}, **({"tickformat": "~s"} if numeric and values.max() >= 1e4 else {})}


def search_finding(stage: str, best: Any, axes: Sequence[str], evidence: Mapping[str, Any]) -> str:
    fitted = [f"{a} {short(evidence[a]['value'])}" for a in axes if a in evidence]
    if fitted:
        return f"Stage {stage} hands on {', '.join(fitted)}; its best trial reached {nats(best.loss)} nats per token"
    values = ", ".join(f"{a} {short(best[a]) if not isinstance(best[a], str) else best[a]}" for a in axes)
    return f"Stage {stage}: the best trial so far reached {nats(best.loss)} nats per token at {values}"


def aspect(readings: pd.DataFrame, stage: str) -> go.Figure:
    """Loss against width ÷ depth at equal FLOPs: narrow and deep to the left, wide and shallow to the right."""
    rows = readings.assign(aspect=readings.width / readings.depth)
    fig = go.Figure()
    for i, (width, here) in enumerate(rows.groupby("width")):
        names = [shape_name(w, d) for w, d in zip(here.width, here.depth, strict=True)]
        fig.add_trace(
            go.Scatter(x=here.aspect, y=here.loss, name=f"width {width} channels", mode="markers", customdata=here.lr, text=names,
                       marker={"color": colour(i), "symbol": symbol(i), "size": 10},
                       hovertemplate="%{text}<br>lr %{customdata:.3g}<br>loss %{y:.4f}<extra></extra>")
        )  # fmt: skip
    least = rows.loc[rows.groupby(["width", "depth"]).loss.idxmin()].sort_values("aspect")
    fig.add_trace(
        go.Scatter(x=least.aspect, y=least.loss, mode="lines+text", name="best of each shape", line={"color": NEUTRAL, "dash": "dot"},
                   text=[shape_name(w, d) for w, d in zip(least.width, least.depth, strict=True)], textposition="bottom center",
                   hoverinfo="skip")
    )  # fmt: skip
    best = rows.loc[rows.loss.idxmin()]
    fig.update_xaxes(**log_axis("width ÷ depth (channels per layer)", rows.aspect.min(), rows.aspect.max()))
    fig.update_yaxes(title_text=NATS)
    flops = float(rows.flops.median())
    finding = f"Stage {stage}: at equal compute ({short(flops)}FLOP), {shape_name(best.width, best.depth)} does best, {nats(best.loss)} nats per token"
    read = "Every model here cost the same FLOPs; left is narrow and deep, right wide and shallow, and the dotted line joins each shape's best trial."
    return framed(fig, finding, read)
