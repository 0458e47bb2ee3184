"""Plotly's marks as SVG paths: all marks of a trace are one path, so that a thousand readings stay small."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

Spot = tuple[float, float]
DASHES = {"dash": "8 5", "dot": "2 4", "dashdot": "9 4 2 4", "longdash": "14 6", "longdashdot": "14 5 2 5"}
LETTERS = re.compile(r"-(open|dot)")


def number(x: float) -> str:
    """A coordinate to a tenth of a pixel.

    >>> number(12.04), number(-0.01)
    ('12', '0')
    """
    text = f"{x:.1f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def polygon(spots: Sequence[Spot], closed: bool = True) -> str:
    first, *rest = (f"{number(x)} {number(y)}" for x, y in spots)
    return f"M{first}" + "".join(f"L{s}" for s in rest) + "Z" * closed


def strokes(*ends: tuple[float, float, float, float]) -> Callable[[float, float, float], str]:
    """Lines through a mark, in parts of its radius."""
    return lambda x, y, r: "".join(
        polygon([(x + a * r, y + b * r), (x + c * r, y + d * r)], closed=False) for a, b, c, d in ends
    )


def star(points: int, inner: float, turn: float = -math.pi / 2) -> Callable[[float, float, float], str]:
    def drawn(x: float, y: float, r: float) -> str:
        radii = (r, inner * r)
        turns = [(radii[i % 2], turn + i * math.pi / points) for i in range(2 * points)]
        return polygon([(x + a * math.cos(t), y + a * math.sin(t)) for a, t in turns])

    return drawn


def corners(*spots: Spot) -> Callable[[float, float, float], str]:
    return lambda x, y, r: polygon([(x + a * r, y + b * r) for a, b in spots])


def circle(x: float, y: float, r: float) -> str:
    a = number(r)
    return f"M{number(x - r)} {number(y)}a{a} {a} 0 1 0 {number(2 * r)} 0a{a} {a} 0 1 0 {number(-2 * r)} 0Z"


PLUS = strokes((-1, 0, 1, 0), (0, -1, 0, 1))
T = 0.4  # of a cross' arm, its half width
CROSS = ((-T, -1), (T, -1), (T, -T), (1, -T), (1, T), (T, T), (T, 1), (-T, 1), (-T, T), (-1, T), (-1, -T), (-T, -T))
X = tuple(((a + b) * math.sqrt(0.5), (b - a) * math.sqrt(0.5)) for a, b in CROSS)
MARKS: dict[str, Callable[[float, float, float], str]] = {
    "circle": circle,
    "circle-cross": lambda x, y, r: circle(x, y, r) + PLUS(x, y, r),
    "square": corners((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
    "diamond": corners((0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)),
    "diamond-tall": corners((0, -1.4), (0.7, 0), (0, 1.4), (-0.7, 0)),
    "triangle-up": corners((0, -1.15), (1.1, 0.75), (-1.1, 0.75)),
    "triangle-down": corners((0, 1.15), (1.1, -0.75), (-1.1, -0.75)),
    "cross": corners(*CROSS),
    "x": corners(*X),
    "star": star(5, 0.42),
    "star-triangle-down": star(3, 0.45, math.pi / 2),
    "line-ew": strokes((-1.4, 0, 1.4, 0)),
    "line-ns": strokes((0, -1.4, 0, 1.4)),
}
STROKED = ("line-ew", "line-ns", "circle-cross")


def path_of(symbol: str, spots: Sequence[Spot], size: float) -> str:
    """A trace's marks. Raises KeyError, naming it, for a symbol that is not drawn here."""
    draw = MARKS[LETTERS.sub("", symbol)]
    return "".join(draw(x, y, size / 2) for x, y in spots)


def is_open(symbol: str) -> bool:
    return symbol.endswith("-open") or LETTERS.sub("", symbol) in STROKED


def line_of(spots: Sequence[Spot | None], steps: bool = False) -> str:
    """A line that breaks where a spot is None; `steps`: along first, then up or down."""
    path, pen, before = "", "M", None
    for spot in spots:
        if spot is None:
            pen = "M"
            continue
        x, y = spot
        if steps and pen == "L" and before is not None:
            path += f"L{number(x)} {number(before)}"
        path += f"{pen}{number(x)} {number(y)}"
        pen, before = "L", y
    return path
