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
from eplb_cli.report.balance import Balance, Balances

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_WHEN = ("before", "after")


def draw_balance(found: Balances) -> Figure:
    """Max / mean of each layer before and after, and the bounds of both."""
    from plotly.graph_objects import Scatter

    traces = []
    for balance, when, colour in zip(found.placements, _WHEN, COLOURS, strict=True):
        for name, ratios, dash, mode in (
            (when, balance.imbalance.max_over_mean, "solid", "lines+markers"),
            (f"bound {when}", balance.imbalance.bound, "dot", "lines"),
        ):
            traces.append(
                Scatter(
                    x=balance.layers,
                    y=ratios,
                    name=name,
                    mode=mode,
                    line={"color": colour, "dash": dash, "width": 1},
                    hovertemplate=f"layer %{{x}}: {name} %{{y:.3f}}<extra></extra>",
                )
            )
    layers = found.placements[0].layers
    figure = new_figure("Max / mean load of ranks, per layer", traces, "layer", "max / mean")
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
