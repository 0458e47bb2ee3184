"""A plotly figure as a static SVG and its legend: the very figures of the dashboard, in a page that runs nothing.

What the report's figures are made of is drawn: scatters with lines, marks, bars and areas, straight shapes, panels'
titles. Anything else raises, so that no figure is shown with a part missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from dashboard.report.axes import Axis, axes_of
from dashboard.report.marks import DASHES, Spot, is_open, line_of, number, path_of, polygon
from dashboard.report.markup import Markup, joined, tag
from dashboard.style import colour

WIDTH = 880.0  # of the drawing's own pixels; the page scales it
LEFT, RIGHT, TOP, BOTTOM = 66.0, 22.0, 12.0, 50.0
HEAD = 24.0  # above panels that have titles
LETTER, WIDE_LETTER = 7.2, 13.0  # pixels of a letter at the drawing's size; of a Japanese one  *measured here*
LEAST, MOST = 220.0, 720.0  # of the plot's height
SWATCH = (30.0, 16.0)
Said = Callable[[str], str]


@dataclass(frozen=True)
class Drawing:
    svg: Markup
    legend: tuple[tuple[Markup, str], ...]  # swatches and names


@dataclass(frozen=True)
class Panel:
    x: Axis
    y: Axis

    def spots(self, xs: Sequence[Any], ys: Sequence[Any]) -> list[Spot | None]:
        pairs = [(self.x.at(x), self.y.at(y)) for x, y in zip(xs, ys, strict=True)]
        return [None if x is None or y is None else (x, y) for x, y in pairs]


def drawn(fig: go.Figure, key: str, title: str, about: str, said: Said = str) -> Drawing:
    """A figure as it is drawn. `key` is its place in the document, `said` turns its words into the page's language.

    Raises ValueError or KeyError, naming it, for a part that is not drawn here.
    """
    margin, titled = fig.layout.margin, any(a.yref == "paper" for a in fig.layout.annotations)
    height = min(max((fig.layout.height or 450) - (margin.t or 0) - (margin.b or 0), LEAST), MOST)
    top = TOP + HEAD * titled
    left = max(LEFT, *(38 + length(said(t)) for t in names_along(fig)), 0)
    xs = axes_of(fig, "x", left, WIDTH - RIGHT)
    ys = axes_of(fig, "y", top + height, top)
    panels = {(x, y): Panel(xs[x], ys[y]) for x, y in used(fig)}
    parts = [frame(p, said) for p in panels.values()]
    for i, ((x, y), panel) in enumerate(panels.items()):
        clip = f"{key}-{i}"
        inside = [tag("clipPath", box(panel, 6), id=clip)]
        inside += [shape(s, panel) for s in fig.layout.shapes if on(s.xref, x) and on(s.yref, y)]
        inside += [m for t in fig.data if of(t) == (x, y) for m in trace(t, panel)]
        parts.append(tag("g", *inside, clip_path=f"url(#{clip})"))
    parts += [note(a, xs, ys, (left, top, height), said) for a in fig.layout.annotations]
    head = [tag("title", title, id=f"{key}-title"), tag("desc", about, id=f"{key}-about")]
    view = f"0 0 {number(WIDTH)} {number(top + height + BOTTOM)}"
    named = {"role": "img", "aria_labelledby": f"{key}-title {key}-about"}
    svg = tag("svg", *head, *parts, viewBox=view, **named)
    return Drawing(svg, tuple(legend(fig, said)))


def length(text: str) -> float:
    """About how many pixels a text takes.

    >>> length("abc") < length("あいう")
    True
    """
    return sum(WIDE_LETTER if ord(c) > 0x2E80 else LETTER for c in text)


def names_along(fig: go.Figure) -> list[str]:
    """The categories of the first y axis, which stand to its left."""
    return [str(n) for n in (fig.layout.yaxis.categoryarray if fig.layout.yaxis.categoryarray is not None else ())]


def of(t: Any) -> tuple[str, str]:
    return t.xaxis or "x", t.yaxis or "y"


def used(fig: go.Figure) -> list[tuple[str, str]]:
    return sorted({of(t) for t in fig.data}, key=lambda p: (len(p[0]), p))


def on(ref: str | None, axis: str) -> bool:
    return (ref or "paper").split(" ")[0] in (axis, "paper")


def box(p: Panel, room: float = 0.0) -> Markup:
    """A panel's ground, `room` pixels wider for marks on its edge."""
    x, y = p.x.start - room, min(p.y.start, p.y.end) - room
    w, h = abs(p.x.end - p.x.start) + 2 * room, abs(p.y.end - p.y.start) + 2 * room
    return tag("rect", x=number(x), y=number(y), width=number(w), height=number(h))


def text(x: float, y: float, words: str, anchor: str = "middle", **more: object) -> Markup:
    return tag("text", words, x=number(x), y=number(y), text_anchor=anchor, **more)


def frame(p: Panel, said: Said) -> Markup:
    """A panel's grid, ticks and titles."""
    left, right, low, high = p.x.start, p.x.end, p.y.start, p.y.end
    across = [(p.x.along(v), t) for v, t in p.x.ticks_on()]
    up = [(p.y.along(v), t) for v, t in p.y.ticks_on()]
    grid = "".join(f"M{number(x)} {number(low)}V{number(high)}" for x, _ in across)
    grid += "".join(f"M{number(left)} {number(y)}H{number(right)}" for y, _ in up)
    parts = [tag("path", d=grid, class_="grid")]
    if p.x.labelled:
        parts += [text(x, low + 18, said(t)) for x, t in across]
    if p.y.labelled:
        parts += [text(left - 8, y + 4.5, said(t), "end") for y, t in up]
    parts.append(text((left + right) / 2, low + 40, said(p.x.title), class_="axis"))
    if p.y.title:
        y = (low + high) / 2
        parts.append(text(15, y, said(p.y.title), class_="axis", transform=f"rotate(-90 15 {number(y)})"))
    return tag("g", *parts)


def trace(t: Any, p: Panel) -> Iterator[Markup]:
    """A scatter's area, line, bars and marks, from below."""
    if t.type not in ("scatter", "scattergl"):
        raise ValueError(f"a trace of type {t.type} is not drawn in a report")
    spots = p.spots(t.x, t.y)
    seen = [s for s in spots if s is not None]
    if t.fill and len(seen) > 2:
        yield tag("path", d=polygon(seen), fill=t.fillcolor)
    if "lines" in (t.mode or "") and seen:
        yield tag("path", d=line_of(spots, t.line.shape == "hv"), **stroked(t))
    yield from bars(t, p)
    if "markers" in (t.mode or "") and seen:
        yield tag("path", d=path_of(t.marker.symbol or "circle", seen, t.marker.size or 6), **marked(t))


def stroked(t: Any) -> dict[str, object]:
    found = {"fill": "none", "stroke": t.line.color or colour(0), "stroke_width": number(t.line.width or 2)}
    return {**found, "stroke_dasharray": DASHES.get(t.line.dash or ""), "opacity": t.opacity}


def marked(t: Any) -> dict[str, object]:
    m, shade = t.marker, t.marker.color or colour(0)
    if is_open(m.symbol or ""):
        width = number(m.line.width or 1.4)
        return {"fill": "none", "stroke": shade, "stroke_width": width, "opacity": m.opacity}
    return {"fill": shade, "opacity": m.opacity}


def bars(t: Any, p: Panel) -> Iterator[Markup]:
    """Error bars along either axis, with their caps."""
    for e, along_x in ((t.error_x, True), (t.error_y, False)):
        if e.array is None:
            continue
        up, down, path = e.array, e.arrayminus if e.arrayminus is not None else e.array, ""
        for (x, y), u, d in zip(zip(t.x, t.y, strict=True), up, down, strict=True):
            if p.x.at(x) is not None and p.y.at(y) is not None:
                ends = [(x - d, y), (x + u, y)] if along_x else [(x, y - d), (x, y + u)]
                path += bar([(p.x.held(a), p.y.held(b)) for a, b in ends], (e.width or 4) / 1.6, along_x)
        look = {"fill": "none", "stroke": e.color or t.marker.color or colour(0)}
        yield tag("path", d=path, stroke_width=number(e.thickness or 2), **look)


def bar(ends: list[Spot], cap: float, along_x: bool) -> str:
    """A bar between two spots, and a cap across each."""
    across = (0.0, cap) if along_x else (cap, 0.0)
    caps = [[(x - across[0], y - across[1]), (x + across[0], y + across[1])] for x, y in ends]
    return "".join(polygon(line, closed=False) for line in (ends, *caps))


def shape(s: Any, p: Panel) -> Markup:
    """A straight line or a band, over a whole axis or between values."""
    x0, x1 = ends(s.x0, s.x1, s.xref, p.x)
    y0, y1 = ends(s.y0, s.y1, s.yref, p.y)
    if s.type == "rect":
        x, y, w, h = min(x0, x1), min(y0, y1), abs(x1 - x0), abs(y1 - y0)
        at = {"x": number(x), "y": number(y), "width": number(w), "height": number(h)}
        return tag("rect", **at, fill=s.fillcolor, opacity=s.opacity)
    if s.type != "line":
        raise ValueError(f"a shape of type {s.type} is not drawn in a report")
    dash, width = DASHES.get(s.line.dash or ""), number(s.line.width or 2)
    at = {"x1": number(x0), "y1": number(y0), "x2": number(x1), "y2": number(y1)}
    return tag("line", **at, stroke=s.line.color, stroke_width=width, stroke_dasharray=dash)


def ends(low: Any, high: Any, ref: str | None, axis: Axis) -> tuple[float, float]:
    if (ref or "paper").split(" ")[-1] in ("paper", "domain"):
        reach = axis.end - axis.start
        return axis.start + reach * low, axis.start + reach * high
    return axis.held(low), axis.held(high)


def note(a: Any, xs: dict[str, Axis], ys: dict[str, Axis], place: tuple[float, float, float], said: Said) -> Markup:
    """A panel's title, or a word beside a mark: on a log axis plotly counts it in decades."""
    left, top, height = place
    if a.showarrow is not False:
        raise ValueError("an arrow is not drawn in a report")
    x = left + a.x * (WIDTH - RIGHT - left) if a.xref == "paper" else xs[a.xref or "x"].along(a.x)
    y = top + (1 - a.y) * height if a.yref == "paper" else ys[a.yref or "y"].along(a.y)
    above = 8 if a.yref == "paper" else (a.yshift or 0) - 4
    return text(x, y - above, said(a.text), class_="panel" if a.yref == "paper" else None)


def legend(fig: go.Figure, said: Said) -> Iterator[tuple[Markup, str]]:
    """A swatch and a name for each trace that plotly's legend would show, once."""
    for t in fig.data:
        if t.name and t.showlegend is not False:
            yield swatch(t), said(t.name)


def swatch(t: Any) -> Markup:
    w, h = SWATCH
    parts = []
    if t.fill:
        parts.append(tag("rect", x="2", y="2", width=number(w - 4), height=number(h - 4), fill=t.fillcolor))
    if "lines" in (t.mode or ""):
        parts.append(tag("path", d=f"M1 {number(h / 2)}H{number(w - 1)}", **stroked(t)))
    if "markers" in (t.mode or ""):
        size = min(t.marker.size or 6, 12)
        parts.append(tag("path", d=path_of(t.marker.symbol or "circle", [(w / 2, h / 2)], size), **marked(t)))
    view = f"0 0 {number(w)} {number(h)}"
    return tag("svg", joined(*parts), viewBox=view, class_="swatch", aria_hidden="true")
