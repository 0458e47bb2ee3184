"""The figures of what was concluded: a ladder's fit (DIR/fits/*.json) in, plotly figures out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from dashboard.figures import shape_name
from dashboard.style import NATS, NEUTRAL, colour, framed, log_axis, nats, short, symbol

OVER = "N %{x:.3s}<br>loss %{y:.4f}<extra></extra>"


def law(fit: Mapping[str, Any], check: Mapping[str, Any] | None = None) -> go.Figure:
    """The valleys' minima against N, the law at the target's D with its interval, forecast and measured."""
    told, curve, fig = fit["forecast"], fit["curve"], go.Figure()
    x = [c["N"] for c in curve]
    y = [c["high"] for c in curve] + [c["low"] for c in curve][::-1]
    band = {"fill": "toself", "mode": "none", "fillcolor": "rgba(31, 119, 180, 0.25)", "hoverinfo": "skip"}
    fig.add_trace(go.Scatter(x=[*x, *x[::-1]], y=y, name="the law's 90% interval", **band))
    name = f"law “{told['law']}” at D = {short(told['D'])}"
    values = [c["value"] for c in curve]
    fig.add_trace(go.Scatter(x=x, y=values, name=name, mode="lines", line={"color": colour(0)}, hovertemplate=OVER))
    for i, d in enumerate(sorted({m["D"] for m in fit["minima"]}, reverse=True)):
        fig.add_trace(minima_at([m for m in fit["minima"] if m["D"] == d], d, i))
    ends = bars([told["low"]], [told["value"]], [told["high"]], 2)
    mark = {"symbol": "diamond", "size": 12, "color": colour(1)}
    at = {"x": [told["N"]], "y": [told["value"]], "error_y": ends, "mode": "markers", "hovertemplate": OVER}
    fig.add_trace(go.Scatter(**at, marker=mark, name="forecast for the target, 90% interval"))
    if measured := measured_of(fit, check):
        mark = {"symbol": "star-open", "size": 18, "color": colour(2), "line": {"width": 2.5}}
        at = {"x": [told["N"]], "y": [measured], "mode": "markers", "hovertemplate": OVER}
        fig.add_trace(go.Scatter(**at, marker=mark, name="measured"))
    fig.update_xaxes(**log_axis("N (non-embedding parameters)", min(x), max(*x, told["N"])))
    fig.update_yaxes(title_text=NATS)
    read = (
        "each mark is a shape at its best lr; the line carries those of the target's own D on to the target's size, "
        "where the measured loss should fall between the bars."
    )
    return framed(fig, law_finding(fit, check), read, 560)


def bars(low: Sequence[float], at: Sequence[float], high: Sequence[float], thickness: float) -> dict[str, Any]:
    """Error bars from intervals."""
    up, down = ([abs(e - v) for e, v in zip(end, at, strict=True)] for end in (high, low))
    return {
        "type": "data",
        "symmetric": False,
        "array": up,
        "arrayminus": down,
        "thickness": thickness,
        "width": 3 * thickness,
    }


def minima_at(found: list[dict[str, Any]], d: float, i: int) -> go.Scatter:
    """The valleys' minima of one rung, with their intervals where they are known."""
    c = colour(0) if i == 0 else colour(3 + (i - 1) % 3)  # the others belong to forecast and measured
    losses = [m["loss"] for m in found]
    known = all("high" in m and "low" in m for m in found)
    ends = bars([m["low"] for m in found], losses, [m["high"] for m in found], 1.2) if known else None
    return go.Scatter(
        x=[m["N"] for m in found],
        y=losses,
        error_y=ends,
        mode="markers",
        name=f"valleys’ minima at D = {short(d)}",
        text=[shape_name(m["width"], m["depth"]) for m in found],
        marker={"color": c, "symbol": symbol(i), "size": 9},
        hovertemplate="%{text}<br>" + OVER,
    )


def measured_of(fit: Mapping[str, Any], check: Mapping[str, Any] | None) -> float | None:
    """The target's measured loss, where this fit is about that target."""
    ours = check is not None and check["target"] == fit["forecast"]["target"]
    return check["measured"] if ours and check is not None else None


def law_finding(fit: Mapping[str, Any], check: Mapping[str, Any] | None) -> str:
    told, measured = fit["forecast"], measured_of(fit, check)
    ends = f"90%: {nats(told['low'])} to {nats(told['high'])}"
    said = f"Target {told['target']}: forecast {nats(told['value'])} nats per token ({ends})"
    if measured is None or check is None:
        return f"{said}; not yet measured"
    where = "inside" if check["inside"] else "outside"
    return f"{said}; measured {nats(measured)}, {where} the interval, {abs(check['error_percent']):.2f}% off"


# hold-outs


def holdouts(fit: Mapping[str, Any]) -> go.Figure:
    """Each form's errors on readings that it had not seen, against how far off they lay."""
    fig, by = go.Figure(), dict[tuple[str, str], list[dict[str, Any]]]()
    for h in fit["holdouts"]:
        by.setdefault((h["law"], h.get("axis", "")), []).append(h)
    colours = {name: i for i, name in enumerate(dict.fromkeys(name for name, _ in by))}
    symbols = {axis: i for i, axis in enumerate(dict.fromkeys(axis for _, axis in by))}
    for (name, axis), found in by.items():
        chosen = name == fit["chosen"]
        look = symbol(symbols[axis]) + ("" if chosen else "-open")
        fig.add_trace(
            go.Scatter(
                x=[h["distance"] for h in found],
                y=[h["error_percent"] for h in found],
                mode="markers",
                name=f"{name}{' (chosen)' * chosen}" + (f", largest {axis} left out" if axis else ""),
                text=[f"{nats(h['predicted'])} for {nats(h['measured'])}" for h in found],
                marker={"color": colour(colours[name]), "symbol": look, "size": 9},
                hovertemplate="%{text}<br>%{y:+.2f} at %{x:.2f} decades<extra></extra>",
            )
        )
    fig.add_hline(y=0, line={"color": NEUTRAL, "width": 1})
    fig.update_xaxes(title_text="distance beyond the fit (decades)", rangemode="tozero")
    fig.update_yaxes(title_text="forecast ÷ measured − 1 (%)", ticksuffix="%")
    read = "each mark is a reading left out of a fit and forecast by it: near zero is good, far right was harder."
    return framed(fig, holdout_finding(fit), read, 460)


def holdout_finding(fit: Mapping[str, Any]) -> str:
    worst: dict[str, float] = {}
    for h in fit["holdouts"]:
        worst[h["law"]] = max(worst.get(h["law"], 0.0), abs(h["error_percent"]))
    chosen = worst.pop(fit["chosen"], None)
    others = ", ".join(f"“{name}” by {e:.2g}%" for name, e in worst.items())
    said = f"“{fit['chosen']}” was chosen"
    if chosen is not None:
        said = f"“{fit['chosen']}” missed what it had not seen by at most {chosen:.2g}%"
    return f"{said}; {others}" if others else said
