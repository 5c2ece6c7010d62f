"""The pictures of a plan for a browser, one function each; only numbers and words from here are in them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from eplb_cli.plan.moves import ReshardPlan
from eplb_cli.report.blocks import block_of, name_of_block, traffic_of_blocks
from eplb_cli.report.report import Report

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

SCALE = "Viridis"
COLOURS = ("#3b78c3", "#d98032")
"""First and second of two: sent and received, before and after. Readable on white and on black."""

FLOWS = ("sent", "received")

TOOLBAR, LEGEND = 36, 34
"""Pixels above a picture: the toolbar comes when it is pointed at, and must not cover what is below it."""

MAX_TICKS = 8
"""Steps of an axis: with more of them their numbers do not fit on the screen of a telephone."""

MAX_CELLS = 256
"""Ranks, or blocks of them, on a side of the map; cells of more are smaller than two pixels."""


def new_figure(title: str, traces: list[Any], x: str, y: str, height: int = 420) -> Figure:
    """A picture of so many pixels, with names for its axes, in colours that the page gives it."""
    from plotly.graph_objects import Figure, Layout

    layout = Layout(
        meta={"title": title},
        height=height,
        margin={"l": 70, "r": 20, "t": TOOLBAR, "b": 60},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        xaxis={"title": {"text": x}},
        yaxis={"title": {"text": y}},
        legend={"orientation": "h", "y": 1, "yanchor": "bottom"},
    )
    return Figure(data=traces, layout=layout)


def axis_step(largest: int) -> int:
    """Between two ticks of an axis that ends with `largest`: 1, 2 or 5, or one of these with zeros behind it.

    Left to itself plotly has halves of ranks and rows, and five ticks for cells that are all alike.
    """
    step = 1
    while largest > MAX_TICKS * step:
        step = step * 5 // 2 if str(step)[0] == "2" else 2 * step
    return step


def draw_traffic(report: Report) -> Figure:
    """Old to new, by rank or by as few ranks as make a map that can be seen; no traffic is left blank."""
    from plotly.graph_objects import Heatmap

    unit = " rows" if report.totals.remote_bytes is None else "B"
    block = block_of(report, lambda size: size <= MAX_CELLS)
    of = name_of_block(report, block)
    noun = of.split(maxsplit=1)[0]
    size = -(-len(report.ranks) // block)
    cells = np.full((size, size), np.nan, np.float32)
    amounts = traffic_of_blocks(report, block)
    for pair, amount in amounts.items():
        cells[pair] = amount
    largest = max(amounts.values(), default=0)
    heat = Heatmap(
        z=cells,
        zmin=0,
        zmax=largest or 1,
        colorscale=SCALE,
        colorbar={"title": {"text": unit}, "tickformat": "~s", "dtick": axis_step(largest)},
        hovertemplate=f"old {noun} %{{y}} to new {noun} %{{x}}<br>%{{z:.3s}}{unit}<extra></extra>",
        hoverongaps=False,
    )
    figure = new_figure("Who sends how much to whom", [heat], f"new {of}", f"old {of}", 640)
    figure.update_xaxes(dtick=axis_step(size))
    figure.update_yaxes(autorange="reversed", dtick=axis_step(size))
    return figure


def draw_ranks(report: Report) -> Figure:
    """What each rank sends and receives, and the bound of the busiest; lines where bars are too thin."""
    from plotly.graph_objects import Bar, Scatter

    in_bytes = report.totals.remote_bytes is not None
    quantity, unit = ("bytes", "B") if in_bytes else ("rows", " rows")
    traces = []
    for flow, colour in zip(FLOWS, COLOURS, strict=True):
        content = {
            "name": flow,
            "x": [rank.rank for rank in report.ranks],
            "y": [getattr(rank, f"{flow}_{quantity}") for rank in report.ranks],
            "hovertemplate": f"rank %{{x}}: {flow} %{{y:.3s}}{unit}<extra></extra>",
        }
        if len(report.ranks) <= MAX_CELLS:
            traces.append(Bar(content, marker={"color": colour, "line": {"width": 0}}))
        else:
            traces.append(Scatter(content, mode="lines", line={"color": colour, "shape": "hvh", "width": 1}))
    figure = new_figure("Per rank", traces, "rank", quantity)
    figure.update_layout(margin={"t": TOOLBAR + LEGEND})
    bound = getattr(report.totals, f"busiest_sender_bound_{quantity}")
    if bound is not None:
        figure.add_hline(
            y=bound, line={"dash": "dot", "color": COLOURS[0]}, annotation_text="bound, busiest sender"
        )
    largest = max(max(getattr(rank, f"{flow}_{quantity}") for flow in FLOWS) for rank in report.ranks)
    figure.update_xaxes(dtick=axis_step(len(report.ranks)))
    figure.update_yaxes(tickformat="~s", rangemode="tozero", dtick=axis_step(max(largest, bound or 0)))
    return figure


def draw_layers(report: Report) -> Figure:
    """What comes from another rank in each layer."""
    from plotly.graph_objects import Bar

    in_bytes = report.totals.remote_bytes is not None
    unit = "B" if in_bytes else " rows"
    numbers = [layer.layer for layer in report.layers]
    amounts = [(layer.remote_bytes if in_bytes else layer.remote_rows) or 0 for layer in report.layers]
    bars = Bar(
        x=numbers,
        y=amounts,
        marker={"color": COLOURS[0], "line": {"width": 0}},
        hovertemplate=f"layer %{{x}}: %{{y:.3s}}{unit}<extra></extra>",
    )
    figure = new_figure("Per layer, from another rank", [bars], "layer", "bytes" if in_bytes else "rows")
    figure.update_xaxes(dtick=axis_step(max(numbers) - min(numbers)))
    figure.update_yaxes(tickformat="~s", dtick=axis_step(max(amounts)))
    return figure


def draw_replicas(plan: ReshardPlan) -> Figure:
    """How many slots hold each expert of each layer, in OLD and beside it in NEW."""
    from plotly.graph_objects import Heatmap

    counts = [placement.num_replicas.astype(np.int32) for placement in (plan.old, plan.new)]
    most = max(int(each.max(initial=1)) for each in counts)
    names = [str(plan.new.layer_number(layer)) for layer in range(plan.new.num_layers)]
    traces = [
        Heatmap(
            z=count,
            y=names,
            xaxis=axis,
            zmin=0,
            zmax=most,
            colorscale=SCALE,
            showscale=axis == "x2",
            colorbar={"title": {"text": "replicas"}, "dtick": axis_step(most)},
            hovertemplate=f"layer %{{y}}, expert %{{x}}<br>%{{z}} replicas {when}<extra></extra>",
        )
        for count, axis, when in zip(counts, ("x", "x2"), ("before", "after"), strict=True)
    ]
    figure = new_figure("Replicas of each expert, before and after", traces, "expert, before", "layer", 560)
    step = 2 * axis_step(plan.new.num_logical_experts)  # on half the width
    figure.update_layout(
        xaxis={"domain": [0, 0.48], "dtick": step},
        xaxis2={"domain": [0.52, 1], "dtick": step, "title": {"text": "expert, after"}, "anchor": "y"},
        yaxis={"type": "category", "autorange": "reversed"},
    )
    return figure
