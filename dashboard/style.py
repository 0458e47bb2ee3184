"""How figures look: colours, numbers as people read them, and the frame that every figure has."""

from __future__ import annotations

import html
import math
import textwrap
from decimal import Decimal

import plotly.graph_objects as go

# Each has a contrast of at least 3 against white and against Streamlit's dark ground, and they stay apart for
# red-green blind eyes; tests/test_figures.py computes both.  *derived*
PALETTE = ("#1F77B4", "#D55E00", "#00A36C", "#CC79A7", "#757575", "#A0522D")
SYMBOLS = ("circle", "square", "triangle-up", "diamond", "cross", "star-triangle-down")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
NEUTRAL = PALETTE[4]
FIFTHS = ("#1F77B4", "#5B87A8", "#757575", "#A87448", "#D55E00")  # from the best to the worst; as the palette, derived
SCALE = [[i / 4, c] for i, c in enumerate(FIFTHS)]
PHASES = {"warmup": 0.6, "stable": 0.08, "decay": 0.34}  # opacity of the neutral band: colours belong to the forks
TITLE_WIDTH = 100  # characters that a title's line holds beside the sidebar on 1280 pixels  *measured here*
TITLE_LINES = 3
LEGEND_WIDTH = 760  # pixels of a legend's row there  *measured here*
UNITS = ((1e15, "P"), (1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
NATS = "loss (nats per token)"
FAINT = 0.22  # opacity of a band
ROUND = ((1.0,), (2.0, 5.0), (1.5, 3.0, 4.0, 6.0, 8.0), tuple(i / 10 for i in range(11, 100)))  # ticks, roundest first


def colour(i: int) -> str:
    return PALETTE[i % len(PALETTE)]


def faint(of: str) -> str:
    """A colour of the palette as a band has it."""
    return f"rgba({int(of[1:3], 16)}, {int(of[3:5], 16)}, {int(of[5:7], 16)}, {FAINT})"


def symbol(i: int) -> str:
    return SYMBOLS[(i + i // len(PALETTE)) % len(SYMBOLS)]


def short(x: float, digits: int = 3) -> str:
    """A number as a person writes it.

    >>> short(499712), short(1.247e9), short(0.0125), short(64)
    ('500k', '1.25B', '0.0125', '64')
    """
    for size, unit in UNITS:
        if abs(x) >= size * (1 - 0.5 * 10**-digits):
            return f"{x / size:.{digits}g}{unit}"
    return f"{x:.{digits}g}"


def nats(x: float) -> str:
    return f"{x:.4g}" if x >= 10 else f"{x:.3f}"


def duration(seconds: float) -> str:
    """Seconds as people say them.

    >>> duration(42.2), duration(125), duration(7300), duration(3 * 86400)
    ('42 s', '2 min 5 s', '2 h 1 min', '3.0 days')
    """
    s = round(seconds)
    if s < 60:
        return f"{s} s"
    if s < 3600:
        return f"{s // 60} min {s % 60} s" if s % 60 else f"{s // 60} min"
    return f"{s // 3600} h {s % 3600 // 60} min" if s < 2 * 86400 else f"{s / 86400:.1f} days"


def clock(seconds: float) -> tuple[str, float]:
    """The unit that an axis up to so many seconds reads well in, and its seconds.

    >>> clock(90), clock(200), clock(9000)
    (('s', 1.0), ('min', 60.0), ('hours', 3600.0))
    """
    return ("hours", 3600.0) if seconds >= 7200 else ("min", 60.0) if seconds >= 120 else ("s", 1.0)


def money(cost: float | Decimal, currency: str) -> str:
    return f"{cost:,.2f} {currency}" if cost >= 0.1 or not cost else f"{cost:.2g} {currency}"


def share(of: float) -> str:
    """A part of something, or a multiple.

    >>> share(0.0312), share(4.722), share(13_000)
    ('3.1%', '4.7 times', '13,000 times')
    """
    return f"{100 * of:.2g}%" if of < 1 else f"{of:,.{1 if of < 10 else 0}f} times"


def framed(fig: go.Figure, finding: str, read: str, height: int = 460, head: int = 0) -> go.Figure:
    """Gives a figure its frame: the finding as its title, how to read it, a legend below, a zoom that stays.

    `read` is one sentence; it rides in `layout.meta` and is shown beneath the figure. `head`: pixels that the panels'
    own titles take.
    """
    lines = textwrap.wrap(finding, TITLE_WIDTH, max_lines=TITLE_LINES, placeholder=" …") or [""]
    text = "<br>".join(html.escape(line) for line in lines)
    place = {
        "x": 0,
        "xanchor": "left",
        "yref": "container",
        "y": 1,
        "yanchor": "top",
        "pad": {"t": 8 if len(lines) == 1 else 22},  # of several lines, plotly puts the first one higher
    }
    fig.update_layout(
        title={"text": text, "font": {"size": 17}, **place},
        meta={"finding": finding, "read": read},
        height=height,
        margin={"l": 70, "r": 20, "t": 30 + 24 * len(lines) + head, "b": 66 + 22 * legend_rows(fig)},
        legend={"orientation": "h", "yref": "container", "yanchor": "bottom", "y": 0, "xanchor": "left", "x": 0},
        hovermode="closest",
        showlegend=True,
        uirevision="kept",
    )
    return fig


def legend_rows(fig: go.Figure) -> int:
    """Rows that the legend takes beside the sidebar on 1280 pixels, guessed from its names."""
    names = [t.name for t in fig.data if t.name and t.showlegend is not False]
    names += [s.name for s in fig.layout.shapes if s.showlegend]
    return math.ceil(sum(6.5 * len(name) + 55 for name in names) / LEGEND_WIDTH)


def log_ticks(low: float, high: float) -> dict[str, list[float] | list[str]]:
    """Tick marks of a log axis at round numbers that stand apart.

    >>> log_ticks(0.003, 0.06)["ticktext"]
    ['0.005', '0.01', '0.02', '0.05']
    """
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    apart = math.log10(high / low) / 6
    found: list[float] = []
    for steps in ROUND:
        for x in (s * 10.0**d for d in decades for s in steps):
            if low / 1.001 <= x <= high * 1.001 and all(abs(math.log10(x / y)) >= apart for y in found):
                found.append(x)
        if len(found) >= 3:
            break
    return {"tickvals": sorted(found), "ticktext": [short(x) for x in sorted(found)]}


def log_axis(title: str, low: float, high: float) -> dict[str, object]:
    """A log axis over positive values with a little room at both ends."""
    room = max((high / low) ** 0.06, 1.05)
    ends = [math.log10(low / room), math.log10(high * room)]
    return {"type": "log", "title": {"text": title}, "range": ends, **log_ticks(low / room, high * room)}
