"""`balance --html`: what NEW is worth and what it costs, as one page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from eplb_cli.render.html_balance import draw_balance, draw_loads
from eplb_cli.render.html_figures import COLOURS, TOOLBAR, new_figure
from eplb_cli.render.html_page import fill_page, html_table
from eplb_cli.render.rebalance_page import curve_lines, layer_lines, rebalance_summary
from eplb_cli.render.text import plural
from eplb_cli.report.rebalance import Rebalance

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def rebalance_html(found: Rebalance, command: Sequence[str]) -> str:
    """The page.

    Args:
        command: the words of the command line that it is made by.
    """
    figures = {"balance": draw_balance(found.load)}
    if found.points:
        figures = {"curve": _draw_curve(found), **figures}
    if found.layers is not None:
        figures["loads"] = draw_loads(found.load)
    tables = {
        "summary": html_table(rebalance_summary(found), "words"),
        "totals": html_table(curve_lines(found), "numbers") if found.points else "",
        "estimate": html_table(layer_lines(found), "numbers") if found.layers is not None else "",
    }
    title = f"eplb balance: {found.output}, {plural(found.shape.num_ranks, 'rank')}"
    return fill_page(title, tables, figures, found.warnings, command)


def _draw_curve(found: Rebalance) -> Figure:
    """Balance against what has to move, the knee as a larger point."""
    from plotly.graph_objects import Scatter

    unit = "B" if found.in_bytes else " rows"
    knees = [point.is_knee for point in found.points]
    trace = Scatter(
        x=[point.moved for point in found.points],
        y=[point.overall for point in found.points],
        mode="lines+markers+text",
        text=["knee" if is_knee else "" for is_knee in knees],
        textposition="top right",
        line={"color": COLOURS[0], "width": 2},
        marker={"size": [14 if is_knee else 7 for is_knee in knees], "color": COLOURS[0]},
        hovertemplate=f"%{{x:.3s}}{unit}: max / mean %{{y:.4f}}<extra></extra>",
    )
    figure = new_figure(
        "Max / mean against what comes from another rank",
        [trace],
        "bytes" if found.in_bytes else "rows",
        "max / mean",
    )
    figure.update_layout(margin={"t": TOOLBAR})
    figure.update_xaxes(tickformat="~s", rangemode="tozero")
    return figure
