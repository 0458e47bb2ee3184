"""The figures of what training stands: the coordinate check, where it breaks, how far it scatters. Verdicts in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from dashboard.figures import framed_panels, legend_only, panels, shape_name
from dashboard.judge import Found
from dashboard.law_figures import bars
from dashboard.style import DASHES, NEUTRAL, colour, framed, log_axis, short, symbol
from tunnel.verdicts.cells import ALIKE

WHAT = {
    "middle": "residual stream, middle",
    "residual": "residual stream, end",
    "final": "final norm's output",
    "logits": "logits (shown beside, not judged)",
}
SLOPE = "slope of log RMS change against log size (–)"
CHANGE = "log10 RMS change against step 0 (–)"
SCATTER = "one seed's standard deviation of the loss (%)"
ROOM = 1.2  # beside the first and the last D, for marks beside each other
APART = 0.13  # of a step's place: marks of one step stand beside each other

# the coordinate check


def coordinates(by_rules: Mapping[str, Found]) -> go.Figure:
    """Slopes of log RMS change against log size at each step, with 90% intervals, inside or outside of the band.

    `by_rules`: the check of each rule; at least one with an axis.
    """
    shown = [(rules, axis, over) for rules, c in by_rules.items() for axis, over in c["over"].items()]
    fig, places = panels([f"{rules} over {axis}" for rules, axis, _ in shown])
    band = next(iter(by_rules.values()))["band"]
    for (_, _, over), place in zip(shown, places, strict=True):
        steps = sorted({r["step"] for r in over["slopes"]})
        for i, what in enumerate(WHAT):
            rows = [r for r in over["slopes"] if r["what"] == what]
            value = [r["slope"] for r in rows]
            x = [steps.index(r["step"]) + APART * (i - 1.5) for r in rows]
            ends = bars([r["low"] for r in rows], value, [r["high"] for r in rows], 1.4)
            mark = {"color": colour(i), "symbol": symbol(i), "size": 8}
            look = {"mode": "markers", "marker": mark, "legendgroup": what, "showlegend": False}
            over_ = f"{WHAT[what]}<br>slope %{{y:+.3f}}<extra></extra>"
            fig.add_trace(go.Scatter(x=x, y=value, error_y=ends, hovertemplate=over_, **look), **place)
        fig.add_hrect(y0=-band, y1=band, fillcolor=NEUTRAL, opacity=0.22, line_width=0, layer="below", **place)
        named = [str(s) for s in steps]
        axis = {"tickvals": list(range(len(steps))), "ticktext": named, "range": [-0.5, len(steps) - 0.5]}
        fig.update_xaxes(title_text="training step (number)", **axis, **place)
    for i, what in enumerate(WHAT):
        legend_only(fig, WHAT[what], mode="markers", marker={"color": colour(i), "symbol": symbol(i), "size": 8})
        fig.data[-1].legendgroup = what
    grey = {"symbol": "square", "size": 14, "color": NEUTRAL, "opacity": 0.22}
    legend_only(fig, f"passes: within ±{band:g}", mode="markers", marker=grey)
    read = (
        "each mark says how the change that a few steps make inside the model grows with its size: 0 is one change at "
        "all sizes, and a rule passes where all intervals but the logits' lie in the grey band."
    )
    return framed_panels(fig, coordinate_finding(by_rules), read, places, SLOPE)


def coordinate_finding(by_rules: Mapping[str, Found]) -> str:
    """Each rule's verdict, and the control's slope, without which none of them counts."""
    control = next((c["control"] for c in by_rules.values() if c["control"] is not None), None)
    said = ", ".join(f"{rules} {c['verdict']}" for rules, c in by_rules.items())
    if control is None:
        return f"Coordinate check: {said}; no control was trained"
    return f"Coordinate check: {said}; the control standard changes with width by a slope of {control:+.2f}"


def changed(by_rules: Mapping[str, Found]) -> go.Figure | None:
    """Log RMS change against log size: a panel per rule and axis, a colour per step; None where it was not kept."""
    shown = [
        (rules, axis, over)
        for rules, c in by_rules.items()
        for axis, over in c["over"].items()
        if all("changes" in r for r in over["slopes"])
    ]
    if not shown:
        return None
    fig, places = panels([f"{rules} over {axis}" for rules, axis, _ in shown])
    steps = sorted({r["step"] for _, _, over in shown for r in over["slopes"]})
    for (_, axis, over), place in zip(shown, places, strict=True):
        for r in (r for r in over["slopes"] if r["what"] == "residual"):
            i = steps.index(r["step"])
            y = np.log10(np.asarray(r["changes"], float))
            mark = {"color": colour(i), "symbol": symbol(i), "size": 8}
            line = {"color": colour(i), "width": 1.6, "dash": DASHES[i]}
            look = {"mode": "markers+lines", "marker": mark, "line": line, "legendgroup": str(r["step"])}
            told = f"step {r['step']}, slope {r['slope']:+.2f}<br>%{{x}}: 10^%{{y:.2f}}<extra></extra>"
            trace = go.Scatter(x=over["values"], y=y, hovertemplate=told, showlegend=False, **look)
            fig.add_trace(trace, **place)
        unit = {"width": "channels", "depth": "layers"}[axis]
        marks = {"tickvals": over["values"], "ticktext": [short(v) for v in over["values"]]}
        fig.update_xaxes(**{**log_axis(f"{axis} ({unit})", over["values"][0], over["values"][-1]), **marks}, **place)
    for i, step in enumerate(steps):
        look = {"marker": {"color": colour(i), "symbol": symbol(i), "size": 8}, "line": {"color": colour(i)}}
        legend_only(fig, f"step {step}", mode="markers+lines", legendgroup=str(step), **look)
    read = "a rule that transfers changes the residual stream as much at every size: level lines."
    return framed_panels(fig, change_finding(shown), read, places, CHANGE)


def change_finding(shown: Sequence[tuple[str, str, Found]]) -> str:
    def steepest(over: Found) -> float:
        return float(max((r["slope"] for r in over["slopes"] if r["what"] == "residual"), key=abs))

    said = ", ".join(f"{rules} over {axis} {steepest(over):+.2f}" for rules, axis, over in shown)
    return f"The residual stream's change grows with size by slopes of at most: {said}"


# where it breaks


def lr_max(by_rules: Mapping[str, Found]) -> go.Figure:
    """Between which lrs each shape diverges, against N, with the law; a colour per rule. At least one shape."""
    fig = go.Figure()
    for i, (rules, found) in enumerate(by_rules.items()):
        closed = [s for s in found["shapes"] if s["diverges"] is not None]
        free = [s for s in found["shapes"] if s["diverges"] is None]
        for shapes, kind in ((closed, "diverges within the bar"), (free, "survives all that was tried")):
            if shapes:
                beside = 1.03 ** (i - (len(by_rules) - 1) / 2)  # so that bars can be told
                fig.add_trace(brackets(shapes, f"{rules}: {kind}", i, beside, kind[0] == "s"))
        law = found["law"]
        if law and closed:
            n = np.array([min(s["N"] for s in closed), max(s["N"] for s in closed)], float)
            line = {"color": colour(i), "width": 1.4, "dash": DASHES[i % len(DASHES)]}
            y = np.exp(law["a"] + law["b"] * np.log(n))
            fig.add_trace(go.Scatter(x=n, y=y, mode="lines", line=line, name=f"{rules}: its law", hoverinfo="skip"))
    every = [s for f in by_rules.values() for s in f["shapes"]]
    ends = [v for s in every for v in (s["survives"], s["diverges"]) if v is not None]
    sizes = [s["N"] for s in every]
    fig.update_xaxes(**log_axis("N (non-embedding parameters)", min(sizes), max(sizes)))
    fig.update_yaxes(**log_axis("lr (per step, at the base shape)", min(ends), max(ends)))
    read = (
        "a bar reaches from the largest lr that a shape survived to the smallest at which it diverged; a triangle is a "
        "shape that survived everything."
    )
    return framed(fig, edge_finding(by_rules), read, 440)


def brackets(shapes: Sequence[Mapping[str, Any]], name: str, i: int, beside: float, free: bool) -> go.Scatter:
    low = [s["survives"] for s in shapes]
    high = low if free else [s["diverges"] for s in shapes]
    middle = [float(np.sqrt(a * b)) for a, b in zip(low, high, strict=True)]
    mark = {
        "color": colour(i),
        "symbol": "triangle-up-open" if free else symbol(i),
        "size": 10,
        "line": {"width": 2 * free},
    }
    return go.Scatter(
        x=[s["N"] * beside for s in shapes],
        y=middle,
        error_y=None if free else {**bars(low, middle, high, 2), "color": colour(i)},
        mode="markers",
        marker=mark,
        name=name,
        text=[shape_name(s["width"], s["depth"]) for s in shapes],
        hovertemplate="%{text}<br>lr %{y:.3g}<extra></extra>",
    )


def edge_finding(by_rules: Mapping[str, Found]) -> str:
    said = []
    for rules, found in by_rules.items():
        tops = [s["survives"] for s in found["shapes"]]
        lost = [s["diverges"] for s in found["shapes"] if s["diverges"] is not None]
        if not lost:
            said.append(f"nothing diverged up to lr {short(max(tops))} under {rules}")
        elif found["law"] and found["status"] == "fitted":
            b, low, high = (found["law"][k] for k in ("b", "low", "high"))
            clear = "does not clearly move with N" if low <= 0 <= high else f"goes with N^{b:+.2f}"
            moves = f"{clear} (exponent {low:+.2f} to {high:+.2f})"
            said.append(f"under {rules} the smallest lr that diverged is {short(min(lost))}, and lr_max {moves}")
        else:
            said.append(f"under {rules} the smallest lr that diverged is {short(min(lost))}")
    text = "; ".join(said)
    return text[:1].upper() + text[1:]


# how far it scatters


def noise(floors: Sequence[Mapping[str, Any]]) -> go.Figure:
    """The noise floor per shape and rung with its 90% interval, beside the effect that the study wants to see.

    `floors`: the `noise` of a verdict, at least one.
    """
    batches = {f["B"] for f in floors}
    fig, places = go.Figure(), dict[str, list[Mapping[str, Any]]]()
    for f in floors:
        more = f", B {short(f['B'])}" if len(batches) > 1 else ""
        places.setdefault(f"{shape_name(f['width'], f['depth'])}{more}", []).append(f)
    for i, (name, found) in enumerate(places.items()):
        value = [f["floor_percent"] for f in found]
        ends = bars([f["low"] for f in found], value, [f["high"] for f in found], 1.4)
        x = [f["D"] * 1.025 ** (i - (len(places) - 1) / 2) for f in found]  # apart, so that bars can be told
        text = [f"{f['seeds']} seeds; {f['seeds_needed']} of each to see {f['effect_percent']:g}%" for f in found]
        mark = {"color": colour(i), "symbol": symbol(i), "size": 9}
        over = f"{name}<br>%{{y:.3f}}%<br>%{{text}}<extra></extra>"
        look = {"mode": "markers", "marker": mark, "name": name, "text": text, "hovertemplate": over}
        fig.add_trace(go.Scatter(x=x, y=value, error_y=ends, **look))
    effect = floors[0]["effect_percent"]
    fig.add_hline(y=effect, line={"color": NEUTRAL, "width": 1.5, "dash": "dash"})
    legend_only(fig, f"effect wanted: {effect:g}%", mode="lines", line={"color": NEUTRAL, "width": 1.5, "dash": "dash"})
    lengths = sorted({f["D"] for f in floors})
    apart = [d for i, d in enumerate(lengths) if not i or d > ALIKE * lengths[i - 1]]
    marks = {"tickvals": apart, "ticktext": [short(d) for d in apart]}
    fig.update_xaxes(**{**log_axis("D (tokens)", lengths[0] / ROOM, lengths[-1] * ROOM), **marks})
    shown = [v for f in floors for v in (f["low"], f["high"])]
    fig.update_yaxes(**log_axis(SCATTER, min(*shown, effect), max(*shown, effect)))
    read = (
        "each mark is how far the same model's loss scatters when only the seed changes, and a difference smaller than "
        "that takes several seeds of each side to be seen."
    )
    return framed(fig, noise_finding(floors), read, 440)


def noise_finding(floors: Sequence[Mapping[str, Any]]) -> str:
    low, high = (pick(f["floor_percent"] for f in floors) for pick in (min, max))
    least, most = (pick(f["seeds_needed"] for f in floors) for pick in (min, max))
    seeds = f"{least}" if least == most else f"{least} to {most}"
    scatter = f"{low:.2g}%" if low == high else f"{low:.2g}% to {high:.2g}%"
    effect = floors[0]["effect_percent"]
    return (
        f"One seed scatters the loss by {scatter}; a difference of {effect:g}% takes {seeds} seeds of each to be seen"
    )
