"""What students keep of their teacher, against what they cost. Tables in, plotly figures out."""

from __future__ import annotations

import html

import pandas as pd
import plotly.graph_objects as go

from dashboard.style import NEUTRAL, colour, framed, log_axis, short, symbol
from tunnel.answers.retention import TEACHER

AGAINST = {"parameters": "parameters", "faster": "speed-up of one sequence (times)"}


def kept(table: pd.DataFrame, against: str, accept: float) -> go.Figure:
    """Each model's kept score, mean and worst task, against `parameters` or `faster` (`answers.retention.kept`)."""
    fig, low = go.Figure(), table.dropna(subset=[against])
    students = low[low.verdict != TEACHER]
    for i, (verdict, own) in enumerate([("accepted", True), ("refused", False)]):
        rows = students[(students.verdict == "accepted") == own]
        if len(rows):
            fig.add_trace(marks(rows, against, verdict, colour(i), symbol(i)))
    for x, top, worst in zip(students[against], students["mean kept %"], students["worst kept %"], strict=True):
        fig.add_shape(type="line", x0=x, x1=x, y0=worst, y1=top, line={"color": NEUTRAL, "width": 1})
    teacher = low[low.verdict == TEACHER]
    if len(teacher):
        fig.add_trace(marks(teacher, against, TEACHER, NEUTRAL, "diamond"))
    fig.add_hline(y=100 * accept, line={"dash": "dot", "color": NEUTRAL})
    values = low[against].astype(float)
    fig.update_xaxes(**log_axis(AGAINST[against], float(values.min()), float(values.max())))
    fig.update_yaxes(title_text="kept of the teacher's score (%)")
    read = (
        "a mark is a model's mean over the tasks, and the line below it reaches to its worst task; "
        f"a model is accepted where every task lies above the dotted line, {100 * accept:.0f}%."
    )
    return framed(fig, finding(students, against), read)


def marks(rows: pd.DataFrame, against: str, name: str, tint: str, sign: str) -> go.Scatter:
    said = [
        f"{html.escape(str(r.model))}<br>worst task {r['worst kept %']}%<br>{html.escape(str(r.verdict))}"
        for _, r in rows.iterrows()
    ]
    return go.Scatter(
        x=rows[against],
        y=rows["mean kept %"],
        name=name,
        mode="markers",
        marker={"color": tint, "symbol": sign, "size": 11},
        customdata=said,
        hovertemplate="%{customdata}<br>kept %{y}%<extra></extra>",
    )


def finding(students: pd.DataFrame, against: str) -> str:
    if not len(students):
        return "No student is tuned yet"
    passed = students[students.verdict == "accepted"]
    if not len(passed):
        best = students.iloc[int(students["worst kept %"].argmax())]
        return f"No student keeps enough on every task; the nearest, {best.model}, {best['worst kept %']}% on its worst"
    if against == "faster":
        best = passed.iloc[int(passed.faster.argmax())]
        return f"{best.model} is {best.faster}× as fast as the teacher and keeps {best['mean kept %']}% of its score"
    best = passed.iloc[int(passed.parameters.argmin())]
    share = f"{short(best.parameters)} parameters, {best['% of teacher']}% of the teacher's"
    return f"{best.model} has {share}, and keeps {best['mean kept %']}% of its score"
