"""The figures of training: a trunk with its forks.

Tables in, plotly figures out, as in `figures`; curves are `Store.curve`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dashboard.figures import least, legend_only, shape_name
from dashboard.style import DASHES, NEUTRAL, PHASES, colour, framed, nats, short
from tunnel import schedule

POINTS = 400  # of a drawn curve: more than a screen shows  *assumed*
ABOVE = 1.2  # of the highest reading's height: its fork comes from above it  *assumed*
SEEN = 0.93  # of a curve's losses are in sight: the first steps' fall would flatten the rest  *assumed*


# units

TOKENS, FLOPS, HOURS = "tokens", "FLOPs", "hours"
NAMES = {"nats": "nats per token", "bits": "bits per byte"}


@dataclass(frozen=True)
class Units:
    """What a figure's axes are in; tokens are carried over by a trunk's own readings, nats per token by `up`."""

    x: str = TOKENS
    y: str = "nats"
    up: float = 1.0
    clock: tuple[str, float] = ("hours", 3600.0)  # the unit of time, and its seconds

    @property
    def x_title(self) -> str:
        return {TOKENS: TOKENS, FLOPS: "training compute (FLOPs)"}.get(self.x, f"training time ({self.clock[0]})")

    @property
    def y_title(self) -> str:
        return f"loss ({NAMES[self.y]})"

    def of(self, rows: pd.DataFrame) -> tuple[float, float]:
        """What a trunk's tokens and nats per token are multiplied by."""
        across = 1.0
        if self.x == FLOPS:
            across = float(rows.flops.iloc[0] / rows.D.iloc[0])
        if self.x == HOURS:
            across = float(rows.seconds.sum() / rows.tokens_trained.sum() / self.clock[1])
        return across, self.up

    def carried(self, curve: pd.DataFrame, by: tuple[float, float]) -> pd.DataFrame:
        return curve.assign(tokens=curve.tokens * by[0], loss=curve.loss * by[1])

    def said(self, loss: float) -> str:
        return f"{nats(loss * self.up)} {NAMES[self.y]}"


PLAIN = Units()


# one trunk


def tree(
    rows: pd.DataFrame,
    trunk: pd.DataFrame | None,
    forks: Mapping[str, pd.DataFrame],
    joins: Sequence[float] = (),
    units: Units = PLAIN,
) -> go.Figure:
    """A trunk and its forks against tokens: training loss above, the lr's multiplier below, phases shaded.

    `rows`: the readings of one trunk, finished or diverged; `forks`: curves by fingerprint; `joins`: where data joined.
    """
    rows, by = rows.sort_values(["D", "decay_start"]), units.of(rows)
    fig = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.06, row_heights=[0.68, 0.32])
    if trunk is not None and len(trunk):
        thin = units.carried(thinned(trunk), by)
        line(fig, thin.tokens, thin.loss, "trunk (training loss)", 1, "trunk", color=NEUTRAL)
    rungs, kinds = list(dict.fromkeys(rows.D)), list(dict.fromkeys(decay_name(r) for _, r in rows.iterrows()))
    for _, r in rows.iterrows():
        i, kind = rungs.index(r.D), decay_name(r)
        name = f"fork to D = {short(r.D)}" + (f", {kind}" if len(kinds) > 1 else "")
        branch = i if i < 4 else i + 1  # grey is the trunk's
        look: dict[str, Any] = {"color": colour(branch), "dash": DASHES[kinds.index(kind) % len(DASHES)]}
        kept = units.carried(joined(trunk, forks.get(r.fingerprint), r.decay_start), by)
        if len(kept):
            line(fig, kept.tokens, kept.loss, name, 1, r.fingerprint, **look)
        at, m = multipliers(r)
        line(fig, at * by[0], m, name, 2, r.fingerprint, not len(kept), **look)
    done = rows[rows.loss.notna()]
    over = "D %{text} tokens<br>held-out loss %{y:.4f}<extra></extra>"
    mark = {"symbol": "diamond-open", "size": 11, "color": NEUTRAL, "line": {"width": 2}}
    ends = {"x": done.D * by[0], "y": done.loss * by[1], "text": [f"{d:,.0f}" for d in done.D]}
    look = {"mode": "markers", "marker": mark, "hovertemplate": over, "name": "reading (held-out loss)"}
    fig.add_trace(go.Scatter(**ends, **look), row=1, col=1)
    shade(fig, rows, by[0])
    for at_join in joins:
        fig.add_vline(x=at_join * by[0], line={"color": NEUTRAL, "width": 2, "dash": "dot"}, row="all", col=1)
    if joins:
        legend_only(fig, "data joins", mode="lines", line={"color": NEUTRAL, "width": 2, "dash": "dot"})
    fig.update_xaxes(title_text=units.x_title, tickformat="~s", row=2, col=1)
    seen = [c.loss * by[1] for c in (trunk, *forks.values()) if c is not None]
    fig.update_yaxes(title_text=units.y_title, row=1, col=1, range=sight(seen, done.loss * by[1]))
    fig.update_yaxes(title_text="lr ÷ peak lr", row=2, col=1, range=[-0.05, 1.1])
    read = (
        "the grey trunk is trained once; each coloured fork leaves it where its decay begins and ends as a finished "
        "model, measured at the diamond."
    )
    return framed(fig, tree_finding(rows, done, units), read, 640)


def decay_name(r: Any) -> str:
    return f"decay {r.decay:.0%} {r.decay_shape}"


def tree_finding(rows: pd.DataFrame, done: pd.DataFrame, units: Units) -> str:
    first, models = rows.iloc[0], f"{len(done)} finished model{'s' * (len(done) != 1)}"
    name = f"{shape_name(first.width, first.depth)} at lr {first.lr:.3g}"
    if not len(done):
        return f"{name}: diverged after {short(first.diverged_at or first.D)} tokens"
    best, kinds = least(done), {decay_name(r) for _, r in done.iterrows()}
    how = f" by a {decay_name(best)}" if len(kinds) > 1 else ""
    return f"{name}: one trunk, {models}, down to {units.said(best.loss)}{how}"


def line(
    fig: go.Figure, x: Any, y: Any, name: str, row: int, group: str, legend: bool | None = None, **look: str
) -> None:
    over = "%{x:.4s}: %{y:.4f}<extra></extra>"
    said = {"name": name, "legendgroup": group, "showlegend": row == 1 if legend is None else legend}
    drawn = go.Scatter(x=x, y=y, mode="lines", hovertemplate=over, line={"width": 1.8, **look}, **said)
    fig.add_trace(drawn, row=row, col=1)


def joined(trunk: pd.DataFrame | None, fork: pd.DataFrame | None, start: float) -> pd.DataFrame:
    """A fork's curve from the trunk's last point on: the branch hangs on its tree. Empty where none was kept."""
    if fork is None or not len(fork):
        return pd.DataFrame(columns=["tokens", "loss"])
    thin = thinned(fork)
    before = trunk[trunk.tokens <= start].tail(1) if trunk is not None else thin.head(0)
    return pd.concat([before[["tokens", "loss"]], thin[["tokens", "loss"]]], ignore_index=True)


def multipliers(r: Any) -> tuple[np.ndarray, list[float]]:
    """A run's lr multiplier by the schedule itself, from 0 tokens to D."""
    start, length = int(r.decay_start), int(r.D - r.decay_start)
    risen, fallen = np.linspace(0, max(r.warmup, 1), 20), start + length * np.linspace(0, 1, 60) ** 2
    at = np.unique(np.concatenate([risen, fallen]).astype(int))
    half_life = float(r.half_life) if pd.notna(r.get("half_life")) else schedule.HALF_LIFE
    args = (int(r.batch_tokens), int(r.warmup), start, length, r.decay_shape, float(r.min_ratio), half_life)
    return at, [schedule.multiplier(int(t), *args) for t in at]


def shade(fig: go.Figure, rows: pd.DataFrame, across: float = 1.0) -> None:
    """Warmup, stable and the decays as bands behind both panels; tokens are drawn times `across`."""
    warmup = float(rows.iloc[0].warmup)
    bands, before = [("warmup", 0.0, warmup)], warmup
    first = rows.groupby("D").decay_start.min()  # of several decays to a rung, the longest
    for start, end in zip(first.to_numpy(float), first.index.astype(float), strict=True):
        bands += [("stable", before, max(start, before)), ("decay", max(start, before), end)]
        before = end
    for phase, start, end in bands:
        look = {"fillcolor": NEUTRAL, "opacity": PHASES[phase], "line_width": 0, "layer": "below"}
        fig.add_vrect(x0=start * across, x1=end * across, row="all", col=1, **look)
    for phase, opacity in PHASES.items():
        mark = {"symbol": "square", "size": 14, "color": NEUTRAL, "opacity": opacity}
        legend_only(fig, f"phase: {phase}", mode="markers", marker=mark)


def sight(losses: Sequence[np.ndarray | pd.Series], ends: np.ndarray | pd.Series) -> list[float] | None:
    """The losses worth seeing, as an axis' range: all readings' `ends`, most of the curves; None where they are few."""
    seen, read = (np.asarray(each, float) for each in (np.concatenate([*losses, ends]), ends))
    seen, read = seen[np.isfinite(seen)], read[np.isfinite(read)]
    if len(seen) < 5:
        return None
    low = float(seen.min())
    high = max([float(np.quantile(seen, SEEN)), *(low + ABOVE * (read - low))])
    room = 0.08 * max(high - low, 1e-3)
    return [low - room, high + room]


def thinned(curve: pd.DataFrame) -> pd.DataFrame:
    """A curve as at most `POINTS` points: means of equal runs of rows."""
    if len(curve) <= POINTS:
        return curve
    return curve.groupby(np.arange(len(curve)) * POINTS // len(curve)).mean()
