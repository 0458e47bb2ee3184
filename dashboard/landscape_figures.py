"""The figures of what was tried: readings and their settings in (`landscape`), plotly figures out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from dashboard.figures import shape_name
from dashboard.landscape import LOSS, Axis, Brush, Map, Share
from dashboard.style import DASHES, FIFTHS, NATS, NEUTRAL, SCALE, colour, framed, log_axis, nats, short, symbol
from tunnel.space import DIMENSIONS

DRAWN = 1500  # lines or marks in one figure: all of the best, and of the rest evenly by loss  *assumed*
BEST = 500  # of them
STOPS = 41  # places of an axis that a brush can catch
RANKS = ("best fifth", "second fifth", "third fifth", "fourth fifth", "worst fifth")
FADED, READING = "outside the brush", "reading (coloured by its loss)"
BY_LOSS, BY_RUNG = "loss", "rung"
NAMED = 4  # values of a setting without an order that its axis names  *assumed*


@dataclass(frozen=True)
class Group:
    """Readings of one colour."""

    name: str
    rows: pd.DataFrame
    look: Mapping[str, Any]


def unit(name: str) -> str:
    """A setting's unit; of a reading, the warmup is tokens."""
    if name == LOSS:
        return "nats per token"
    return "tokens" if name == "warmup" else DIMENSIONS[name].unit or "value"


def groups(rows: pd.DataFrame, by: str) -> list[Group]:
    """Finished readings by fifths of their loss, or by rung; at most `DRAWN` of them, the best of all included."""
    done = thinned(rows[rows[LOSS].notna()].sort_values(LOSS))
    if by == BY_RUNG:
        rungs = sorted(done.D.unique())
        names = {d: f"D = {short(d)} tokens" for d in rungs}
        looks = [{"color": colour(i), "symbol": symbol(i)} for i in range(len(rungs))]
        return [Group(names[d], done[d == done.D], look) for d, look in zip(rungs, looks, strict=True)]
    rank = np.arange(len(done)) * len(RANKS) // max(len(done), 1)
    found = [Group(name, done[rank == i], {"color": FIFTHS[i], "symbol": symbol(i)}) for i, name in enumerate(RANKS)]
    return [g for g in found if len(g.rows)]


def thinned(rows: pd.DataFrame) -> pd.DataFrame:
    """At most `DRAWN` rows of a table that is sorted by loss."""
    if len(rows) <= DRAWN:
        return rows
    rest = np.linspace(BEST, len(rows) - 1, DRAWN - BEST).astype(int)
    return rows.iloc[np.concatenate([np.arange(BEST), rest])]


# parallel coordinates


def parallel(rows: pd.DataFrame, axes: Sequence[Axis], inside: np.ndarray, brush: Brush, by: str) -> go.Figure:
    """A line a reading through all its settings, the loss last; those outside of the brush are grey.

    `rows`: finished readings with their `name`; `inside`: which of them are brushed.
    """
    fig, faded = go.Figure(), thinned(rows[~inside].sort_values(LOSS))
    if len(faded):
        fig.add_trace(lines(faded, axes, FADED, {"color": NEUTRAL, "width": 0.6}, 0.25))
    for i, g in reversed(list(enumerate(groups(rows[inside], by)))):  # the best on top
        look = {"color": g.look["color"], "width": 1.2, "dash": DASHES[i % len(DASHES)] if by == BY_RUNG else "solid"}
        fig.add_trace(lines(g.rows, axes, g.name, look, 0.75))
        ends = {"x": [len(axes) - 1.0] * len(g.rows), "y": axes[-1].at(g.rows[axes[-1].name]).astype(np.float32)}
        over = {"text": told(g.rows), "hovertemplate": "%{text}<extra></extra>"}
        look = {"mode": "markers", "marker": {**g.look, "size": 6}, "legendgroup": g.name, "showlegend": False}
        fig.add_trace(go.Scatter(**ends, **over, **look))
    stops = np.linspace(0, 1, STOPS)
    at = {"x": np.repeat(np.arange(len(axes)), STOPS), "y": np.tile(stops, len(axes)), "hoverinfo": "skip"}
    catch = {"mode": "markers", "marker": {"opacity": 0, "size": 4}, "showlegend": False}
    catch["legendgroup"] = fig.data[0].legendgroup
    fig.add_trace(go.Scatter(**at, **catch, name="catch"))
    for i, a in enumerate(axes):
        standing(fig, i, a, brush.get(a.name))
    names = [f"{a.name}<br>({unit(a.name)})" for a in axes]
    ticks = {"tickvals": list(range(len(axes))), "ticktext": names, "range": [-0.4, len(axes) - 0.6]}
    fig.update_xaxes(title_text="setting (each on its own scale)", showgrid=False, zeroline=False, **ticks)
    shown = {"showticklabels": False, "showgrid": False, "zeroline": False, "range": [-0.12, 1.12]}
    fig.update_yaxes(title_text="place in the range tried (share)", **shown)
    read = (
        "each line is one reading through all its settings to its loss at the right, blue the best and orange the "
        "worst; drag a box over a piece of an axis to keep only the lines that pass through it."
    )
    if by == BY_RUNG:
        read = read.replace("blue the best and orange the worst", "coloured by its length of training")
    fig.update_layout(dragmode="select")
    return framed(fig, parallel_finding(rows[inside], len(rows), axes), read, 520)


def lines(rows: pd.DataFrame, axes: Sequence[Axis], name: str, look: dict[str, Any], opacity: float) -> go.Scatter:
    """Many readings as one line that is broken between them."""
    at = np.full((len(rows), len(axes) + 1), np.nan, np.float32)
    at[:, :-1] = np.stack([a.at(rows[a.name]) for a in axes], axis=1)
    x = np.tile(np.append(np.arange(len(axes)), np.nan).astype(np.float32), len(rows))
    return go.Scatter(
        x=x, y=at.ravel(), mode="lines", line=look, opacity=opacity, name=name, legendgroup=name, hoverinfo="skip"
    )


def standing(fig: go.Figure, i: int, a: Axis, want: Any) -> None:
    """An axis that stands at x = i: its line, its ends in words, and what of it is brushed."""
    fig.add_shape(type="line", x0=i, x1=i, y0=0, y1=1, line={"color": NEUTRAL, "width": 1})
    marks = [(0.0, short(a.low)), (1.0, short(a.high))]
    if a.names:
        few = a.names if len(a.names) <= NAMED else (a.names[0], a.names[-1])
        steps = max(len(a.names) - 1, 1)
        marks = [(a.names.index(n) / steps, n) for n in few]
    for y, text in marks:
        shift = -10 if y == 0 else 10 if y == 1 else 0
        fig.add_annotation(x=i, y=y, text=text, showarrow=False, yshift=shift, font={"size": 11})
    spans = []
    if isinstance(want, frozenset):
        steps = max(len(a.names) - 1, 1)
        spans = [(a.names.index(n) / steps - 0.03, a.names.index(n) / steps + 0.03) for n in want if n in a.names]
    elif want is not None:
        spans = [tuple(np.clip(a.at(pd.Series(want, dtype=float)), -0.02, 1.02))]
    for low, high in spans:
        box = {"fillcolor": colour(3), "opacity": 0.45, "line_width": 0, "layer": "above"}
        fig.add_shape(type="rect", x0=i - 0.06, x1=i + 0.06, y0=low, y1=high, **box)


def told(rows: pd.DataFrame) -> list[str]:
    """What a mark says of its reading."""
    each = zip(rows["name"], rows.width, rows.depth, rows.lr, rows.D, rows[LOSS], strict=True)
    return [
        f"trial {name}<br>{shape_name(w, d)}, lr {lr:.3g}, D {short(n)}<br>loss {loss:.4f}"
        for name, w, d, lr, n, loss in each
    ]


def parallel_finding(inside: pd.DataFrame, total: int, axes: Sequence[Axis]) -> str:
    if not len(inside):
        return f"None of {total:,} readings lies inside the brush"
    best = inside.iloc[int(np.argmin(inside[LOSS].to_numpy(float)))]
    many = f"{total:,} readings" if len(inside) == total else f"{len(inside):,} of {total:,} readings"
    said = ", ".join(f"{a.name} {value(best[a.name])}" for a in axes if a.name != LOSS)
    return f"Of {many} the best reached {nats(best[LOSS])} nats per token" + (f": {said}" if said else "")


def value(v: Any) -> str:
    return v if isinstance(v, str) else short(float(v))


# what matters


def importance(shares: Sequence[Share]) -> go.Figure:
    """How much of the differences in loss each setting alone explains, with 90% intervals. At least one share."""
    names, values = [s.name for s in shares], [100 * s.value for s in shares]
    up, down = [100 * (s.high - s.value) for s in shares], [100 * (s.value - s.low) for s in shares]
    ends = {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "color": NEUTRAL, "thickness": 2}
    over = "%{y} alone explains %{x:.0f}%<extra></extra>"
    look = {"orientation": "h", "marker": {"color": colour(0)}, "hovertemplate": over}
    fig = go.Figure(go.Bar(x=values, y=names, error_x=ends, name="explained by it alone, 90% interval", **look))
    fig.update_xaxes(title_text="differences in log loss explained (%)", range=[0, 100], ticksuffix="%")
    fig.update_yaxes(title_text="setting (by its share)", autorange="reversed", automargin=True)
    read = (
        "a bar is how much of the losses' differences goes away when one setting is known and nothing else; what all "
        "bars leave to 100% is settings acting together, and noise."
    )
    fig.update_layout(showlegend=True)
    return framed(fig, importance_finding(shares), read, 190 + 42 * len(shares))


def importance_finding(shares: Sequence[Share]) -> str:
    first, *rest = shares
    if first.low <= 0:
        return f"No setting alone clearly explains the losses; {first.name} comes first, with {first.value:.0%}"
    said = f"{first.name} explains {first.value:.0%} of the differences in loss ({first.low:.0%} to {first.high:.0%})"
    return said + (f"; {', '.join(f'{s.name} {s.value:.0%}' for s in rest[:3])}" if rest else "")


# a map


def contours(rows: pd.DataFrame, x: Axis, y: Axis, surface: Map | None) -> go.Figure:
    """The loss over two settings: contours of what the neighbours say, and the readings. At least one finished."""
    done, fig = thinned(rows[rows[LOSS].notna()].sort_values(LOSS)), go.Figure()
    ends = {"cmin": float(done[LOSS].min()), "cmax": float(done[LOSS].quantile(0.8))}
    bar = {"title": {"text": NATS, "side": "right"}, "thickness": 12}
    if surface is not None:
        over = f"{x.name} %{{x:.3g}}<br>{y.name} %{{y:.3g}}<br>about %{{z:.4f}}<extra></extra>"
        drawn = {"x": surface.x, "y": surface.y, "z": surface.loss, "colorscale": SCALE, "colorbar": bar}
        look = {"opacity": 0.75, "ncontours": 14, "connectgaps": False, "hovertemplate": over, "line": {"width": 0.5}}
        look |= {"zmin": ends["cmin"], "zmax": ends["cmax"], "showlegend": False, "legendgroup": READING}
        fig.add_trace(go.Contour(**drawn, **look, name="smoothed"))
    mark = {"size": 8, "color": done[LOSS], "colorscale": SCALE, **ends, "line": {"width": 1, "color": NEUTRAL}}
    if surface is None:
        mark |= {"colorbar": bar}
    said = {"mode": "markers", "hovertemplate": "%{text}<extra></extra>"}
    at = {"x": done[x.name], "y": done[y.name], "customdata": done["name"], "text": told(done)}
    fig.add_trace(go.Scatter(**at, **said, marker=mark, name=READING, legendgroup=READING, showlegend=True))
    best = done.iloc[:1]
    star = {"symbol": "star", "size": 17, "color": colour(2), "line": {"width": 1.5, "color": "white"}}
    at = {"x": best[x.name], "y": best[y.name], "customdata": best["name"], "text": told(best)}
    fig.add_trace(go.Scatter(**at, **said, marker=star, name="best reading"))
    fig.update_xaxes(**ruled(x))
    fig.update_yaxes(**ruled(y))
    smooth = (
        "its colours and lines are a smooth surface through their neighbours" if surface else "too few for contours"
    )
    read = f"each dot is a reading, blue the lowest losses and orange the highest; {smooth}; a click opens its trial."
    return framed(fig, contour_finding(done, x, y), read, 520)


def ruled(a: Axis) -> dict[str, Any]:
    title = f"{a.name} ({unit(a.name)})"
    if a.log:
        return log_axis(title, a.low, a.high)
    return {"title": {"text": title}} | ({} if a.names else {"tickformat": "~s"})


def contour_finding(done: pd.DataFrame, x: Axis, y: Axis) -> str:
    best = done.iloc[0]
    near = done[done[LOSS] <= 1.01 * best[LOSS]]
    said = (
        f"{x.name} {value(best[x.name])} with {y.name} {value(best[y.name])} reached {nats(best[LOSS])} nats per token"
    )
    if len(near) < 2 or x.names or y.names:
        return f"{said}, the lowest of {len(done):,}"
    spans = [f"{a.name} {short(near[a.name].min())} to {short(near[a.name].max())}" for a in (x, y)]
    return f"{said}; {len(near)} of {len(done):,} came within 1% of it, at {' and '.join(spans)}"
