"""How a mixture's tokens spread over its experts. Shares in, a figure out."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from dashboard.style import DASHES, NEUTRAL, colour, framed, symbol

Loads = Sequence[Sequence[float]]  # by layer, each expert's share of what is routed
MOST = 6  # layers drawn: of more those whose busiest experts lie evenly from the busiest to the idlest  *assumed*
IDLE = 0.1  # of an even share: below it an expert hardly learns  *assumed*


def load(layers: Loads, name: str) -> go.Figure:
    """Each layer's experts, the busiest first, as multiples of an even share; `name`: the run's."""
    fig = go.Figure()
    order = sorted(range(len(layers)), key=lambda i: -max(layers[i]))
    last = min(MOST, len(order)) - 1
    shown = sorted({order[round(k * (len(order) - 1) / max(last, 1))] for k in range(last + 1)})
    for i, layer in enumerate(shown):
        times = sorted((s * len(layers[layer]) for s in layers[layer]), reverse=True)
        look = {"color": colour(i), "symbol": symbol(i), "size": 8}
        over = f"layer {layer + 1}, place %{{x}}<br>%{{y:.2f}} × an even share<extra></extra>"
        line = {"color": colour(i), "width": 1.5, "dash": DASHES[i % len(DASHES)]}
        place = list(range(1, len(times) + 1))
        fig.add_trace(
            go.Scatter(
                x=place,
                y=times,
                mode="lines+markers",
                marker=look,
                line=line,
                name=f"layer {layer + 1}",
                hovertemplate=over,
            )
        )
    even = {"color": NEUTRAL, "dash": "dot", "width": 1.5}
    ends = [1, max(len(shares) for shares in layers)]
    fig.add_trace(go.Scatter(x=ends, y=[1, 1], mode="lines", line=even, name="even: 1", hoverinfo="skip"))
    fig.update_xaxes(title_text="experts of a layer, the busiest first (place)", dtick=1 if ends[1] <= 16 else None)
    fig.update_yaxes(title_text="share of what is routed ÷ an even share", rangemode="tozero")
    some = f"; drawn are {len(shown)} of {len(layers)} layers" if len(shown) < len(layers) else ""
    read = (
        "each line is a layer on held-out data, and the nearer it lies to 1 the more evenly its experts are used; what "
        f"falls to 0 is trained in vain{some}."
    )
    return framed(fig, finding(layers, name), read)


def finding(layers: Loads, name: str) -> str:
    """The busiest expert, and how many hardly take part."""
    times, layer = max((max(shares) * len(shares), i) for i, shares in enumerate(layers))
    every = [s * len(shares) for shares in layers for s in shares]
    idle = sum(t < IDLE for t in every)
    rest = (
        f"{idle} of {len(every)} take under a tenth of one" if idle else f"all {len(every)} take a tenth of one or more"
    )
    return f"The busiest expert of {name} takes {times:.2g} times an even share, in layer {layer + 1}; {rest}"
