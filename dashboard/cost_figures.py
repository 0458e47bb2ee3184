"""The figures of money: what the devices were held for, and the attempts one by one. Tables in, plotly figures out."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from dashboard.style import NEUTRAL, PALETTE, clock, colour, duration, framed, log_axis, money, symbol
from tunnel.sweeps.attempts import DONE, IDLE, INTERRUPTED

# In the order in which they are drawn, from what was wanted to what was lost.
STATES = ("earlier", *DONE, "running", IDLE, "failed", INTERRUPTED)
MEANT = {
    "earlier": "training from before attempts were kept",
    "complete": "trials that were trained to their end",
    "pruned": "trials that were stopped early",
    "diverged": "trials that diverged: an answer, too",
    "running": "trials in progress",
    IDLE: "workers without a trial",
    "failed": "attempts that failed, and were made again",
    INTERRUPTED: "attempts that a stop cut off; what they trained is kept",
}
LOST = (IDLE, "failed", INTERRUPTED)
LOOKS = {s: (colour(i), symbol(i)) for i, s in enumerate((*DONE, "failed", "running", INTERRUPTED))}
PATTERNS = ("", "/", "x", ".")  # of the stages that the palette has no colour for
ROOM = 1.32  # of the longest bar: its words stand to the right of it  *measured here*
LEAST = 1e-3  # seconds that a mark on a log axis stands for at least


def in_order(states: pd.Series) -> list[str]:
    """Each state once; those that are not known here come last."""
    return [s for s in STATES if s in set(states)] + sorted(set(states) - set(STATES))


def held(table: pd.DataFrame, currency: str) -> go.Figure:
    """Device time by what became of it, coloured by stage. `table`: `ledger.held`, at least one row of over 0 s."""
    fig, whole = go.Figure(), float(table.seconds.sum())
    unit, size = clock(float(table.groupby("state").seconds.sum().max()))
    states = in_order(table.state)
    for i, stage in enumerate(table.stage.unique()):
        own = table[table.stage == stage]
        over = "%{y}, stage %{fullData.name}<br>%{customdata[0]}<br>%{customdata[1]}<extra></extra>"
        said = [(duration(s), money(c, currency)) for s, c in zip(own.seconds, own.cost, strict=True)]
        pattern = PATTERNS[i // len(PALETTE) % len(PATTERNS)]
        look = {"marker": {"color": colour(i), "pattern": {"shape": pattern}}, "customdata": said}
        x = own.seconds / size
        fig.add_trace(go.Bar(x=x, y=own.state, name=stage, orientation="h", hovertemplate=over, **look))
    for state in states:
        rows = table[table.state == state]
        seconds, cost = float(rows.seconds.sum()), sum(rows.cost, Decimal(0))
        text = f"{seconds / whole:.1%} · {duration(seconds)} · {money(cost, currency)}"
        fig.add_annotation(x=seconds / size, y=state, text=text, showarrow=False, xanchor="left", xshift=6)
    longest = float(table.groupby("state").seconds.sum().max()) / size
    fig.update_layout(barmode="stack", bargap=0.35, legend_traceorder="normal")
    fig.update_xaxes(title_text=f"device time ({unit})", range=[0, longest * ROOM])
    fig.update_yaxes(title_text="spent on (state)", categoryorder="array", categoryarray=states[::-1])
    read = "a bar is all that the devices were held for by attempts of one fate, and its colours are the stages: "
    meant = "; ".join(f"{s} is {MEANT[s]}" for s in states if s in MEANT)
    return framed(fig, held_finding(table, currency), f"{read}{meant}.", 210 + 44 * len(states))


def held_finding(table: pd.DataFrame, currency: str) -> str:
    whole, cost = float(table.seconds.sum()), sum(table.cost, Decimal(0))
    by = table.groupby("state").seconds.sum() / whole
    spent = f"{duration(whole)} of one device ({money(cost, currency)})"
    if set(by.index) == {"earlier"}:
        return f"Training took {spent}; idle and failed time was not kept"
    lost = [f"{by[s]:.1%} {s}" for s in LOST if s in by]
    return f"{1 - sum(by.get(s, 0.0) for s in LOST):.1%} of {spent} went into trials; {', '.join(lost) or 'none else'}"


def attempts(table: pd.DataFrame, trials: int) -> go.Figure:
    """Every attempt's device time, at its end. `table`: `ledger.attempts` with an end each, at least one row."""
    fig, seconds = go.Figure(), table.seconds.clip(lower=LEAST)
    unit, size = clock(float(seconds.max()))
    for state in in_order(table.state):
        own = table[table.state == state]
        shade, mark = LOOKS.get(state, (NEUTRAL, "circle"))
        each = zip(own.stage, own.trial, own.seconds, strict=True)
        text = [f"{stage} {int(trial)}, {state}<br>{duration(s)}" for stage, trial, s in each]
        look: dict[str, Any] = {"mode": "markers", "marker": {"color": shade, "symbol": mark, "size": 8}}
        at = {"x": pd.to_datetime(own.when, utc=True, format="ISO8601"), "y": seconds[own.index] / size}
        fig.add_trace(go.Scattergl(**at, **look, name=state, text=text, hovertemplate="%{text}<extra></extra>"))
    fig.update_yaxes(**log_axis(f"device time ({unit})", float(seconds.min()) / size, float(seconds.max()) / size))
    fig.update_xaxes(title_text="ended (UTC)")
    read = "each mark is a trial's hold on a device; one that failed is made again, one that was cut off gone on with."
    return framed(fig, attempts_finding(table, trials), read, 400)


def attempts_finding(table: pd.DataFrame, trials: int) -> str:
    lost = [f"{n} {s}" for s in ("failed", INTERRUPTED) if (n := int((table.state == s).sum()))]
    longest = f"the longest took {duration(float(table.seconds.max()))} of a device"
    return f"{len(table)} attempts at {trials} trials: {', '.join(lost) or 'none failed or was cut off'}; {longest}"
