"""The figures of what was searched: tables in, plotly figures out. Nothing here reads a file.

Tables are `Store.readings` (contract 4's columns); fits are DIR/fits/*.json.
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
FAR = 4.0  # a minimum that lies further outside of what was tried is out of sight  *assumed*
PANEL = 300  # pixels of a row of panels
Place = dict[str, int]  # a panel's row and column
RING = {"symbol": "circle-cross-open", "size": 12, "line": {"width": 2}}
MANY = 1000  # marks of a panel that want WebGL  *assumed*
SHAPES = 6  # that a finding names  *assumed*
ABOVE_BEST = "loss above the best lr's mean (%)"
ABOVE = "loss above the valley's minimum (%)"
BAND = "fitted minimum, 90% interval"


def shape_name(width: float, depth: float) -> str:
    return f"{int(width)}×{int(depth)}"


def names_of(rows: pd.DataFrame) -> list[str]:
    return [shape_name(w, d) for w, d in zip(rows.width, rows.depth, strict=True)]


def least(rows: pd.DataFrame) -> pd.Series:
    """The reading with the lowest loss."""
    return rows.iloc[int(np.argmin(rows.loss.to_numpy(float)))]


def best_of(rows: pd.DataFrame) -> str:
    r = least(rows)
    return f"{shape_name(r.width, r.depth)} at lr {r.lr:.3g}: {nats(r.loss)} nats per token"


def legend_only(fig: go.Figure, name: str, **look: Any) -> None:
    """A legend's entry for a kind of mark that occurs in several colours."""
    fig.add_trace(go.Scatter(x=[None], y=[None], name=name, **look))


def panels(titles: Sequence[str]) -> tuple[go.Figure, list[Place]]:
    """A grid of panels with one range of losses, and each one's row and column."""
    columns = 2 if len(titles) in (2, 4) else min(COLUMNS, len(titles))
    rows = math.ceil(len(titles) / columns)
    gap = {"horizontal_spacing": 0.08, "vertical_spacing": 0.34 / rows}
    fig = make_subplots(rows=rows, cols=columns, subplot_titles=list(titles), shared_yaxes="all", **gap)
    return fig, [{"row": i // columns + 1, "col": i % columns + 1} for i in range(len(titles))]


def framed_panels(fig: go.Figure, finding: str, read: str, places: Sequence[Place], unit: str = NATS) -> go.Figure:
    fig.update_yaxes(title_text=unit, col=1)
    return framed(fig, finding, read, 170 + PANEL * places[-1]["row"], head=28)


# valleys


def valleys(readings: pd.DataFrame, fit: Mapping[str, Any] | None = None, relative: bool = False) -> go.Figure:
    """Loss against lr, a panel per shape and a colour per rung; with the joint fit's valleys where there is one.

    `readings`: the finished readings of one stage, at least one. `relative`: percent above each valley's own minimum.
    """
    curved, finding = bool(fit and fit["surface"]["curved"]), valley_finding(readings, fit)
    if relative and fit and curved:
        readings, fit = above_minimum(readings, fit)
    elif relative:
        readings = above_best(readings)
    shapes = sorted({(int(w), int(d)) for w, d in zip(readings.width, readings.depth, strict=True)})
    rungs = {float(d): i for i, d in enumerate(sorted(readings.D.unique()))}
    fig, places = panels([shape_name(*s) for s in shapes])
    for s, place in zip(shapes, places, strict=True):
        here = readings[(readings.width == s[0]) & (readings.depth == s[1])]
        for d, i in rungs.items():
            rows = here[d == here.D]
            over = f"D {short(d)}<br>lr %{{x:.3g}}<br>loss %{{y:.4f}}<extra></extra>"
            mark = {"color": colour(i), "symbol": symbol(i), "size": 8}
            look = {"mode": "markers", "marker": mark, "legendgroup": str(d), "showlegend": False}
            fig.add_trace(go.Scatter(x=rows.lr, y=rows.loss, hovertemplate=over, **look), **place)
            if not curved:  # what a fit would say is not known: the seeds' means are joined
                means = rows.groupby("lr").loss.mean()
                look = {"mode": "lines", "line": {"color": colour(i), "width": 1.3}, "legendgroup": str(d)}
                fig.add_trace(go.Scatter(x=means.index, y=means, hoverinfo="skip", showlegend=False, **look), **place)
    for d, i in rungs.items():
        mark = {"color": colour(i), "symbol": symbol(i), "size": 8}
        look = {"mode": "markers+lines", "marker": mark, "line": {"color": colour(i)}}
        legend_only(fig, f"D = {short(d)} tokens", legendgroup=str(d), **look)
    if fit and curved:
        fitted_valleys(fig, fit, dict(zip(shapes, places, strict=True)), rungs)
    low, high = readings.lr.min(), readings.lr.max()
    at = [m["lr"] for m in fit["minima"]] if fit and curved else []
    ends = (max(min(low, *at), low / FAR), min(max(high, *at), high * FAR)) if at else (low, high)
    fig.update_xaxes(**log_axis("lr (per step, at the base shape)", *ends))
    read = (
        "each panel is a shape and each colour a length of training D, and a valley's lowest point is the best lr there"
    )
    more = (
        "; lines are one fit to all readings, ringed crosses its minima."
        if curved
        else "; lines join the seeds' means."
    )
    unit = (ABOVE if curved else ABOVE_BEST) if relative else NATS
    return framed_panels(fig, finding, read + more, places, unit)


def above_minimum(readings: pd.DataFrame, fit: Mapping[str, Any]) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Both with percent above each cell's fitted minimum instead of losses; readings without a cell are left out."""
    lows = {(m["width"], m["depth"], m["D"]): m["loss"] for m in fit["minima"]}
    low = [lows.get(k, math.nan) for k in zip(readings.width, readings.depth, readings.D, strict=True)]
    rows = readings.assign(loss=100 * (readings.loss / np.array(low) - 1))
    return rows[rows.loss.notna()], {**fit, "minima": [{**m, "loss": 0.0, "scale": 100.0} for m in fit["minima"]]}


def above_best(readings: pd.DataFrame) -> pd.DataFrame:
    """Percent above the best lr's mean of each cell instead of losses."""
    cell = ["width", "depth", "D"]
    means = readings.groupby([*cell, "lr"]).loss.transform("mean")
    least = means.groupby([readings[k] for k in cell]).transform("min")
    return readings.assign(loss=100 * (readings.loss / least - 1))


def fitted_valleys(
    fig: go.Figure, fit: Mapping[str, Any], places: Mapping[tuple[int, int], Place], rungs: Mapping[float, int]
) -> None:
    """Draws log loss = m + h·(log lr − log lr*)² per shape and rung, and its minimum."""
    for m in fit["minima"]:
        place, i = places.get((m["width"], m["depth"])), rungs.get(m["D"])
        if place is None or i is None:
            continue
        look = {"legendgroup": str(float(m["D"])), "showlegend": False}
        lr = np.geomspace(min(*m["lrs"], m["lr"]), max(*m["lrs"], m["lr"]), 40)
        rise = np.expm1(fit["surface"]["h"] * (np.log(lr) - math.log(m["lr"])) ** 2)
        loss = m["loss"] + m.get("scale", m["loss"]) * rise
        line = {"color": colour(i), "width": 1.5}
        fig.add_trace(go.Scatter(x=lr, y=loss, mode="lines", line=line, hoverinfo="skip", **look), **place)
        over = "minimum<br>lr %{x:.3g}<br>loss %{y:.4f}<extra></extra>"
        mark = {**RING, "color": colour(i)}
        at = {"x": [m["lr"]], "y": [m["loss"]]}
        fig.add_trace(go.Scatter(**at, mode="markers", marker=mark, hovertemplate=over, **look), **place)
    legend_only(fig, "fitted minimum", mode="markers", marker={**RING, "color": NEUTRAL})


def valley_finding(readings: pd.DataFrame, fit: Mapping[str, Any] | None) -> str:
    if fit is None:
        return f"{len(readings)} readings; best of those read {best_lrs(readings)}"
    if not fit["surface"]["curved"]:
        return "The fans show no minimum: their learning rates all lie on one side of the valley"
    d = fit["lr_drift"]
    moves = [movement(d[f"per_10x_{k}_octaves"], d.get(f"{k}_low"), d.get(f"{k}_high"), k) for k in "DN"]
    return f"The best learning rate {moves[0]} and {moves[1]}"


def best_lrs(readings: pd.DataFrame) -> str:
    """Each shape's best lr at the longest rung that was read, by the seeds' mean."""
    rows = readings[readings.D.max() == readings.D]
    means = rows.groupby(["width", "depth", "lr"]).loss.mean().reset_index()
    best = means.loc[means.groupby(["width", "depth"]).loss.idxmin()].head(SHAPES)
    said = [f"lr {r.lr:.3g} for {shape_name(r.width, r.depth)}" for _, r in best.iterrows()]
    return f"at D = {short(rows.D.max())}: {', '.join(said)}"


def movement(octaves: float, low: float | None, high: float | None, along: str) -> str:
    """How lr* moves, in words, no more sure than its interval.

    >>> movement(-0.38, -0.44, -0.31, "D")
    'falls by 0.38 octaves per tenfold D (0.31 to 0.44)'
    """
    if low is None or high is None:
        return f"moves {octaves:+.2f} octaves per tenfold {along}"
    if low <= 0 <= high:
        return f"does not clearly move with {along} ({low:+.2f} to {high:+.2f} octaves per tenfold)"
    how, ends = ("falls", (-high, -low)) if octaves < 0 else ("rises", (low, high))
    return f"{how} by {abs(octaves):.2f} octaves per tenfold {along} ({ends[0]:.2f} to {ends[1]:.2f})"


# searches


def searched(
    readings: pd.DataFrame,
    axes: Sequence[str],
    evidence: Mapping[str, Any],
    stage: str,
    kinds: Sequence[tuple[str, pd.DataFrame, Mapping[str, Any]]] | None = None,
) -> go.Figure:
    """Loss against each searched setting, with the fitted minimum and its interval where it was handed on.

    `readings`: a search's readings, diverged ones included, at least one of them finished. `kinds`: name, readings and
    mark of each colour; all finished ones are of one where they are not given.
    """
    done, lost = (readings[readings.status == s] for s in ("complete", "diverged"))
    top = done.loss.max() + 0.06 * max(float(np.ptp(done.loss)), 0.01)
    best = least(done)
    fig, places = panels([DIMENSIONS[a].meaning for a in axes])
    drawn = [*(kinds or [("finished trial", done, {"color": colour(0), "size": 8})])]
    drawn.append(("best trial", done[done.index == best.name], {"color": colour(2), "symbol": "star", "size": 14}))
    if len(lost):
        x = {"color": colour(1), "symbol": "x", "size": 9}
        drawn.append(("diverged (has no loss: drawn on top)", lost.assign(loss=top), x))
    kind = go.Scattergl if len(readings) > MANY else go.Scatter
    marks, where = [], []
    for name, rows, mark in drawn:
        loss, which = rows.loss.to_numpy(), {"customdata": rows["name"].to_numpy()} if "name" in rows else {}
        look = {"name": name, "legendgroup": name, "mode": "markers", "marker": mark, "y": loss, **which}
        for i, axis in enumerate(axes):
            over = f"{axis} %{{x:.4g}}<br>loss %{{y:.4f}}<extra></extra>"
            marks.append(kind(x=rows[axis].to_numpy(), hovertemplate=over, showlegend=i == 0, **look))
            where.append(places[i])
    fig.add_traces(marks, *([at[k] for at in where] for k in ("row", "col")))
    for axis, place in zip(axes, places, strict=True):
        fig.update_xaxes(**setting_axis(axis, readings[axis]), **place)
    fitted = {a: known for a in axes if (known := evidence.get(a)) and "minimum" in str(known["source"])}
    for i, (axis, known) in enumerate(fitted.items()):
        interval(fig, known, places[list(axes).index(axis)], legend=i == 0)
    read = "each dot is a trial, drawn once in every panel, and the lower a dot the better the model"
    more = "; a band is the 90% interval of the fitted minimum that was handed on." if fitted else "."
    return framed_panels(fig, search_finding(stage, best, axes, evidence), read + more, places)


def interval(fig: go.Figure, known: Mapping[str, Any], place: Place, legend: bool) -> None:
    """A setting's fitted minimum as a line in its 90% band."""
    look = {"fillcolor": colour(3), "opacity": 0.3, "line_width": 0, "layer": "below"}
    said = {"name": BAND, "legendgroup": BAND, "showlegend": legend}
    fig.add_vrect(x0=known["low"], x1=known["high"], **look, **said, **place)
    fig.add_vline(x=known["value"], line={"color": colour(3), "width": 2}, layer="below", **place)


def setting_axis(axis: str, values: pd.Series) -> dict[str, Any]:
    unit = "tokens" if axis == "warmup" else DIMENSIONS[axis].unit
    title = f"{axis} ({unit})" if unit else axis
    if not pd.api.types.is_numeric_dtype(values):
        return {"title": {"text": title}}
    if DIMENSIONS[axis].kind == "float" and values.min() > 0:
        return log_axis(title, float(values.min()), float(values.max()))
    whole = {"tickvals": sorted(values.unique())} if values.nunique() <= 8 else {"tickformat": "~s"}
    return {"title": {"text": title}, **whole}


def search_finding(stage: str, best: Any, axes: Sequence[str], evidence: Mapping[str, Any]) -> str:
    said = lambda v: v if isinstance(v, str) else short(v)  # noqa: E731
    handed = [f"{a} {said(evidence[a]['value'])}" for a in axes if a in evidence]
    if handed:
        return f"Stage {stage} hands on {', '.join(handed)}; its best trial reached {nats(best.loss)} nats per token"
    values = ", ".join(f"{a} {said(best[a])}" for a in axes)
    return f"Stage {stage}: the best trial reached {nats(best.loss)} nats per token at {values}"


def aspect(readings: pd.DataFrame, stage: str) -> go.Figure:
    """Loss against width ÷ depth at equal FLOPs: narrow and deep to the left, wide and shallow to the right."""
    rows = readings.assign(aspect=readings.width / readings.depth, shape=names_of(readings))
    fig = go.Figure()
    for i, width in enumerate(sorted(rows.width.unique())):
        here = rows[rows.width == width]
        mark = {"color": colour(i), "symbol": symbol(i), "size": 10}
        over = "%{text}<br>lr %{customdata:.3g}<br>loss %{y:.4f}<extra></extra>"
        look = {"mode": "markers", "marker": mark, "text": here["shape"], "customdata": here.lr, "hovertemplate": over}
        fig.add_trace(go.Scatter(x=here.aspect, y=here.loss, name=f"width {width} channels", **look))
    axis = log_axis("width ÷ depth (channels per layer)", rows.aspect.min(), rows.aspect.max())
    for name in rows["shape"].unique():  # a shape is named once, at its best trial
        r = least(rows[rows["shape"] == name])
        fig.add_annotation(x=math.log10(r.aspect), y=r.loss, text=name, showarrow=False, yshift=-16)
    fig.update_xaxes(**axis)
    fig.update_yaxes(title_text=NATS)
    best, flops = least(rows), float(rows.flops.median())
    said = f"{best['shape']} reached the lowest loss, {nats(best.loss)} nats per token"
    finding = f"Stage {stage}: at equal compute ({flops:.2g} FLOPs each), {said}"
    read = (
        "every model here cost the same FLOPs; left is narrow and deep, right is wide and shallow, and lower is better."
    )
    return framed(fig, finding, read)
