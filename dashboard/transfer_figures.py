"""The figures of transfer: does a setting's best value stay where it is? Verdicts in (`judge`), plotly figures out."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from dashboard.figures import ABOVE, Place, framed_panels, legend_only, panels
from dashboard.judge import UNITS, Found, Line
from dashboard.law_figures import bars
from dashboard.style import DASHES, NATS, NEUTRAL, colour, framed, log_axis, nats, short, symbol
from tunnel.space import DIMENSIONS

LIMIT = "limit: 0.1%, or one seed's noise where that is more"
LEAST, MOST = 0.02, 300.0  # penalties beyond are drawn here, in limits  *assumed*
PER_ROW = 34  # pixels of a row of verdicts
MINIMUM = {"symbol": "diamond-tall", "size": 10}
BELOW = 0.06  # of the range: minima of several sizes would lie on one another  *assumed*
SEEN = 0.12  # of the loss: readings farther above their minimum lie out of sight  *assumed*
LOOKS = {"transfers": "circle", "drifts by this law": "diamond", "does not transfer": "x", "refused": "circle-open"}
DOES = {  # a verdict in a sentence
    "transfers": "transfers",
    "drifts by this law": "drifts by a law",
    "does not transfer": "does not transfer",
    "refused": "is refused a verdict",
}
REASON = 120  # characters of a reason that a title holds  *assumed*


def unit(setting: str) -> str:
    row = DIMENSIONS[setting]
    return "tokens" if setting == "warmup" else row.unit or "fraction"


def listed(names: Iterable[str]) -> str:
    """Names as a sentence has them.

    >>> listed(["width", "depth", "D"])
    'width, depth and D'
    """
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


# verdicts


def verdicts(setting: str, by_rules: Mapping[str, Found]) -> go.Figure:
    """The penalty of each rule over each axis, with its 90% upper bound, against its limit."""
    rows = [(axis, rules, o) for axis in UNITS for rules, f in by_rules.items() if (o := f["over"].get(axis))]
    fig = go.Figure()
    for kind, look in LOOKS.items():
        drawn = [r for r in rows if r[2]["verdict"] == kind]
        if drawn:
            fig.add_trace(penalties(drawn, kind, look, list(by_rules)))
    with_law = [r for r in rows if r[2]["verdict"] != "transfers" and r[2].get("law_penalty_high") is not None]
    if with_law:
        mark = {"symbol": "line-ns", "size": 14, "color": NEUTRAL, "line": {"width": 3, "color": NEUTRAL}}
        x = [in_limits(o["law_penalty_high"], o) for _, _, o in with_law]
        over = "with the law, 90% upper bound<br>%{x:.2g} limits<extra></extra>"
        at = {"x": x, "y": [row_name(*r[:2]) for r in with_law], "hovertemplate": over}
        fig.add_trace(go.Scatter(**at, mode="markers", marker=mark, name="90% upper bound with its law"))
    fig.add_vline(x=1, line={"color": NEUTRAL, "width": 1.5, "dash": "dash"})
    legend_only(fig, LIMIT, mode="lines", line={"color": NEUTRAL, "width": 1.5, "dash": "dash"})
    fig.update_xaxes(**log_axis("penalty ÷ limit", LEAST, max(2.0, *(x for t in fig.data for x in t.x if x))))
    names = [row_name(*r[:2]) for r in rows]
    fig.update_yaxes(title_text="rule over axis", categoryorder="array", categoryarray=names[::-1])
    fig.update_yaxes(range=[-0.6, len(rows) - 0.4], automargin=True)
    read = (
        "a penalty is what a larger size loses by the smaller one's best value instead of its own; a setting transfers "
        "where the bar, its 90% upper bound, ends left of the dashed limit."
    )
    return framed(fig, verdict_finding(setting, by_rules), read, 210 + PER_ROW * len(rows))


def row_name(axis: str, rules: str) -> str:
    return f"{rules} over {axis}"


def in_limits(percent: float, over: Found) -> float:
    return min(max(percent / over["limit_percent"], LEAST), MOST)


def penalties(rows: Sequence[tuple[str, str, Found]], kind: str, look: str, rules: Sequence[str]) -> go.Scatter:
    known = [o["penalty_percent"] is not None for _, _, o in rows]
    x = [in_limits(o["penalty_percent"], o) if k else LEAST for k, (_, _, o) in zip(known, rows, strict=True)]
    ends = [in_limits(o["penalty_high"], o) if k else LEAST for k, (_, _, o) in zip(known, rows, strict=True)]
    i = list(LOOKS).index(kind)
    return go.Scatter(
        x=x,
        y=[row_name(*r[:2]) for r in rows],
        error_x=bars(x, x, ends, 2),
        mode="markers",
        marker={
            "symbol": look,
            "size": 11,
            "color": colour((2, 0, 1, 4)[i]),
            "line": {"width": 2 * (kind == "refused")},
        },
        name=kind if all(known) else f"{kind} (where there is no penalty, at the left edge)",
        text=[o["reason"].replace(", ", ",<br>") for _, _, o in rows],
        hovertemplate="%{y}<br>%{text}<extra></extra>",
    )


def verdict_finding(setting: str, by_rules: Mapping[str, Found]) -> str:
    """Under each rule what the setting does over which axes, the study's own rule first."""
    said = [f"under {rules}, {setting} {told}" for rules, f in by_rules.items() if (told := over_axes(f["over"]))]
    text = "; ".join(said)
    return text[:1].upper() + text[1:]


def over_axes(over: Mapping[str, Found]) -> str:
    """What each verdict holds over.

    >>> over_axes({"width": {"verdict": "transfers"}, "D": {"verdict": "refused"}, "B": {"verdict": "transfers"}})
    'transfers over width and B, is refused a verdict over D'
    """
    by = {v: [axis for axis in over if over[axis]["verdict"] == v] for v in DOES}
    return ", ".join(f"{DOES[v]} over {listed(axes)}" for v, axes in by.items() if axes)


# valleys


def valleys(setting: str, lines: Sequence[Line], relative: bool = True) -> go.Figure:
    """Loss against the setting, a panel per rule and a colour per size: seeds, their mean, the minimum's interval.

    `lines`: at least one. `relative`: percent above each valley's own minimum.
    """
    fig, places = panels(titles(lines))
    sizes = sorted({m["at"] for one in lines for m in one.told["minima"]})
    for one, place in zip(lines, places, strict=True):
        for m, seeds in zip(one.told["minima"], one.seeds, strict=True):
            i = sizes.index(m["at"])
            valley(fig, m, seeds, i, place, relative)
            if not m["fault"]:
                minimum(fig, m, i, place, -top(lines) * BELOW * (i + 1) if relative else m["loss"])
    axis, along = lines[0].axis, UNITS[lines[0].axis]
    for i, size in enumerate(sizes):
        mark = {"color": colour(i), "symbol": symbol(i), "size": 7}
        name = f"{axis} {short(size)} {along}"
        legend_only(fig, name, mode="markers+lines", marker=mark, line={"color": colour(i)}, legendgroup=str(size))
    if any(p is not None and len(p.cell.y) > 1 for one in lines for p in one.seeds):
        mark = {"color": NEUTRAL, "symbol": "line-ew-open", "size": 7}
        legend_only(fig, "single seeds", mode="markers", marker=mark)
    where = " (drawn below one another)" if relative else ""
    if any(not m["fault"] for one in lines for m in one.told["minima"]):
        legend_only(fig, f"minimum with its 90% interval{where}", mode="markers", marker={**MINIMUM, "color": NEUTRAL})
    values = [v for one in lines for m in one.told["minima"] for v in m["values"]]
    fig.update_xaxes(**log_axis(f"{setting} ({unit(setting)})", min(values), max(values)))
    if relative:
        fig.update_yaxes(range=[-top(lines) * BELOW * (len(sizes) + 1), top(lines)])
    read = (
        "each panel is a rule and each colour a size; where the best value transfers, the valleys' lowest points lie "
        "above one another, and so do the diamonds that mark them."
    )
    return framed_panels(fig, valley_finding(setting, lines), read, places, ABOVE if relative else NATS)


def titles(lines: Sequence[Line]) -> list[str]:
    """A panel's rule, and what of the other settings tells it from its neighbours."""
    apart = [k for k in lines[0].context if len({str(one.context.get(k)) for one in lines}) > 1]
    known = [", ".join(f"{k} {v if isinstance(v, str) else short(v)}" for k, v in picked(one, apart)) for one in lines]
    return [f"{one.rules}{f' ({more})' if more else ''}" for one, more in zip(lines, known, strict=True)]


def picked(one: Line, names: Sequence[str]) -> list[tuple[str, Any]]:
    return [(k, one.context[k]) for k in names if k in one.context]


def top(lines: Sequence[Line]) -> float:
    """The percent above a minimum that are worth seeing."""
    rises = [100 * (x / m["loss"] - 1) for one in lines for m in one.told["minima"] for x in m["losses"]]
    return 1.08 * max(min(max(rises, default=1.0), 100 * SEEN), 0.1)


def valley(fig: go.Figure, m: Found, place: Any, i: int, at: Place, relative: bool) -> None:
    """One cell: its seeds as thin marks, their mean as a line, its minimum as a ring where it has one."""
    seen = (lambda y: 100 * (np.asarray(y) / m["loss"] - 1)) if relative else np.asarray
    look = {"legendgroup": str(m["at"]), "showlegend": False}
    over = f"{m['width']}×{m['depth']}, D {short(m['D'])}<br>%{{x:.3g}}<br>%{{y:.4f}}<extra></extra>"
    if place is not None and len(place.cell.y) > 1:
        x = np.broadcast_to(np.exp(place.cell.x), place.cell.y.shape)
        mark = {"color": colour(i), "symbol": "line-ew-open", "size": 7, "opacity": 0.7}
        y = seen(np.exp(place.cell.y)).ravel()
        fig.add_trace(go.Scatter(x=x.ravel(), y=y, mode="markers", marker=mark, hovertemplate=over, **look), **at)
    line = {"color": colour(i), "width": 1.6, "dash": DASHES[i % len(DASHES)]}
    mean = {"x": m["values"], "y": seen(m["losses"]), "mode": "markers+lines", "line": line}
    mark = {"color": colour(i), "symbol": symbol(i), "size": 6}
    fig.add_trace(go.Scatter(**mean, marker=mark, hovertemplate=over, **look), **at)


def minimum(fig: go.Figure, m: Found, i: int, at: Place, y: float) -> None:
    ends = bars([m["low"]], [m["best"]], [m["high"]], 2)
    over = f"best {m['best']:.3g} ({m['low']:.3g} to {m['high']:.3g})<br>loss {nats(m['loss'])}<extra></extra>"
    look = {"legendgroup": str(m["at"]), "showlegend": False, "mode": "markers", "hovertemplate": over}
    drawn = {"x": [m["best"]], "y": [y], "error_x": {**ends, "color": colour(i)}}
    fig.add_trace(go.Scatter(**drawn, marker={**MINIMUM, "color": colour(i)}, **look), **at)


def valley_finding(setting: str, lines: Sequence[Line]) -> str:
    """Under which rules it transfers, and the first one's penalty."""
    named = list(zip(titles(lines), lines, strict=True))
    by = {v: [name for name, one in named if one.told["verdict"] == v] for v in DOES}
    said = "; ".join(f"{DOES[v]} under {listed(names)}" for v, names in by.items() if names)
    first = lines[0].told
    why = textwrap.shorten(first["reason"], REASON, placeholder=" …")
    if first["penalty_percent"] is not None:
        bound = f"at most {first['penalty_high']:.2g}%, where the limit is {first['limit_percent']:.2g}%"
        why = f"it gives away {first['penalty_percent']:.2g}%, {bound}"
    return f"Over {lines[0].axis}, {setting} {said} ({f'{named[0][0]}: ' if len(named) > 1 else ''}{why})"


# drift


def drift(setting: str, lines: Sequence[Line]) -> go.Figure | None:
    """The best value against size, with 90% intervals and laws; a colour per rule. None where no valley has a minimum.

    `lines`: at least one.
    """
    if all(m["fault"] for one in lines for m in one.told["minima"]):
        return None
    fig, axis = go.Figure(), lines[0].axis
    for i, (name, one) in enumerate(zip(titles(lines), lines, strict=True)):
        known = [m for m in one.told["minima"] if not m["fault"]]
        at = [m["at"] * 1.015 ** (i - (len(lines) - 1) / 2) for m in known]  # apart, so that bars can be told
        best = [m["best"] for m in known]
        ends = bars([m["low"] for m in known], best, [m["high"] for m in known], 1.6)
        mark = {"color": colour(i), "symbol": symbol(i), "size": 9}
        over = f"{axis} %{{x:.4s}}<br>best {setting} %{{y:.3g}}<extra></extra>"
        look = {"mode": "markers", "marker": mark, "hovertemplate": over, "name": name}
        fig.add_trace(go.Scatter(x=at, y=best, error_y={**ends, "color": colour(i)}, legendgroup=name, **look))
        law = one.told["law"]
        if law and known:
            ends_x = np.array([min(at), max(at)])
            dash = {"color": colour(i), "width": 1.4, "dash": DASHES[i % len(DASHES)]}
            y = np.exp(law["a"] + law["b"] * np.log(ends_x))
            said = {"legendgroup": name, "showlegend": False, "hoverinfo": "skip"}
            fig.add_trace(go.Scatter(x=ends_x, y=y, mode="lines", line=dash, **said))
    legend_only(fig, "its law", mode="lines", line={"color": NEUTRAL, "width": 1.4, "dash": "dash"})
    sizes = [m["at"] for one in lines for m in one.told["minima"]]
    marks = {"tickvals": sorted(set(sizes)), "ticktext": [short(s) for s in sorted(set(sizes))]}
    fig.update_xaxes(**{**log_axis(f"{axis} ({UNITS[axis]})", min(sizes), max(sizes)), **marks})
    shown = [m[k] for one in lines for m in one.told["minima"] if not m["fault"] for k in ("low", "high", "best")]
    fig.update_yaxes(**log_axis(f"best {setting} ({unit(setting)})", min(shown), max(shown)))
    read = "each mark is a valley's minimum with its 90% interval; a level row of marks is a value that transfers."
    return framed(fig, drift_finding(setting, lines), read, 420)


def drift_finding(setting: str, lines: Sequence[Line]) -> str:
    """How the best value moves under each rule, no surer than its interval."""
    moves = [f"{octaves(one.told)} under {name}" for name, one in zip(titles(lines), lines, strict=True)]
    return f"Over tenfold {lines[0].axis}, the best {setting} {'; '.join(moves)}"


def octaves(told: Found) -> str:
    """A drift in words.

    >>> octaves({"drift_octaves": -0.38, "low": -0.44, "high": -0.31})
    'falls by 0.38 octaves (0.31 to 0.44)'
    """
    value, low, high = (told[k] for k in ("drift_octaves", "low", "high"))
    if value is None or not math.isfinite(value):
        return "cannot be told"
    if low <= 0 <= high:
        return f"does not clearly move ({low:+.2f} to {high:+.2f} octaves)"
    how, ends = ("falls", (-high, -low)) if value < 0 else ("rises", (low, high))
    return f"{how} by {abs(value):.2f} octaves ({ends[0]:.2f} to {ends[1]:.2f})"
