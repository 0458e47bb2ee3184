"""What can be taken away from a figure: its own data as a table, and a name for the file. No file is touched here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

ENDS = [f"{k}{end}" for k in "xy" for end in ("_name", "", "_low", "_high")]
COLUMNS = ["panel", "series", *ENDS, "z_name", "z", "label"]
BREAK = re.compile(r"<br>")
NAME = 60  # characters of a file's name  *assumed*


def table(fig: go.Figure) -> pd.DataFrame:
    """Every mark that a figure draws, one a row: panel, series, x and y with their intervals, and its label.

    Columns that a figure has no use for are left out; series that only explain the legend have no rows.
    """
    parts = [rows(fig, trace) for trace in fig.data]
    found = pd.concat([p for p in parts if len(p)], ignore_index=True) if any(len(p) for p in parts) else None
    return pd.DataFrame(columns=COLUMNS) if found is None else found.reindex(columns=[c for c in COLUMNS if c in found])


def rows(fig: go.Figure, trace: Any) -> pd.DataFrame:
    """One series as rows; a map's as one row a cell."""
    if getattr(trace, "z", None) is not None:
        x, y = np.meshgrid(np.asarray(trace.x), np.asarray(trace.y))
        points: dict[str, Any] = {"x": x.ravel(), "y": y.ravel(), "z": np.asarray(trace.z, float).ravel()}
        points["z_name"] = trace.colorbar.title.text or ""
    else:
        x, y = (listed(getattr(trace, k, None)) for k in ("x", "y"))
        if not len(x) or not len(y):
            return pd.DataFrame()
        points = {"x": x, "y": y} | dict(intervals(trace, x, y)) | labels(trace, len(x))
    names = {f"{k}_name": title(fig, getattr(trace, f"{k}axis", None) or k) for k in "xy"}
    found = pd.DataFrame(points).assign(panel=panel(trace), series=trace.name or trace.legendgroup or "", **names)
    return found[found.x.notna() & found.y.notna()]


def listed(values: Any) -> np.ndarray:
    return np.asarray([] if values is None else values, dtype=None)


def intervals(trace: Any, x: np.ndarray, y: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """The ends of error bars."""
    for k, at in (("x", x), ("y", y)):
        bar = getattr(trace, f"error_{k}", None)
        if bar is not None and bar.array is not None:
            down = bar.arrayminus if bar.arrayminus is not None else bar.array
            yield f"{k}_low", at - np.asarray(down, float)
            yield f"{k}_high", at + np.asarray(bar.array, float)


def labels(trace: Any, n: int) -> dict[str, list[str]]:
    text = getattr(trace, "text", None)
    if text is None or isinstance(text, str) or len(text) != n:
        return {}
    return {"label": [BREAK.sub(" ", str(t)) for t in text]}


def title(fig: go.Figure, axis: str) -> str:
    """What an axis is called; one that shares another's range may have its name there."""
    found = fig.layout[f"{axis[0]}axis{axis[1:]}"]
    while not found.title.text and found.matches:
        found = fig.layout[f"{axis[0]}axis{found.matches[1:]}"]
    return BREAK.sub(" ", found.title.text or "")


def panel(trace: Any) -> int:
    return int((getattr(trace, "xaxis", None) or "x")[1:] or 1)


def file_name(study: str, key: str) -> str:
    """A file's name without what a path, or a shell, would take for something else.

    >>> file_name("a/b", "valleys lr ../x")
    'a-b-valleys-lr-x'
    """
    return re.sub(r"[^A-Za-z0-9]+", "-", f"{study} {key}").strip("-")[:NAME] or "figure"
