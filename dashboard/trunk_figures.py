"""The figures of many trunks: of a shape with all their forks, and of a stage; beyond `CURVES` curves, as bands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from dashboard.curve_figures import PLAIN, Units, sight, thinned
from dashboard.figures import least, legend_only, shape_name
from dashboard.style import DASHES, NEUTRAL, colour, faint, framed, short

CURVES = 200  # in one figure (PLATFORM: more is slow); beyond, bands
STEPS = 120  # of a band
MIDDLE = (0.05, 0.5, 0.95)  # a band's ends and its line
BEST = " (best)"
NAMED = 9  # lrs that a legend names; of more, only the sides  *assumed*
STOPPED = {"symbol": "x", "size": 9}
Points = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Grown:
    """A trunk as it is drawn: its readings, its own curve, and its forks' by fingerprint."""

    rows: pd.DataFrame
    curve: pd.DataFrame | None
    forks: Mapping[str, pd.DataFrame]
    stopped: bool = False  # by halving

    @cached_property
    def first(self) -> pd.Series:
        return self.rows.iloc[0]

    @cached_property
    def lr(self) -> float:
        return float(self.first.lr)

    def trunk(self, by: tuple[float, float]) -> Points:
        return points(self.curve, by)

    def branches(self, by: tuple[float, float]) -> list[Points]:
        """Its forks, each from the trunk's last point before it on."""
        found, own = [], self.trunk(by)
        for fp, start in zip(self.rows.fingerprint, self.rows.decay_start, strict=True):
            if (fork := self.forks.get(fp)) is not None and len(fork):
                x, y = points(fork, by)
                at = int(np.searchsorted(own[0], start * by[0], side="right"))
                found.append((np.append(own[0][max(at - 1, 0) : at], x), np.append(own[1][max(at - 1, 0) : at], y)))
        return found


def points(curve: pd.DataFrame | None, by: tuple[float, float]) -> Points:
    """A curve as it is drawn: x and y."""
    if curve is None or not len(curve):
        return np.zeros(0), np.zeros(0)
    thin = thinned(curve)
    return thin.tokens.to_numpy(float) * by[0], thin.loss.to_numpy(float) * by[1]


def fan(trunks: Sequence[Grown], name: str, total: int, units: Units = PLAIN) -> go.Figure:
    """All trunks of one shape with their forks, and a mark per reading; beyond `CURVES` curves, bands of the trunks.

    The best lr has a colour, and so have all below it and all above; the farther away, the more broken the line.
    `trunks`: at least one; `total`: how many there are.
    """
    fig, looks, losses = go.Figure(), looks_of(trunks), list[np.ndarray]()
    grouped = sum(1 + len(t.forks) for t in trunks) > CURVES
    groups = dict[str, list[Grown]]()
    for t in sorted(trunks, key=lambda t: looks[t.lr][0].endswith(BEST)):  # the best on top
        groups.setdefault(looks[t.lr][0], []).append(t)
    for group, mine in groups.items():
        look, by = looks[mine[0].lr][1], [units.of(t.rows) for t in mine]
        own = [t.trunk(b) for t, b in zip(mine, by, strict=True)]
        forks = [t.branches(b) for t, b in zip(mine, by, strict=True)]
        losses += [y for _, y in own] + [y for each in forks for _, y in each]
        if grouped:
            band(fig, own, group, look)
        else:
            strands(fig, own, [t.lr for t in mine], group, {**look, "width": 1.1})
            lrs = [t.lr for t, each in zip(mine, forks, strict=True) for _ in each]
            strands(fig, [f for each in forks for f in each], lrs, group, {**look, "width": 2})
        diamonds(fig, mine, by, group, look["color"])
        legend_only(fig, group, mode="lines", line=look, legendgroup=group)
    legend_only(fig, "reading (held-out loss)", mode="markers", marker={"symbol": "diamond-open", "color": NEUTRAL})
    if any(t.stopped for t in trunks):
        legend_only(fig, "stopped by halving", mode="markers", marker={**STOPPED, "color": NEUTRAL})
    fig.update_xaxes(title_text=units.x_title, tickformat="~s")
    ends = np.concatenate([t.rows.loss.to_numpy(float) * units.up for t in trunks])
    fig.update_yaxes(title_text=units.y_title, range=sight(losses, ends))
    drawn = "a band holds 90% of the trunks" if grouped else "a thin line is a trunk, a thick one its fork"
    read = (
        f"{drawn}, and the diamonds of one D, one below another, are what the valley is made of; colours tell the best "
        "lr from those below and above it."
    )
    return framed(fig, fan_finding(trunks, name, total, units), read, 520)


def strands(fig: go.Figure, lines: Sequence[Points], lrs: Sequence[float], group: str, look: Mapping[str, Any]) -> None:
    """Many curves of one look as one line that is broken between them: a hundred times cheaper than as many lines."""
    kept = [(x, y, lr) for (x, y), lr in zip(lines, lrs, strict=True) if len(x)]
    if not kept:
        return
    x, y = (np.concatenate([np.append(c[k], np.nan) for c in kept]) for k in (0, 1))
    lr = np.concatenate([np.full(len(c[0]) + 1, c[2]) for c in kept])
    over = "lr %{customdata:.3g}<br>%{x:.4s}: %{y:.4f}<extra></extra>"
    said = {"legendgroup": group, "showlegend": False, "hovertemplate": over, "customdata": lr}
    fig.add_trace(go.Scatter(x=x, y=y, mode="lines", line=dict(look), **said))


def diamonds(
    fig: go.Figure, trunks: Sequence[Grown], by: Sequence[tuple[float, float]], group: str, shade: str
) -> None:
    """The readings of trunks of one look, and where they were stopped."""
    rows = pd.concat([t.rows.assign(across=b[0], up=b[1]) for t, b in zip(trunks, by, strict=True)])
    ended = {
        t.rows.fingerprint[t.rows.loss.notna()].iloc[-1] for t in trunks if t.stopped and t.rows.loss.notna().any()
    }
    rows = rows[rows.loss.notna()]
    each = zip(rows.lr, rows.seed, rows.D, strict=True)
    text = [f"lr {lr:.3g}, seed {seed}, D {short(d)}" for lr, seed, d in each]
    rows = rows.assign(x=rows.D * rows.across, y=rows.loss * rows.up, text=text)
    over = "%{text}<br>%{y:.4f}<extra></extra>"
    said = {"legendgroup": group, "showlegend": False, "hovertemplate": over, "mode": "markers"}
    open_ = {"symbol": "diamond-open", "size": 8, "color": shade, "line": {"width": 1.5}}
    for some, mark in ((rows, open_), (rows[rows.fingerprint.isin(ended)], {**STOPPED, "color": shade})):
        if len(some):
            which = {"customdata": some["name"]} if "name" in some else {}
            fig.add_trace(go.Scatter(x=some.x, y=some.y, text=some.text, marker=mark, **which, **said))


def band(fig: go.Figure, curves: Sequence[Points], group: str, look: Mapping[str, Any]) -> None:
    """Many curves as the band that holds 90% of them, and their median."""
    curves = [c for c in curves if len(c[0])]
    if not curves:
        return
    x = np.linspace(min(c[0].min() for c in curves), max(c[0].max() for c in curves), STEPS)
    each = np.array([np.interp(x, *c, np.nan, np.nan) for c in curves])
    there = ~np.isnan(each).all(axis=0)
    low, middle, high = np.nanquantile(each[:, there], MIDDLE, axis=0)
    said = {"legendgroup": group, "showlegend": False}
    fill = {"fill": "toself", "mode": "none", "fillcolor": faint(look["color"]), "hoverinfo": "skip"}
    fig.add_trace(go.Scatter(x=[*x[there], *x[there][::-1]], y=[*high, *low[::-1]], **fill, **said))
    over = f"{group}: median of {len(curves)}<br>%{{x:.4s}}: %{{y:.4f}}<extra></extra>"
    line = {**look, "width": 2}
    fig.add_trace(go.Scatter(x=x[there], y=middle, mode="lines", line=line, hovertemplate=over, **said))


def looks_of(trunks: Sequence[Grown]) -> dict[float, tuple[str, dict[str, Any]]]:
    """Each lr's name in the legend and its line: by its side of the best lr, and its distance from it."""
    lrs = sorted({t.lr for t in trunks})
    best = lrs.index(float(best_lr(trunks).lr)) if any(t.rows.loss.notna().any() for t in trunks) else 0
    found = {}
    for i, lr in enumerate(lrs):
        side = (i > best) - (i < best)
        name = f"lr {lr:.3g}" + BEST * (side == 0)
        if len(lrs) > NAMED and side:
            name = f"{abs(best if side < 0 else len(lrs) - 1 - best)} lrs {'below' if side < 0 else 'above'}"
        dash = DASHES[max(abs(i - best) - 1, 0) % len(DASHES)] if len(lrs) <= NAMED else "solid"
        found[lr] = (name, {"color": colour((2, 1, 0)[side]), "dash": dash})
    return found


def best_lr(trunks: Sequence[Grown]) -> pd.Series:
    """The longest rung's best lr, by the seeds' mean: lr, D, loss."""
    done = pd.concat([t.rows for t in trunks])
    longest = done[done.loss.notna() & (done[done.loss.notna()].D.max() == done.D)]
    means = longest.groupby("lr", as_index=False).agg(loss=("loss", "mean"), D=("D", "first"))
    return least(means)


def fan_finding(trunks: Sequence[Grown], name: str, total: int, units: Units) -> str:
    many = f"{total} trunks" if len(trunks) == total else f"{len(trunks)} of {total} trunks"
    if not any(t.rows.loss.notna().any() for t in trunks):
        return f"{name}: {many}, none with a finished model"
    best, stopped = best_lr(trunks), sum(t.stopped for t in trunks)
    said = f"{name}: of {many}, lr {best.lr:.3g} is best at D = {short(best.D)}, with {units.said(best.loss)}"
    return said + (f"; {stopped} were stopped by halving" if stopped else "")


def trunks(curves: Sequence[Grown], stage: str, total: int, units: Units = PLAIN) -> go.Figure:
    """Trunks of a stage before any decay, a colour per shape; beyond `CURVES`, a band per shape.

    `curves`: trunks with a curve, at least one; `total`: how many the stage has.
    """
    fig, by_shape, losses = go.Figure(), dict[str, list[Grown]](), list[np.ndarray]()
    for t in curves:
        by_shape.setdefault(shape_name(t.first.width, t.first.depth), []).append(t)
    for i, (shape, mine) in enumerate(by_shape.items()):
        look = {"color": colour(i), "width": 1.3, "dash": DASHES[i % len(DASHES)]}
        each = [t.trunk(units.of(t.rows)) for t in mine]
        losses += [y for _, y in each]
        if len(curves) > CURVES:
            band(fig, each, shape, look)
        else:
            strands(fig, each, [t.lr for t in mine], shape, look)
        legend_only(fig, shape, mode="lines", line=look, legendgroup=shape)
    fig.update_xaxes(title_text=units.x_title, tickformat="~s")
    fig.update_yaxes(title_text=f"training {units.y_title}", range=sight(losses, np.zeros(0)))
    many = f"{len(curves)} trunk{'s' * (len(curves) != 1)}" + (f" of {total}" if total > len(curves) else "")
    last = min(curves, key=lambda t: float(t.curve.loss.iloc[-1]) if t.curve is not None else np.inf)
    who = f"{shape_name(last.first.width, last.first.depth)} at lr {last.first.lr:.3g}"
    finding = f"Stage {stage}, {many}: before any decay, {who} comes down furthest"
    each_is = "each band holds 90% of a shape's trunks" if len(curves) > CURVES else "each line is a trunk"
    read = f"{each_is} before any decay; one colour is one shape at different lr and other settings."
    return framed(fig, finding, read, 440)
