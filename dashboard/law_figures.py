"""The figures of what was concluded: a ladder's fit (DIR/fits/*.json) in, plotly figures out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go

from dashboard.figures import shape_name
from dashboard.style import NATS, colour, framed, log_axis, nats, short, symbol

SAME_RUNG = 0.02  # two D are one rung within this share: lengths are rounded to whole batches  *derived*


def law(fit: Mapping[str, Any], check: Mapping[str, Any] | None = None) -> go.Figure:
    """The valleys' minima against N, the law at the target's D with its interval, forecast and measured."""
    told, fig = fit["forecast"], go.Figure()
    x = [c["N"] for c in fit["curve"]]
    band = {"x": [*x, *x[::-1]], "y": [c["high"] for c in fit["curve"]] + [c["low"] for c in fit["curve"]][::-1]}
    fig.add_trace(
        go.Scatter(
            **band,
            fill="toself",
            mode="none",
            fillcolor="rgba(0, 119, 187, 0.18)",
            name="90% interval",
            hoverinfo="skip",
        )
    )
    over = "N %{x:.3s}<br>loss %{y:.4f}<extra></extra>"
    fig.add_trace(
        go.Scatter(x=x, y=[c["value"] for c in fit["curve"]], mode="lines", line={"color": colour(0)},
                   name=f"law “{told['law']}” at D = {short(told['D'])}", hovertemplate=over)
    )  # fmt: skip
    rungs = sorted({m["D"] for m in fit["minima"]}, reverse=True)
    for i, d in enumerate(rungs):
        fig.add_trace(minima_at([m for m in fit["minima"] if m["D"] == d], d, i))
    error = {
        "type": "data",
        "symmetric": False,
        "array": [told["high"] - told["value"]],
        "arrayminus": [told["value"] - told["low"]],
        "thickness": 2,
        "width": 7,
    }
    fig.add_trace(
        go.Scatter(x=[told["N"]], y=[told["value"]], error_y=error, mode="markers", name="forecast for the target, 90% interval",
                   marker={"symbol": "diamond", "size": 12, "color": colour(1)}, hovertemplate=over)
    )  # fmt: skip
    if check and check.get("measured") is not None:
        star = {"symbol": "star-open", "size": 17, "color": colour(2), "line": {"width": 2.5}}
        fig.add_trace(
            go.Scatter(
                x=[told["N"]], y=[check["measured"]], mode="markers", name="measured", marker=star, hovertemplate=over
            )
        )
    fig.update_xaxes(**log_axis("N (non-embedding parameters)", min(x), max(*x, told["N"])))
    fig.update_yaxes(title_text=NATS)
    read = "Each mark is a shape at its best lr; the line continues those of the target's own D to the target's size, and the measured loss should fall into the band."
    return framed(fig, law_finding(fit, check), read, 520)


def minima_at(found: list[dict[str, Any]], d: float, i: int) -> go.Scatter:
    """The valleys' minima of one rung, with their intervals where they are known."""
    c = colour(i + 1 if i < 2 else i + 2) if i else colour(0)
    known = all("high" in m and "low" in m for m in found)
    up, down = ([m["high"] - m["loss"] for m in found], [m["loss"] - m["low"] for m in found]) if known else ([], [])
    return go.Scatter(
        x=[m["N"] for m in found],
        y=[m["loss"] for m in found],
        error_y={"type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": 1.2, "width": 4}
        if known
        else None,
        mode="markers",
        name=f"valleys’ minima at D = {short(d)}",
        text=[shape_name(m["width"], m["depth"]) for m in found],
        marker={"color": c, "symbol": symbol(i), "size": 9},
        hovertemplate="%{text}<br>N %{x:.3s}<br>loss %{y:.4f}<extra></extra>",
    )


def law_finding(fit: Mapping[str, Any], check: Mapping[str, Any] | None) -> str:
    told = fit["forecast"]
    said = f"Target {told['target']}: forecast {nats(told['value'])} nats per token (90%: {nats(told['low'])} to {nats(told['high'])})"
    if not check or check.get("measured") is None or check.get("target") != told["target"]:
        return f"{said}; not yet measured"
    where = "inside" if check["inside"] else "outside"
    return f"{said}; measured {nats(check['measured'])}, {where} the interval, the forecast is off by {check['error_percent']:+.2f}%"


def holdouts(fit: Mapping[str, Any]) -> go.Figure:
    """Each form's errors on readings that it had not seen, against how far off they lay."""
    fig = go.Figure()
    by: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for h in fit["holdouts"]:
        by.setdefault((h["law"], h.get("axis", "")), []).append(h)
    names = {name: i for i, name in enumerate(dict.fromkeys(name for name, _ in by))}
    shapes = {axis: i for i, axis in enumerate(dict.fromkeys(axis for _, axis in by))}
    for (name, axis), found in by.items():
        i = names[name]
        text = [
            f"N {short(h['N'])}, D {short(h['D'])}: {nats(h['predicted'])} for {nats(h['measured'])}" for h in found
        ]
        fig.add_trace(
            go.Scatter(x=[h["distance"] for h in found], y=[h["error_percent"] for h in found], mode="markers", text=text,
                       name=f"{name}{' (chosen)' if name == fit['chosen'] else ''}" + (f", largest {axis} left out" if axis else ""),
                       marker={"color": colour(i), "symbol": symbol(shapes[axis]) + ("" if name == fit["chosen"] else "-open"), "size": 9},
                       hovertemplate="%{text}<br>%{y:+.2f}% at %{x:.2f} decades<extra></extra>")
        )  # fmt: skip
    fig.add_hline(y=0, line={"color": "#808080", "width": 1})
    fig.update_xaxes(title_text="distance beyond the fit (decades)", rangemode="tozero")
    fig.update_yaxes(title_text="forecast ÷ measured − 1 (%)", ticksuffix="%")
    read = "Each mark is a reading left out of a fit and then forecast by it: the nearer to zero the better, and the further right the harder."
    return framed(fig, holdout_finding(fit), read, 420)


def holdout_finding(fit: Mapping[str, Any]) -> str:
    worst: dict[str, float] = {}
    for h in fit["holdouts"]:
        worst[h["law"]] = max(worst.get(h["law"], 0.0), abs(h["error_percent"]))
    if not worst:
        return "Nothing could be held out: too few shapes and rungs"
    others = [f"“{name}” by {e:.2g}%" for name, e in worst.items() if name != fit["chosen"]]
    chosen = (
        f"“{fit['chosen']}” missed held-out readings by at most {worst[fit['chosen']]:.2g}%"
        if fit["chosen"] in worst
        else f"“{fit['chosen']}” was chosen"
    )
    return chosen + (f", {', '.join(others)}" if others else "")
