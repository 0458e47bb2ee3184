"""The figures of the running target: its loss in the bundle of forecast and ladder, and what the bundle is made of.

What `running.standing` tells in, plotly figures out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from dashboard.style import DASHES, NATS, NEUTRAL, colour, faint, framed, nats, short, symbol

Standing = Mapping[str, Any]
RUN, BUNDLE, ALARM = colour(1), colour(0), colour(3)
SEEN = 0.97  # of the ladder's slices are in sight  *assumed*
ROOM = 0.12  # of the axis, above and below what is to be seen


def loss(s: Standing, curve: tuple[np.ndarray, np.ndarray], measured: float | None = None) -> go.Figure:
    """The run's loss over tokens in its bundle, the forecast at the end, and the alarm where it was raised.

    `curve`: tokens and training loss, as they were written.
    """
    fig, live = go.Figure(), s["live"]
    told = [x for x in live["slices"] if x["low"] is not None]
    x, low, high = ([p[k] for p in told] for k in ("tokens", "low", "high"))
    fig.add_trace(shaded(x, low, high))
    over = "%{x:,.0f} tokens<br>%{y:.4f}<extra></extra>"
    line = {"color": BUNDLE, "width": 1.5, "dash": "dash"}
    expected = [p["expected"] for p in told]
    fig.add_trace(go.Scatter(x=x, y=expected, mode="lines", line=line, name="expected", hovertemplate=over))
    thin = {"color": NEUTRAL, "width": 1}
    fig.add_trace(go.Scatter(x=curve[0], y=curve[1], mode="lines", line=thin, name="training loss", hoverinfo="skip"))
    own = [p for p in live["slices"] if p["loss"] is not None]
    bold = {"color": RUN, "width": 2.5}
    at = {
        "x": [p["tokens"] for p in own],
        "y": [p["loss"] for p in own],
        "mode": "lines+markers",
        "marker": {"size": 5},
    }
    fig.add_trace(go.Scatter(**at, line=bold, name="the run, by slices", hovertemplate=over))
    ends(fig, s, measured)
    alarmed(fig, live)
    seen = [*low, *high, *(p["loss"] for p in own if not told or p["tokens"] >= x[0]), s["low"], s["high"]]
    room = ROOM * (max(seen) - min(seen))
    fig.update_xaxes(title_text="tokens", tickformat="~s", range=[0, 1.03 * live["of"]])
    fig.update_yaxes(title_text=f"training {NATS}", range=[min(seen) - room, max(seen) + room])
    read = (
        "inside the shaded bundle the run goes as forecast and ladder say; it is as wide as the ladder's own runs "
        "scatter and the forecast's interval allows, and an alarm never stops a run."
    )
    return framed(fig, finding(s, measured), read, 480)


def shaded(x: list[float], low: list[float], high: list[float]) -> go.Scatter:
    band = {"fill": "toself", "fillcolor": faint(BUNDLE), "line": {"width": 0}, "hoverinfo": "skip"}
    return go.Scatter(x=x + x[::-1], y=high + low[::-1], mode="lines", name="bundle", **band)


def ends(fig: go.Figure, s: Standing, measured: float | None) -> None:
    """What lies at the target's D: the forecast with its interval, what the run is on course for, what was measured."""
    of, course = s["live"]["of"], s["live"]["course"]
    marks = [("forecast, 90% interval", "diamond", BUNDLE, s["forecast"], s["low"], s["high"])]
    if course and measured is None:
        marks.append(("on course for", "circle-open", RUN, course["value"], course["low"], course["high"]))
    for i, (name, look, c, value, low, high) in enumerate(marks):
        bars = {
            "type": "data",
            "symmetric": False,
            "array": [high - value],
            "arrayminus": [value - low],
            "thickness": 2,
        }
        mark = {"symbol": look, "size": 11, "color": c}
        over = f"{name}<br>{nats(value)} ({nats(low)} to {nats(high)})<extra></extra>"
        at = {"x": [of * (1 + 0.012 * i)], "y": [value], "mode": "markers", "cliponaxis": False}
        fig.add_trace(go.Scatter(**at, error_y=bars, marker=mark, name=name, hovertemplate=over))
    if measured is not None:
        mark = {"symbol": "star-open", "size": 15, "color": RUN, "line": {"width": 2.5}}
        over = f"held-out loss {nats(measured)}<extra></extra>"
        fig.add_trace(
            go.Scatter(x=[of], y=[measured], mode="markers", marker=mark, name="measured", hovertemplate=over)
        )


def alarmed(fig: go.Figure, live: Mapping[str, Any]) -> None:
    """The alarm's mark, at its step."""
    alarm = live["alarm"]
    if alarm is None:
        return
    fig.add_vline(x=alarm["tokens"], line={"color": ALARM, "width": 2, "dash": "dot"})
    at = next((p for p in reversed(live["slices"]) if p["tokens"] < alarm["tokens"] and p["loss"] is not None), None)
    if at is not None:
        mark = {"symbol": "x", "size": 14, "color": ALARM}
        name = f"alarm, step {alarm['step']:,}"
        fig.add_trace(go.Scatter(x=[at["tokens"]], y=[at["loss"]], mode="markers", marker=mark, name=name))


def finding(s: Standing, measured: float | None = None) -> str:
    live, name = s["live"], s["target"]
    if live["alarm"] is not None:
        return str(live["alarm"]["text"])
    if live["inside"] is None:
        return (
            f"{name} at {live['progress']:.0%}: {live['reason'] or 'too early to say whether it is inside the bundle'}"
        )
    if measured is not None:
        return f"{name} stayed inside the bundle to its end: measured {nats(measured)}, forecast {nats(s['forecast'])}"
    off = live["off_percent"]
    side = "above" if off > 0 else "below"
    return f"{name} is inside the bundle at {live['progress']:.0%}, {abs(off):.1f}% {side} what forecast and ladder say"


def normalised(s: Standing, ladder: Sequence[tuple[str, np.ndarray]]) -> go.Figure:
    """The ladder's curves by slices of progress, each over its final loss: what the bundle is made of; and the run.

    `ladder`: a shape's name and its ratios, NaN where there are none; the smallest shape first.
    """
    fig, live = go.Figure(), s["live"]
    count = len(live["slices"])
    x = (np.arange(count) + 0.5) / count
    shapes = list(dict.fromkeys(name for name, _ in ladder))
    looks = [i for i in range(len(shapes) + 2) if colour(i) != RUN]
    told = [
        (at, p["low"] / s["forecast"], p["high"] / s["forecast"])
        for at, p in zip(x, live["slices"], strict=True)
        if p["low"]
    ]
    if told:
        fig.add_trace(shaded(*map(list, zip(*told, strict=True))))
    named: set[str] = set()
    for name, y in ladder:
        i = looks[shapes.index(name) % len(looks)]
        look = {"color": colour(i), "width": 1.2, "dash": DASHES[shapes.index(name) % len(DASHES)]}
        said = {"name": name, "legendgroup": name, "showlegend": name not in named, "opacity": 0.8}
        over = f"{name}<br>%{{x:.0%}}: %{{y:.3f}} × its final loss<extra></extra>"
        fig.add_trace(go.Scatter(x=x, y=y, mode="lines", line=look, hovertemplate=over, **said))
        named.add(name)
    own = np.array([np.nan if p["loss"] is None else p["loss"] / s["forecast"] for p in live["slices"]])
    seen = np.concatenate([own[np.isfinite(own)], *(y[np.isfinite(y)] for _, y in ladder)])
    mark = {"symbol": symbol(0), "size": 6}
    name = f"{s['target']} (over its forecast)"
    over = "%{x:.0%}: %{y:.3f} × the forecast<extra></extra>"
    drawn = {"mode": "lines+markers", "marker": mark, "line": {"color": RUN, "width": 2.5}}
    fig.add_trace(go.Scatter(x=x, y=own, name=name, hovertemplate=over, **drawn))
    fig.update_xaxes(title_text="progress (share of the run's tokens)", tickformat=".0%", range=[0, 1.02])
    if len(seen):
        low, high = seen.min(), max(float(np.quantile(seen, SEEN)), float(own[np.isfinite(own)].max(initial=0.0)))
        fig.update_yaxes(range=[low - ROOM * (high - low), high + ROOM * (high - low)])
    fig.update_yaxes(title_text="training loss ÷ final loss")
    read = (
        "well-tuned runs of all sizes fall nearly on one curve; what is left moves steadily with size, and the shaded "
        "bundle is where that leads at the target's."
    )
    return framed(fig, collapse(ladder), read, 440)


def collapse(ladder: Sequence[tuple[str, np.ndarray]]) -> str:
    """How near one another the ladder's curves lie."""
    y = np.array([v for _, v in ladder])
    if len(y) < 2 or not np.isfinite(y).any():
        return f"The ladder has {len(y)} well-tuned runs with curves: too few to make a bundle of"
    known = np.isfinite(y).sum(0) > 1
    spread = np.nanstd(np.log(y[:, known]), axis=0, ddof=1) if known.any() else np.array([np.nan])
    how = f"typically differ by {np.median(spread):.1%}"
    return f"Divided by their final loss, {len(y)} well-tuned runs of the ladder {how}"


def tokens(s: Standing) -> str:
    return f"{short(s['live']['tokens'])} of {short(s['live']['of'])}"
