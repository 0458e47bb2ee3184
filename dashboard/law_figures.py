"""The figures of what was concluded: a ladder's fit (DIR/fits/*.json) in, plotly figures out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from dashboard.figures import legend_only, shape_name
from dashboard.style import DASHES, NATS, NEUTRAL, colour, faint, framed, log_axis, nats, short, symbol
from dashboard.whatif import LOSSES, Budget, Residuals, Told

OVER = "N %{x:.3s}<br>loss %{y:.4f}<extra></extra>"


def law(fit: Mapping[str, Any], check: Mapping[str, Any] | None = None) -> go.Figure:
    """The valleys' minima against N, the law at the target's D with its interval, forecast and measured."""
    told, curve, fig = fit["forecast"], fit["curve"], go.Figure()
    x = [c["N"] for c in curve]
    y = [c["high"] for c in curve] + [c["low"] for c in curve][::-1]
    band = {"fill": "toself", "mode": "none", "fillcolor": faint(colour(0)), "hoverinfo": "skip"}
    fig.add_trace(go.Scatter(x=[*x, *x[::-1]], y=y, name="the law's 90% interval", **band))
    name = f"law “{told['law']}” at D = {short(told['D'])}"
    values = [c["value"] for c in curve]
    fig.add_trace(go.Scatter(x=x, y=values, name=name, mode="lines", line={"color": colour(0)}, hovertemplate=OVER))
    for i, d in enumerate(sorted({m["D"] for m in fit["minima"]}, reverse=True)):
        fig.add_trace(minima_at([m for m in fit["minima"] if m["D"] == d], d, i))
    ends = bars([told["low"]], [told["value"]], [told["high"]], 2)
    mark = {"symbol": "diamond", "size": 12, "color": colour(1)}
    at = {"x": [told["N"]], "y": [told["value"]], "error_y": ends, "mode": "markers", "hovertemplate": OVER}
    fig.add_trace(go.Scatter(**at, marker=mark, name="forecast for the target, 90% interval"))
    if measured := measured_of(fit, check):
        mark = {"symbol": "star-open", "size": 18, "color": colour(2), "line": {"width": 2.5}}
        at = {"x": [told["N"]], "y": [measured], "mode": "markers", "hovertemplate": OVER}
        fig.add_trace(go.Scatter(**at, marker=mark, name="measured"))
    fig.update_xaxes(**log_axis("N (non-embedding parameters)", min(x), max(*x, told["N"])))
    fig.update_yaxes(title_text=NATS)
    read = (
        "each mark is a shape at its best lr; the line carries those of the target's own D on to the target's size, "
        "where the measured loss should fall between the bars."
    )
    return framed(fig, law_finding(fit, check), read, 560)


def bars(low: Sequence[float], at: Sequence[float], high: Sequence[float], thickness: float) -> dict[str, Any]:
    """Error bars from intervals."""
    up, down = ([abs(e - v) for e, v in zip(end, at, strict=True)] for end in (high, low))
    return {
        "type": "data",
        "symmetric": False,
        "array": up,
        "arrayminus": down,
        "thickness": thickness,
        "width": 3 * thickness,
    }


def minima_at(found: list[dict[str, Any]], d: float, i: int) -> go.Scatter:
    """The valleys' minima of one rung, with their intervals where they are known."""
    c = colour(0) if i == 0 else colour(3 + (i - 1) % 3)  # the others belong to forecast and measured
    losses = [m["loss"] for m in found]
    known = all("high" in m and "low" in m for m in found)
    ends = bars([m["low"] for m in found], losses, [m["high"] for m in found], 1.2) if known else None
    return go.Scatter(
        x=[m["N"] for m in found],
        y=losses,
        error_y=ends,
        mode="markers",
        name=f"valleys’ minima at D = {short(d)}",
        text=[shape_name(m["width"], m["depth"]) for m in found],
        marker={"color": c, "symbol": symbol(i), "size": 9},
        hovertemplate="%{text}<br>" + OVER,
    )


def measured_of(fit: Mapping[str, Any], check: Mapping[str, Any] | None) -> float | None:
    """The target's measured loss, where this fit is about that target."""
    ours = check is not None and check["target"] == fit["forecast"]["target"]
    return check["measured"] if ours and check is not None else None


def law_finding(fit: Mapping[str, Any], check: Mapping[str, Any] | None) -> str:
    told, measured = fit["forecast"], measured_of(fit, check)
    ends = f"90%: {nats(told['low'])} to {nats(told['high'])}"
    said = f"Target {told['target']}: forecast {nats(told['value'])} nats per token ({ends})"
    far = f", {told['distance']:.2g} decades beyond the readings" if told.get("distance") else ""
    if measured is None or check is None:
        return f"{said}{far}; not yet measured"
    where = "inside" if check["inside"] else "outside"
    return f"{said}; measured {nats(measured)}, {where} the interval, {abs(check['error_percent']):.2f}% off"


def alternatives(told: Sequence[Told], fit: Mapping[str, Any], check: Mapping[str, Any] | None = None) -> go.Figure:
    """The target's forecast by every form and loss, with intervals, beside the registered one. At least one told."""
    fig, known = go.Figure(), [t for t in told if not t.why]
    for i, (loss, name) in enumerate(LOSSES.items()):
        mine = [t for t in known if t.loss == loss]
        x = [t.value for t in mine]
        ends = bars([t.low for t in mine], x, [t.high for t in mine], 1.6)
        look = {"mode": "markers", "marker": {"color": colour((0, 3, 4)[i]), "symbol": symbol(i), "size": 9}}
        over = "%{y}<br>forecast %{x:.4f}<extra></extra>"
        y = [t.name for t in mine]
        fig.add_trace(go.Scatter(x=x, y=y, error_x=ends, name=name, hovertemplate=over, **look))
    now = fit["forecast"]
    fig.add_vrect(x0=now["low"], x1=now["high"], fillcolor=colour(1), opacity=0.15, line_width=0, layer="below")
    fig.add_vline(x=now["value"], line={"color": colour(1), "width": 2})
    legend_only(fig, "the study's own, 90% interval", mode="lines", line={"color": colour(1), "width": 2})
    if measured := measured_of(fit, check):
        fig.add_vline(x=measured, line={"color": colour(2), "width": 2.5, "dash": "dot"})
        legend_only(fig, "measured", mode="lines", line={"color": colour(2), "width": 2.5, "dash": "dot"})
    fig.update_xaxes(title_text=f"forecast {NATS}")
    names = [t.name for t in known]
    fig.update_yaxes(title_text="form (and loss of the fit)", automargin=True, autorange="reversed")
    fig.update_yaxes(categoryorder="array", categoryarray=names)
    read = (
        "each mark is what the same minima tell by another form or another loss of the fit; the farther apart they "
        "lie, the less the forecast owes to the readings and the more to the choice of form."
    )
    return framed(fig, alternative_finding(known, fit), read, 210 + 26 * len(known))


def alternative_finding(known: Sequence[Told], fit: Mapping[str, Any]) -> str:
    now, values = fit["forecast"], [t.value for t in known]
    inside = sum(now["low"] <= v <= now["high"] for v in values)
    apart = 100 * (max(values) / min(values) - 1)
    said = f"{inside} of {len(values)} other fits lie inside the study's own interval around {nats(now['value'])}"
    return f"{said}; they are {apart:.2g}% apart"


def residuals(found: Residuals, name: str) -> go.Figure:
    """By how much each valley's minimum lies above the law, against N, a colour per rung. At least one."""
    fig = go.Figure()
    for i, d in enumerate(sorted(set(found.D))):
        for used in (True, False):
            at = (d == found.D) & (used == found.used)
            if at.any():
                mark = {"color": colour(i), "symbol": symbol(i) + ("" if used else "-open"), "size": 9}
                over = "N %{x:.3s}<br>%{y:+.2f}%<extra></extra>"
                label = f"D = {short(d)}" + ("" if used else ", left out of the fit")
                x, y = found.N[at], found.percent[at]
                fig.add_trace(go.Scatter(x=x, y=y, mode="markers", marker=mark, name=label, hovertemplate=over))
    fig.add_hline(y=0, line={"color": NEUTRAL, "width": 1})
    fig.update_xaxes(**log_axis("N (non-embedding parameters)", float(found.N.min()), float(found.N.max())))
    fig.update_yaxes(title_text="measured ÷ law − 1 (%)", ticksuffix="%")
    read = "marks scattered about zero are what a law should leave; a slope or a bend is what it cannot follow."
    return framed(fig, residual_finding(found, name), read, 420)


def residual_finding(found: Residuals, name: str) -> str:
    own = found.percent[found.used]
    typical, worst = float((own**2).mean() ** 0.5), float(abs(found.percent).max())
    many = f"{len(own)} minima" + (f" (of {len(found.N)})" if len(own) < len(found.N) else "")
    return f"“{name}” leaves {typical:.2g}% of {many} that it was fitted to; the largest miss is {worst:.2g}%"


def iso_flops(budgets: Sequence[Budget], read: Sequence[Budget], fit: Mapping[str, Any]) -> go.Figure:
    """Loss over N at equal compute: curves of the law of N and D with the frontier through their minima, and parabolas
    through readings of one budget. At least one of either."""
    fig, told = go.Figure(), fit["forecast"]
    for i, b in enumerate([*budgets, *read]):
        line = {"color": colour(i), "dash": DASHES[i % len(DASHES)]}
        over = f"C {b.C:.2g}<br>N %{{x:.3s}}<br>%{{y:.4f}}<extra></extra>"
        name = f"C = {b.C:.2g} FLOPs" + (", as read" if b.read else "")
        said = {"name": name, "legendgroup": f"{i}", "hovertemplate": over}
        fig.add_trace(go.Scatter(x=b.N, y=b.loss, mode="lines", line=line, **said))
        if b.read:
            mark = {"color": colour(i), "symbol": symbol(i), "size": 9}
            fig.add_trace(go.Scatter(x=b.read[0], y=b.read[1], mode="markers", marker=mark, showlegend=False, **said))
    if budgets:
        best = {"x": [b.best[0] for b in budgets], "y": [b.best[1] for b in budgets]}
        mark = {"symbol": "diamond", "size": 9, "color": NEUTRAL}
        look = {"mode": "lines+markers", "line": {"color": NEUTRAL, "width": 3}, "marker": mark}
        fig.add_trace(go.Scatter(**best, **look, name="frontier: the best N of each budget", hovertemplate=OVER))
    lows = fit["minima"]
    text = [f"{shape_name(m['width'], m['depth'])}, D {short(m['D'])}, C {m['C']:.2g}" for m in lows]
    mark = {"mode": "markers", "marker": {"symbol": "circle-open", "size": 8, "color": NEUTRAL}, "text": text}
    at = {"x": [m["N"] for m in lows], "y": [m["loss"] for m in lows], "hovertemplate": "%{text}<br>" + OVER}
    fig.add_trace(go.Scatter(**at, **mark, name="valleys’ minima"))
    mark = {"mode": "markers", "marker": {"symbol": "star", "size": 13, "color": colour(1)}, "hovertemplate": OVER}
    fig.add_trace(go.Scatter(x=[told["N"]], y=[told["value"]], **mark, name="target’s forecast"))
    sizes = [*(float(n) for b in [*budgets, *read] for n in (b.N[0], b.N[-1])), told["N"], *at["x"]]
    fig.update_xaxes(**log_axis("N (non-embedding parameters)", min(sizes), max(sizes)))
    fig.update_yaxes(title_text=NATS)
    what = "the grey line joins those of the law" if budgets else "the parabolas go through readings of one budget"
    way = "along a curve the compute is the same, and a larger N means fewer tokens; its lowest point is the best size"
    return framed(fig, iso_finding(budgets, read, told), f"{way} for that budget, and {what}.", 520)


def iso_finding(budgets: Sequence[Budget], read: Sequence[Budget], told: Mapping[str, Any]) -> str:
    last = max(budgets or read, key=lambda b: b.C)
    best = f"At {last.C:.2g} FLOPs the best size is about {short(last.best[0])} parameters"
    if not budgets:
        return f"{best}, by the readings alone"
    factor = told["N"] / (last.best[0] * (6 * told["N"] * told["D"] / last.C) ** 0.5)
    how = "near" if 0.5 < factor < 2 else f"{short(factor, 2)} times" if factor > 1 else f"1/{short(1 / factor, 2)} of"
    return f"{best} on {short(last.C / 6 / last.best[0])} tokens; the target has {how} that size"


# hold-outs


def holdouts(fit: Mapping[str, Any]) -> go.Figure:
    """Each form's errors on readings that it had not seen, against how far off they lay."""
    fig, by = go.Figure(), dict[tuple[str, str], list[dict[str, Any]]]()
    for h in fit["holdouts"]:
        by.setdefault((h["law"], h.get("axis", "")), []).append(h)
    colours = {name: i for i, name in enumerate(dict.fromkeys(name for name, _ in by))}
    symbols = {axis: i for i, axis in enumerate(dict.fromkeys(axis for _, axis in by))}
    for (name, axis), found in by.items():
        chosen = name == fit["chosen"]
        look = symbol(symbols[axis]) + ("" if chosen else "-open")
        fig.add_trace(
            go.Scatter(
                x=[h["distance"] for h in found],
                y=[h["error_percent"] for h in found],
                mode="markers",
                name=f"{name}{' (chosen)' * chosen}" + (f", largest {axis} left out" if axis else ""),
                text=[f"{nats(h['predicted'])} for {nats(h['measured'])}" for h in found],
                marker={"color": colour(colours[name]), "symbol": look, "size": 9},
                hovertemplate="%{text}<br>%{y:+.2f} at %{x:.2f} decades<extra></extra>",
            )
        )
    fig.add_hline(y=0, line={"color": NEUTRAL, "width": 1})
    fig.update_xaxes(title_text="distance beyond the fit (decades)", rangemode="tozero")
    fig.update_yaxes(title_text="forecast ÷ measured − 1 (%)", ticksuffix="%")
    read = "each mark is a reading left out of a fit and forecast by it: near zero is good, far right was harder."
    return framed(fig, holdout_finding(fit), read, 460)


def holdout_finding(fit: Mapping[str, Any]) -> str:
    worst: dict[str, float] = {}
    for h in fit["holdouts"]:
        worst[h["law"]] = max(worst.get(h["law"], 0.0), abs(h["error_percent"]))
    chosen = worst.pop(fit["chosen"], None)
    others = ", ".join(f"“{name}” by {e:.2g}%" for name, e in worst.items())
    said = f"“{fit['chosen']}” was chosen"
    if chosen is not None:
        said = f"“{fit['chosen']}” missed what it had not seen by at most {chosen:.2g}%"
    return f"{said}; {others}" if others else said
