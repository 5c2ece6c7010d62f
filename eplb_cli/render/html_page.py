"""`plan --html`: the plan as one page that needs nothing but a browser.

The pictures are made with plotly, whose script is inside the page; a policy in its head forbids every
request. Words from files are escaped, and the pictures hold numbers and words from this module only.
"""

from __future__ import annotations

import json
import re
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from eplb_cli.machine import has_package, missing_package
from eplb_cli.placements.placement import EMPTY, Placement
from eplb_cli.plan.moves import ReshardPlan
from eplb_cli.render.html_text import PAGE, THEME
from eplb_cli.render.text import format_bytes, format_seconds, plural
from eplb_cli.report.blocks import block_of, name_of_block, traffic_of_blocks
from eplb_cli.report.report import Report

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

SCALE = "Viridis"
COLOURS = ("#3b78c3", "#d98032")
"""First and second of two: sent and received, before and after. Readable on white and on black."""

MAX_CELLS = 256
"""Ranks, or blocks of them, on a side of the map; cells of more are smaller than two pixels."""


def require_plotly() -> None:
    """Refuse before anything is planned. Raises EP002."""
    if not has_package("plotly"):
        raise missing_package("plotly", "--html")


def html_page(plan: ReshardPlan, report: Report, names: tuple[str, str]) -> str:
    """The page.

    Args:
        names: what OLD and NEW are called.
    """
    from plotly.offline import get_plotlyjs

    figures = {
        "traffic": _traffic(report),
        "ranks": _ranks(report),
        "layers": _layers(report),
        "replicas": _replicas(plan),
    }
    drawn = ",\n".join(f"{json.dumps(name)}: {figure.to_json()}" for name, figure in figures.items())
    totals = report.totals
    parts = {
        "title": f"eplb plan: {escape(names[0])} to {escape(names[1])}",
        "plotly": get_plotlyjs(),
        "headline": f"{plural(totals.remote_rows, 'row')} of {plural(len(report.ranks), 'rank')} "
        "come from another rank",
        "totals": _table(_totals(report)),
        "estimate": _table(_estimate(report)),
        "warnings": "".join(f"<li>{escape(warning)}</li>" for warning in report.warnings),
        "sections": "".join(_section(name, figure) for name, figure in figures.items()),
        "figures": drawn.replace("</", "<\\/"),
        "theme": THEME,
    }
    return re.sub(r"\[\[(\w+)\]\]", lambda place: parts[place[1]], PAGE)


def _section(name: str, figure: Figure) -> str:
    title = escape(figure.layout.meta["title"])
    return f'<section><h2>{title}</h2><div id="{name}" role="img" aria-label="{title}"></div></section>\n'


def _figure(title: str, traces: list[Any], x: str, y: str, height: int = 420) -> Figure:
    from plotly.graph_objects import Figure, Layout

    layout = Layout(
        meta={"title": title},
        height=height,
        margin={"l": 70, "r": 20, "t": 20, "b": 60},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        xaxis={"title": {"text": x}},
        yaxis={"title": {"text": y}},
        legend={"orientation": "h", "y": 1.08},
    )
    return Figure(data=traces, layout=layout)


def _traffic(report: Report) -> Figure:
    """Old to new, by rank or by as few ranks as make a map that can be seen; no traffic is left blank."""
    from plotly.graph_objects import Heatmap

    unit = " rows" if report.totals.remote_bytes is None else "B"
    block = block_of(report, lambda size: size <= MAX_CELLS)
    of = name_of_block(report, block)
    noun = of.split(maxsplit=1)[0]
    size = -(-len(report.ranks) // block)
    cells = np.full((size, size), np.nan, np.float32)
    for pair, amount in traffic_of_blocks(report, block).items():
        cells[pair] = amount
    heat = Heatmap(
        z=cells,
        colorscale=SCALE,
        colorbar={"title": {"text": unit}, "tickformat": "~s"},
        hovertemplate=f"old {noun} %{{y}} to new {noun} %{{x}}<br>%{{z:.3s}}{unit}<extra></extra>",
        hoverongaps=False,
    )
    figure = _figure("Who sends how much to whom", [heat], f"new {of}", f"old {of}", 640)
    figure.update_yaxes(autorange="reversed")
    return figure


def _ranks(report: Report) -> Figure:
    """What each rank sends and receives, and the bound of the busiest; lines where bars are too thin."""
    from plotly.graph_objects import Bar, Scatter

    in_bytes = report.totals.remote_bytes is not None
    quantity, unit = ("bytes", "B") if in_bytes else ("rows", " rows")
    traces = []
    for flow, colour in zip(("sent", "received"), COLOURS, strict=True):
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
    figure = _figure("Per rank", traces, "rank", quantity)
    bound = getattr(report.totals, f"busiest_sender_bound_{quantity}")
    if bound is not None:
        figure.add_hline(
            y=bound, line={"dash": "dot", "color": COLOURS[0]}, annotation_text="bound, busiest sender"
        )
    figure.update_yaxes(tickformat="~s", rangemode="tozero")
    return figure


def _layers(report: Report) -> Figure:
    """What comes from another rank in each layer."""
    from plotly.graph_objects import Bar

    in_bytes = report.totals.remote_bytes is not None
    unit = "B" if in_bytes else " rows"
    bars = Bar(
        x=[layer.layer for layer in report.layers],
        y=[layer.remote_bytes if in_bytes else layer.remote_rows for layer in report.layers],
        marker={"color": COLOURS[0], "line": {"width": 0}},
        hovertemplate=f"layer %{{x}}: %{{y:.3s}}{unit}<extra></extra>",
    )
    figure = _figure("Per layer, from another rank", [bars], "layer", "bytes" if in_bytes else "rows")
    figure.update_yaxes(tickformat="~s")
    return figure


def _replicas(plan: ReshardPlan) -> Figure:
    """How many slots hold each expert of each layer, in OLD and beside it in NEW."""
    from plotly.graph_objects import Heatmap

    counts = [_count_replicas(plan.old), _count_replicas(plan.new)]
    names = [str(plan.new.layer_number(layer)) for layer in range(plan.new.num_layers)]
    traces = [
        Heatmap(
            z=count,
            y=names,
            xaxis=axis,
            zmin=0,
            zmax=max(int(each.max(initial=1)) for each in counts),
            colorscale=SCALE,
            showscale=axis == "x2",
            colorbar={"title": {"text": "replicas"}},
            hovertemplate=f"layer %{{y}}, expert %{{x}}<br>%{{z}} replicas {when}<extra></extra>",
        )
        for count, axis, when in zip(counts, ("x", "x2"), ("before", "after"), strict=True)
    ]
    figure = _figure("Replicas of each expert, before and after", traces, "expert, before", "layer", 560)
    figure.update_layout(
        xaxis={"domain": [0, 0.48]},
        xaxis2={"domain": [0.52, 1], "title": {"text": "expert, after"}, "anchor": "y"},
        yaxis={"type": "category", "autorange": "reversed"},
    )
    return figure


def _count_replicas(placement: Placement) -> np.ndarray:
    """(L, E) slots that hold each expert."""
    layer, slot = np.nonzero(placement.physical_to_logical != EMPTY)
    key = layer * placement.num_logical_experts + placement.physical_to_logical[layer, slot]
    size = placement.num_layers * placement.num_logical_experts
    return np.bincount(key, minlength=size).reshape(placement.num_layers, -1).astype(np.int32)


def _totals(report: Report) -> list[tuple[str, ...]]:
    """Lines of the table: what, how much, and the least it could be."""
    totals = report.totals
    in_bytes = totals.remote_bytes is not None

    def shown(name: str) -> str:
        number = getattr(totals, f"{name}_{'bytes' if in_bytes else 'rows'}")
        if number is None:
            return "—"
        return format_bytes(number) if in_bytes else plural(number, "row")

    lines: list[tuple[str, ...]] = [
        ("", "", "bound"),
        ("busiest sender", shown("busiest_sender"), shown("busiest_sender_bound")),
        ("between nodes", shown("cross_node"), shown("cross_node_bound")),
    ]
    kinds = ("unchanged", "local", "remote", "duplicate", "empty")
    lines += [(kind, shown(kind), "") for kind in kinds]
    if in_bytes:
        lines += [("other tensors", shown("other"), ""), ("whole output", shown("output"), "")]
    return lines


def _estimate(report: Report) -> list[tuple[str, ...]]:
    found = report.estimate
    if found is None:
        return []
    lines: list[tuple[str, ...]] = [("estimate", "")]
    for stage, seconds in found.seconds.items():
        lines.append((stage, "no rate given" if seconds is None else format_seconds(seconds)))
    lines += [
        ("bound by", found.bound_by or "—"),
        ("memory per worker", format_bytes(found.memory_bytes_per_worker)),
        ("disk space", format_bytes(found.disk_bytes)),
    ]
    return lines


def _table(lines: list[tuple[str, ...]]) -> str:
    rows = []
    for number, line in enumerate(lines):
        tag = "td" if number else "th"
        rows.append("<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in line) + "</tr>")
    return f"<table>{''.join(rows)}</table>" if rows else ""
