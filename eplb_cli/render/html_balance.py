"""The pictures of a load for a browser: how far from balance OLD and NEW are, and which ranks have most."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from eplb_cli.render.html_figures import (
    COLOURS,
    LEGEND,
    MAX_CELLS,
    SCALE,
    TOOLBAR,
    axis_step,
    new_figure,
)

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from eplb_cli.report.balance import Balance, Balances

_WHEN = ("before", "after")


def draw_balance(found: Balances) -> Figure:
    """Max / mean of each layer before and after, each above a dotted line for its bound."""
    from plotly.graph_objects import Scatter

    traces, which = [], slice(-len(found.placements), None)  # the only one is what will be
    for balance, when, colour in zip(found.placements, _WHEN[which], COLOURS[which], strict=True):
        for name, ratios, line in (
            (when, balance.imbalance.max_over_mean, {"color": colour, "width": 2}),
            (f"bound {when}", balance.imbalance.bound, {"color": colour, "width": 1, "dash": "dot"}),
        ):
            content = {"name": name, "x": balance.layers, "y": ratios, "line": line}
            hover = f"layer %{{x}}: {name} %{{y:.3f}}<extra></extra>"
            traces.append(Scatter(content, mode="lines", hovertemplate=hover, showlegend=name == when))
    layers = found.placements[0].layers
    title = "Max / mean load of ranks per layer, and its bound (dotted)"
    figure = new_figure(title, traces, "layer", "max / mean")
    figure.update_layout(margin={"t": TOOLBAR + LEGEND})
    figure.update_xaxes(dtick=axis_step(max(layers) - min(layers)))
    return figure


def draw_loads(found: Balances) -> Figure:
    """The load of each rank over the mean of its layer, before and beside it after."""
    from plotly.graph_objects import Heatmap

    size = max(balance.imbalance.rank_load.shape[1] for balance in found.placements)
    block = -(-size // MAX_CELLS)
    of = "rank" if block == 1 else f"busiest of {block} ranks"
    cells = [_over_mean(balance, block) for balance in found.placements]
    most = max(float(each.max()) for each in cells)
    traces = [
        Heatmap(
            z=each,
            x0=0,
            dx=block,
            y=[str(layer) for layer in balance.layers],
            xaxis=axis,
            zmin=0,
            zmax=most,
            colorscale=SCALE,
            showscale=axis == "x2",
            colorbar={"title": {"text": "× mean"}},
            hovertemplate=f"layer %{{y}}, rank %{{x}}<br>%{{z:.3f}} of the mean {when}<extra></extra>",
        )
        for balance, each, axis, when in zip(found.placements, cells, ("x", "x2"), _WHEN, strict=True)
    ]
    figure = new_figure(
        "Load of each rank over the mean, before and after", traces, f"{of}, before", "layer", 560
    )
    step = 2 * axis_step(size)  # on half the width
    figure.update_layout(
        xaxis={"domain": [0, 0.48], "dtick": step},
        xaxis2={"domain": [0.52, 1], "dtick": step, "title": {"text": f"{of}, after"}, "anchor": "y"},
        yaxis={"type": "category", "autorange": "reversed"},
    )
    return figure


def _over_mean(balance: Balance, block: int) -> NDArray[np.float32]:
    """(L, R) loads over the mean of each layer, the largest of each block of ranks; 0 where there is none."""
    loads = balance.imbalance.rank_load
    means = loads.mean(axis=1, keepdims=True)
    ratios = np.divide(loads, means, out=np.zeros_like(loads), where=means > 0)
    return np.maximum.reduceat(ratios, np.arange(0, loads.shape[1], block), axis=1).astype(np.float32)
