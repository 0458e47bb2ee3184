"""The figures of training: losses as they came in, a trunk with its forks, the trunks of a stage.

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

from dashboard.figures import best_of, least, legend_only, names_of, shape_name
from dashboard.style import DASHES, NATS, NEUTRAL, PHASES, colour, framed, nats, short, symbol
from tunnel import schedule

POINTS = 400  # of a drawn curve: more than a screen shows  *assumed*
CURVES = 200  # in one figure (PLATFORM: more is slow)
BEST = " (best)"
NAMED = 9  # lrs that a legend names; of more, only the sides  *assumed*
STOPPED = {"symbol": "x", "size": 9}
SEEN = 0.93  # of a curve's losses are in sight: the first steps' fall would flatten the rest  *assumed*


def progress(readings: pd.DataFrame) -> go.Figure:
    """The readings' losses in the order in which they came, and the best so far of each stage."""
    rows = readings.reset_index(drop=True)
    fig = go.Figure()
    for i, stage in enumerate(rows.stage.unique()):
        here = rows[rows.stage == stage]
        text = [f"{name} D {short(d)}" for name, d in zip(names_of(here), here.D, strict=True)]
        look = {"marker": {"color": colour(i), "symbol": symbol(i), "size": 7}, "text": text}
        over = "%{text}<br>loss %{y:.4f}<extra></extra>"
        at = here.index + 1
        fig.add_trace(go.Scatter(x=at, y=here.loss, name=stage, mode="markers", hovertemplate=over, **look))
        best = {"color": colour(i), "shape": "hv", "dash": DASHES[i % len(DASHES)]}
        name = f"best of {stage} so far"
        fig.add_trace(go.Scatter(x=at, y=here.loss.cummin(), name=name, mode="lines", line=best, hoverinfo="skip"))
    fig.update_xaxes(title_text="reading (number, in the order they finished)")
    fig.update_yaxes(title_text=NATS)
    finding = f"{len(rows)} finished models; the best is {best_of(rows)}"
    return framed(
        fig, finding, "each mark is one finished model of a proxy; the steps are the best of its stage so far.", 420
    )


# one trunk


def tree(
    rows: pd.DataFrame, trunk: pd.DataFrame | None, forks: Mapping[str, pd.DataFrame], joins: Sequence[float] = ()
) -> go.Figure:
    """A trunk and its forks against tokens: training loss above, the lr's multiplier below, phases shaded.

    `rows`: the readings of one trunk, finished or diverged; `forks`: curves by fingerprint; `joins`: where data joined.
    """
    rows = rows.sort_values(["D", "decay_start"])
    fig = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.06, row_heights=[0.68, 0.32])
    if trunk is not None and len(trunk):
        line(fig, thinned(trunk).tokens, thinned(trunk).loss, "trunk (training loss)", 1, "trunk", color=NEUTRAL)
    rungs, kinds = list(dict.fromkeys(rows.D)), list(dict.fromkeys(decay_name(r) for _, r in rows.iterrows()))
    for _, r in rows.iterrows():
        i, kind = rungs.index(r.D), decay_name(r)
        name = f"fork to D = {short(r.D)}" + (f", {kind}" if len(kinds) > 1 else "")
        branch = i if i < 4 else i + 1  # grey is the trunk's
        look: dict[str, Any] = {"color": colour(branch), "dash": DASHES[kinds.index(kind) % len(DASHES)]}
        kept = joined(trunk, forks.get(r.fingerprint), r.decay_start)
        if len(kept):
            line(fig, kept.tokens, kept.loss, name, 1, r.fingerprint, **look)
        at, m = multipliers(r)
        line(fig, at, m, name, 2, r.fingerprint, not len(kept), **look)
    done = rows[rows.loss.notna()]
    over = "D %{x:,.0f} tokens<br>held-out loss %{y:.4f}<extra></extra>"
    mark = {"symbol": "diamond-open", "size": 11, "color": NEUTRAL, "line": {"width": 2}}
    ends = go.Scatter(
        x=done.D, y=done.loss, mode="markers", marker=mark, hovertemplate=over, name="reading (held-out loss)"
    )
    fig.add_trace(ends, row=1, col=1)
    shade(fig, rows)
    for at_join in joins:
        fig.add_vline(x=at_join, line={"color": NEUTRAL, "width": 2, "dash": "dot"}, row="all", col=1)
    if joins:
        legend_only(fig, "data joins", mode="lines", line={"color": NEUTRAL, "width": 2, "dash": "dot"})
    fig.update_xaxes(title_text="tokens", tickformat="~s", row=2, col=1)
    fig.update_yaxes(title_text=NATS, row=1, col=1, range=sight(trunk, *forks.values(), ends=done.loss))
    fig.update_yaxes(title_text="lr ÷ peak lr", row=2, col=1, range=[-0.05, 1.1])
    read = (
        "the grey trunk is trained once; each coloured fork leaves it where its decay begins and ends as a finished "
        "model, measured at the diamond."
    )
    return framed(fig, tree_finding(rows, done), read, 640)


def decay_name(r: Any) -> str:
    return f"decay {r.decay:.0%} {r.decay_shape}"


def tree_finding(rows: pd.DataFrame, done: pd.DataFrame) -> str:
    first, models = rows.iloc[0], f"{len(done)} finished model{'s' * (len(done) != 1)}"
    name = f"{shape_name(first.width, first.depth)} at lr {first.lr:.3g}"
    if not len(done):
        return f"{name}: diverged after {short(first.diverged_at or first.D)} tokens"
    best, kinds = least(done), {decay_name(r) for _, r in done.iterrows()}
    how = f" by a {decay_name(best)}" if len(kinds) > 1 else ""
    return f"{name}: one trunk, {models}, down to {nats(best.loss)} nats per token{how}"


def line(
    fig: go.Figure, x: Any, y: Any, name: str, row: int, group: str, legend: bool | None = None, **look: str
) -> None:
    over = "%{x:,.0f} tokens<br>%{y:.4f}<extra></extra>"
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


def shade(fig: go.Figure, rows: pd.DataFrame) -> None:
    """Warmup, stable and the decays as bands behind both panels."""
    warmup = float(rows.iloc[0].warmup)
    bands, before = [("warmup", 0.0, warmup)], warmup
    first = rows.groupby("D").decay_start.min()  # of several decays to a rung, the longest
    for start, end in zip(first.to_numpy(float), first.index.astype(float), strict=True):
        bands += [("stable", before, max(start, before)), ("decay", max(start, before), end)]
        before = end
    for phase, start, end in bands:
        look = {"fillcolor": NEUTRAL, "opacity": PHASES[phase], "line_width": 0, "layer": "below"}
        fig.add_vrect(x0=start, x1=end, row="all", col=1, **look)
    for phase, opacity in PHASES.items():
        mark = {"symbol": "square", "size": 14, "color": NEUTRAL, "opacity": opacity}
        legend_only(fig, f"phase: {phase}", mode="markers", marker=mark)


def sight(*curves: pd.DataFrame | None, ends: Sequence[float] | pd.Series = ()) -> list[float] | None:
    """The losses worth seeing, as an axis' range; None where there are too few to say."""
    losses = [x for c in curves if c is not None for x in c.loss]
    seen = np.array([*losses, *ends], float)
    seen = seen[np.isfinite(seen)]
    if len(seen) < 5:
        return None
    low, high = float(seen.min()), float(np.quantile(seen, SEEN))
    room = 0.08 * max(high - low, 1e-3)
    return [low - room, high + room]


def thinned(curve: pd.DataFrame) -> pd.DataFrame:
    """A curve as at most `POINTS` points: means of equal runs of rows."""
    if len(curve) <= POINTS:
        return curve
    return curve.groupby(np.arange(len(curve)) * POINTS // len(curve)).mean()


# many trunks


@dataclass(frozen=True)
class Grown:
    """A trunk as it is drawn: its readings, its own curve, and its forks' by fingerprint."""

    rows: pd.DataFrame
    curve: pd.DataFrame | None
    forks: Mapping[str, pd.DataFrame]
    stopped: bool = False  # by halving

    @property
    def first(self) -> pd.Series:
        return self.rows.iloc[0]


def fan(trunks: Sequence[Grown], name: str, total: int) -> go.Figure:
    """All trunks of one shape with their forks, and a mark per reading. At most `CURVES` curves.

    The best lr has a colour, and so have all below it and all above; the farther away, the more broken the line.
    `trunks`: at least one; `total`: how many there are.
    """
    fig, looks = go.Figure(), looks_of(trunks)
    for t in sorted(trunks, key=lambda t: looks[float(t.first.lr)][0].endswith(BEST)):  # on top of the others
        group, look = looks[float(t.first.lr)]
        over = f"lr {t.first.lr:.3g}, seed {t.first.seed}<br>%{{x:,.0f}} tokens<br>%{{y:.4f}}<extra></extra>"
        said = {"legendgroup": group, "showlegend": False, "hovertemplate": over}
        forks = [joined(t.curve, t.forks.get(r.fingerprint), r.decay_start) for _, r in t.rows.iterrows()]
        trunk = t.curve if t.curve is not None else forks[0].head(0)
        for curve, width in ((thinned(trunk), 1.1), *((fork, 2) for fork in forks)):
            if len(curve):
                drawn = {"x": curve.tokens, "y": curve.loss, "line": {**look, "width": width}}
                fig.add_trace(go.Scatter(**drawn, mode="lines", **said))
        done = t.rows[t.rows.loss.notna()].sort_values("D")
        mark = {"symbol": "diamond-open", "size": 8, "color": look["color"], "line": {"width": 1.5}}
        fig.add_trace(go.Scatter(x=done.D, y=done.loss, mode="markers", marker=mark, **said))
        if t.stopped and len(done):
            end, mark = done.tail(1), {**STOPPED, "color": look["color"]}
            fig.add_trace(go.Scatter(x=end.D, y=end.loss, mode="markers", marker=mark, **said))
    for group, look in {group: look for group, look in looks.values()}.items():
        legend_only(fig, group, mode="lines", line=look, legendgroup=group)
    legend_only(fig, "reading (held-out loss)", mode="markers", marker={"symbol": "diamond-open", "color": NEUTRAL})
    if any(t.stopped for t in trunks):
        legend_only(fig, "stopped by halving", mode="markers", marker={**STOPPED, "color": NEUTRAL})
    fig.update_xaxes(title_text="tokens", tickformat="~s")
    curves = [c for t in trunks for c in (t.curve, *t.forks.values())]
    ends = [x for t in trunks for x in t.rows.loss.dropna()]
    fig.update_yaxes(title_text=NATS, range=sight(*curves, ends=ends))
    read = (
        "a thin line is a trunk, a thick one its fork, and the diamonds of one D, one below another, are what the "
        "valley is made of; colours tell the best lr from those below and above it."
    )
    return framed(fig, fan_finding(trunks, name, total), read, 520)


def looks_of(trunks: Sequence[Grown]) -> dict[float, tuple[str, dict[str, Any]]]:
    """Each lr's name in the legend and its line: by its side of the best lr, and its distance from it."""
    lrs = sorted({float(t.first.lr) for t in trunks})
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


def fan_finding(trunks: Sequence[Grown], name: str, total: int) -> str:
    many = f"{total} trunks" if len(trunks) == total else f"{len(trunks)} of {total} trunks"
    if not any(t.rows.loss.notna().any() for t in trunks):
        return f"{name}: {many}, none with a finished model"
    best, stopped = best_lr(trunks), sum(t.stopped for t in trunks)
    said = f"{name}: of {many}, lr {best.lr:.3g} is best at D = {short(best.D)}, with {nats(best.loss)} nats per token"
    return said + (f"; {stopped} were stopped by halving" if stopped else "")


def trunks(curves: Sequence[tuple[str, float, pd.DataFrame]], stage: str, total: int) -> go.Figure:
    """Trunks of a stage, one over another: (shape, lr, curve) each, at most `CURVES` of the stage's `total`."""
    fig = go.Figure()
    shapes = {shape: i for i, shape in enumerate(dict.fromkeys(shape for shape, _, _ in curves))}
    named: set[str] = set()
    for shape, lr, curve in curves[:CURVES]:
        thin, i = thinned(curve), shapes[shape]
        over = f"{shape} lr {lr:.3g}<br>%{{x:,.0f}} tokens<br>%{{y:.4f}}<extra></extra>"
        look = {"color": colour(i), "width": 1.3, "dash": DASHES[i % len(DASHES)]}
        said = {"name": shape, "legendgroup": shape, "showlegend": shape not in named}
        fig.add_trace(go.Scatter(x=thin.tokens, y=thin.loss, mode="lines", line=look, hovertemplate=over, **said))
        named.add(shape)
    fig.update_xaxes(title_text="tokens", tickformat="~s")
    fig.update_yaxes(title_text=f"training {NATS}", range=sight(*(c for _, _, c in curves)))
    drawn = min(len(curves), CURVES)
    many = f"{drawn} trunk{'s' * (drawn != 1)}" + (f" of {total}" if total > drawn else "")
    last = min(curves, key=lambda c: float(c[2].loss.iloc[-1]))
    finding = f"Stage {stage}, {many}: before any decay, {last[0]} at lr {last[1]:.3g} comes down furthest"
    read = (
        "each line is a trunk before any decay; lines of one colour are one shape at different lr and other settings."
    )
    return framed(fig, finding, read, 440)
