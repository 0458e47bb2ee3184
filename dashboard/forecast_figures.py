"""The figures of forecasts and their fate: what `tunnel check DIR --all` lists in, plotly figures out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product
from statistics import NormalDist
from typing import Any

import plotly.graph_objects as go

from dashboard.style import NATS, NEUTRAL, colour, faint, framed, log_axis, nats
from tunnel.quantiles import LEVEL, NORMAL

Row = Mapping[str, Any]
FATES = {True: ("inside", 2), False: ("outside", 1)}  # name, colour
FEW = 12  # forecasts that are all counted on their axis
LEVELS = [0.05 * i for i in range(1, 20)]  # of intervals, scaled as a normal's are
KINDS = {"rolling": "circle", "target": "diamond", "counterfactual": "square"}  # symbols


def known(rows: Sequence[Row]) -> list[Row]:
    """Those whose outcome is known."""
    return [r for r in rows if r["inside"] is not None]


def in_order(rows: Sequence[Row]) -> go.Figure:
    """Every forecast's interval and what was measured, relative to the forecast, in the order of registration."""
    fig, found = go.Figure(), known(rows)
    x: list[int | None] = [v for i in range(len(found)) for v in (i + 1, i + 1, None)]
    y = [v for r in found for v in (percent(r, "low"), percent(r, "high"), None)]
    line = {"color": NEUTRAL, "width": 2 if len(found) < 150 else 1}
    fig.add_trace(go.Scatter(x=x, y=y, mode="lines", line=line, name="90% interval", hoverinfo="skip"))
    fig.add_traces(marks(found, range(1, len(found) + 1), [percent(r, "measured") for r in found]))
    fig.add_hline(y=0, line={"color": NEUTRAL, "width": 1})
    fig.update_xaxes(title_text="forecast (counted as they were registered)", dtick=1 if len(found) < FEW else None)
    fig.update_yaxes(title_text="measured ÷ forecast − 1 (%)", ticksuffix="%")
    read = "each bar is an interval that was written down before its run was read, each mark what was measured then."
    return framed(fig, in_order_finding(found), read, 460)


def in_order_finding(found: Sequence[Row]) -> str:
    inside, n = sum(r["inside"] for r in found), len(found)
    missed = sum(abs(r["error_percent"]) for r in found) / n
    said = f"{inside} of {n} forecasts ({inside / n:.0%}) lay inside their 90% intervals"
    return f"{said}; on average they missed by {missed:.2g}%"


def by_distance(rows: Sequence[Row]) -> go.Figure:
    """Each error as a part of its interval, against how far beyond the readings the forecast reached."""
    fig, found = go.Figure(), [r for r in known(rows) if r["distance"] is not None]
    fig.add_traces(marks(found, [r["distance"] for r in found], [share(r) for r in found]))
    fig.add_hline(y=1, line={"color": NEUTRAL, "width": 1.5, "dash": "dash"})
    fig.update_xaxes(title_text="distance beyond the readings (decades of N, D or C)", rangemode="tozero")
    fig.update_yaxes(title_text="error ÷ half the interval", rangemode="tozero")
    read = (
        "below the dashed line a measured loss lay inside its interval; far to the right the forecast reached farther."
    )
    return framed(fig, by_distance_finding(found), read, 420)


def by_distance_finding(found: Sequence[Row]) -> str:
    near, far = ([r for r in found if (r["distance"] > 0) is beyond] for beyond in (False, True))
    said = [
        f"{sum(r['inside'] for r in part)} of {len(part)} {where}"
        for part, where in ((near, "among what was read"), (far, "beyond it"))
        if part
    ]
    return f"Inside their intervals: {', '.join(said)}" if said else "No forecast's outcome is known yet"


def calibration(rows: Sequence[Row]) -> go.Figure:
    """How often intervals of every level held: the registered ones, scaled from 90% as a normal's would be."""
    fig, found = go.Figure(), known(rows)
    n, held = len(found), [held_at(found, p) for p in LEVELS]
    half = [NORMAL * math.sqrt(p * (1 - p) / n) for p in LEVELS]
    low, high = ([min(max(p + s * h, 0), 1) for p, h in zip(LEVELS, half, strict=True)] for s in (-1, 1))
    band = {"fill": "toself", "fillcolor": faint(NEUTRAL), "line": {"width": 0}, "hoverinfo": "skip"}
    name = f"honest intervals, {n} forecasts (90%)"
    fig.add_trace(go.Scatter(x=LEVELS + LEVELS[::-1], y=high + low[::-1], mode="lines", name=name, **band))
    line = {"color": NEUTRAL, "width": 1.5, "dash": "dash"}
    fig.add_trace(go.Scatter(x=[0, 1], y=[0, 1], mode="lines", line=line, name="as told", hoverinfo="skip"))
    over = "%{x:.0%} intervals held %{y:.0%}<extra></extra>"
    mark = {"size": [11 if abs(p - LEVEL) < 1e-6 else 6 for p in LEVELS], "symbol": "diamond"}
    drawn = {"mode": "lines+markers", "line": {"color": colour(0), "width": 2}, "marker": mark}
    fig.add_trace(go.Scatter(x=LEVELS, y=held, name="held", hovertemplate=over, **drawn))
    fig.update_xaxes(title_text="level of the interval (%)", tickformat=".0%", range=[0, 1])
    fig.update_yaxes(title_text="measured losses inside (%)", tickformat=".0%", range=[0, 1.03])
    read = (
        "on the dashed line intervals hold as often as they say, below it they are too narrow, above it too wide; the "
        "large mark is the 90% that is registered, other levels are scaled from it."
    )
    return framed(fig, calibration_finding(found), read, 420)


def held_at(found: Sequence[Row], level: float) -> float:
    """The share of losses inside intervals of a level."""
    wide = NormalDist().inv_cdf((1 + level) / 2) / NORMAL
    return sum(share(r) <= wide for r in found) / len(found)


def calibration_finding(found: Sequence[Row]) -> str:
    n, held = len(found), held_at(found, LEVEL)
    half = NORMAL * math.sqrt(LEVEL * (1 - LEVEL) / n)
    word = "are too narrow" if held < LEVEL - half else "are too wide" if held > LEVEL + half else "hold as they say"
    middle = f"the 50% ones held {held_at(found, 0.5):.0%}"
    return f"The intervals {word}: the 90% ones held {held:.0%} of {n} measured losses, {middle}"


def marks(rows: Sequence[Row], x: Sequence[float], y: Sequence[float]) -> list[go.Scatter]:
    """One trace for each kind and fate: colours tell the fates, symbols the kinds."""
    found = []
    for (kind, look), (fate, (name, c)) in product(KINDS.items(), FATES.items()):
        at = [i for i, r in enumerate(rows) if r["kind"] == kind and r["inside"] is fate]
        if at:
            mark = {
                "color": colour(c),
                "symbol": look if fate else look + "-open",
                "size": 7 if kind == "rolling" else 12,
            }
            trace = {"x": [x[i] for i in at], "y": [y[i] for i in at], "text": [told(rows[i]) for i in at]}
            over = {"hovertemplate": "%{text}<extra></extra>", "cliponaxis": False}
            found.append(go.Scatter(**trace, **over, mode="markers", name=f"{kind}, {name}", marker=mark))
    return found


def told(r: Row) -> str:
    ends = f"{nats(r['low'])} to {nats(r['high'])}"
    return f"{r['target']}<br>forecast {nats(r['forecast'])} ({ends})<br>measured {nats(r['measured'])}"


def percent(r: Row, key: str) -> float:
    return float(100 * (r[key] / r["forecast"] - 1))


def share(r: Row) -> float:
    """The error over the half of the interval on its side."""
    end = r["high"] if r["measured"] > r["forecast"] else r["low"]
    return float(abs(r["measured"] - r["forecast"]) / abs(end - r["forecast"]))


def contrast(rows: Sequence[Row]) -> go.Figure:
    """The recommended lr, half and double it: told and measured, against lr."""
    fig, lrs = go.Figure(), [r["lr"] for r in rows]
    up, down = ([abs(r[end] - r["forecast"]) for r in rows] for end in ("high", "low"))
    bars = {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": 2, "width": 6}
    mark = {"symbol": "diamond", "size": 11, "color": colour(1)}
    over = "lr %{x:.3g}<br>loss %{y:.4f}<extra></extra>"
    at = {"x": lrs, "y": [r["forecast"] for r in rows], "error_y": bars, "mode": "markers", "hovertemplate": over}
    fig.add_trace(go.Scatter(**at, marker=mark, name="forecast, 90% interval"))
    read = [r for r in rows if r["measured"] is not None]
    mark = {"symbol": "star-open", "size": 16, "color": colour(2), "line": {"width": 2.5}}
    at = {"x": [r["lr"] for r in read], "y": [r["measured"] for r in read], "mode": "markers", "hovertemplate": over}
    fig.add_trace(go.Scatter(**at, marker=mark, name="measured"))
    fig.update_xaxes(**log_axis("learning rate (base shape)", min(lrs), max(lrs)))
    fig.update_yaxes(title_text=NATS)
    sentence = (
        "the middle lr is the one that would be recommended for this shape; it should be lowest, the others as told."
    )
    return framed(fig, contrast_finding(rows), sentence, 420)


def contrast_finding(rows: Sequence[Row]) -> str:
    if any(r["status"] == "waiting" for r in rows):
        return "The three learning rates are forecast, and not all measured yet"
    measured = [r for r in rows if r["measured"] is not None]
    if not measured:
        return "All three learning rates diverged"
    best = min(measured, key=lambda r: r["measured"])
    inside = sum(bool(r["inside"]) for r in rows)
    return f"{best['target']} was best; {inside} of {len(rows)} lay inside their intervals"
