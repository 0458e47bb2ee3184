"""How numbers, lengths and tables are written for people."""

from __future__ import annotations

import sys
from decimal import Decimal
from typing import Any

from rich.console import Console
from rich.table import Table

WIDE = 160  # columns where there is no terminal to ask
# what is in brackets is text: a question is no markup
out = Console(width=None if sys.stdout.isatty() else WIDE, markup=False, emoji=False)
BARS = " ▁▂▃▄▅▆▇█"


def number(x: Any, digits: int = 4) -> str:
    """A number as people read it: 1.25e+20, 0.0123, 499,712; "" for None."""
    if x is None:
        return ""
    if isinstance(x, str):
        return x
    if isinstance(x, int) or (isinstance(x, float) and x.is_integer() and 10 <= abs(x) < 1e9):
        return f"{int(x):,}"
    return f"{x:.{digits}g}"


def duration(seconds: float) -> str:
    """
    >>> duration(42), duration(3700), duration(1e6)
    ('42 s', '1.0 h', '11.6 days')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


def sparkline(values: list[float]) -> str:
    return "".join(BARS[round(v * (len(BARS) - 1))] for v in values)


def table(title: str, columns: list[str], rows: list[list[Any]]) -> None:
    shown = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for i, column in enumerate(columns):
        shown.add_column(column, justify="left" if i == 0 else "right", overflow="fold", no_wrap=i == 0)
    for row in rows:
        shown.add_row(*[number(v) for v in row])
    out.print(shown)


def money(amount: float | Decimal, currency: str) -> str:
    return f"{amount:,.2f} {currency}"


def between(known: dict[str, float] | None) -> str:
    """
    >>> between({"value": 0.0123, "low": 0.01, "high": 0.015})
    '0.0123 (0.01 to 0.015)'
    """
    return "" if known is None else "{value:.3g} ({low:.3g} to {high:.3g})".format(**known)


def yes(inside: bool | None) -> str:
    return "" if inside is None else "yes" if inside else "NO"


def share(x: float | None) -> str:
    return "" if x is None else f"{100 * x:.0f}%"


def join(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list) else str(value or "")


def size(n: float) -> str:
    """
    >>> size(512), size(2_500_000), size(3e12)
    ('512 bytes', '2.5 MB', '3.0 TB')
    """
    for unit in ("bytes", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "bytes" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} TB"
