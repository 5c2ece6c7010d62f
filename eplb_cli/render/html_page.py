"""`plan --html`: the plan as one page that needs nothing but a browser.

The pictures are made with plotly, whose script is inside the page; a policy in its head forbids every
request. Words from files are escaped, and the pictures hold numbers and words from `html_figures` and
`html_balance` only.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from typing import TYPE_CHECKING

from eplb_cli import __version__
from eplb_cli.machine import has_package, missing_package
from eplb_cli.plan.moves import ReshardPlan
from eplb_cli.render.html_balance import draw_balance, draw_loads
from eplb_cli.render.html_figures import draw_layers, draw_ranks, draw_replicas, draw_traffic
from eplb_cli.render.html_text import PAGE, THEME
from eplb_cli.render.text import format_bytes, plural, printable
from eplb_cli.render.words import kinds, stages, summary
from eplb_cli.report.report import Report

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def require_plotly() -> None:
    """Refuse before anything is planned. Raises EP002."""
    if not has_package("plotly"):
        raise missing_package("plotly", "--html")


def html_page(
    plan: ReshardPlan, report: Report, names: tuple[str, str], command: Sequence[str] = ("eplb", "plan")
) -> str:
    """The page.

    Args:
        names: what OLD and NEW are called.
        command: the words of the command line that it is made by.
    """
    figures = {
        "traffic": draw_traffic(report),
        "ranks": draw_ranks(report),
        "layers": draw_layers(report),
        "replicas": draw_replicas(plan),
    }
    if report.load:
        figures |= {"balance": draw_balance(report.load), "loads": draw_loads(report.load)}
    ranks = f"{plan.old.num_ranks:,} → {plural(plan.new.num_ranks, 'rank')}"
    tables = {
        "summary": html_table(summary(report), "words"),
        "totals": html_table(kinds(report.totals), "numbers"),
        "estimate": html_table(_estimate(report), "numbers"),
    }
    title = f"eplb plan: {names[0]} → {names[1]}, {ranks}"
    return fill_page(title, tables, figures, report.warnings, command)


def fill_page(
    title: str,
    tables: Mapping[str, str],
    figures: Mapping[str, Figure],
    warnings: Iterable[str],
    command: Sequence[str],
) -> str:
    """The frame with its parts.

    Args:
        tables: as `html_table` makes them: "summary", "totals" and "estimate".
        figures: one below the other; their titles are their headings.
        command: the words of the command line that it is made by.
    """
    from plotly.offline import get_plotlyjs

    drawn = ",\n".join(f"{json.dumps(name)}: {figure.to_json()}" for name, figure in figures.items())
    parts = {
        **tables,
        "title": escape(title),
        "plotly": get_plotlyjs(),
        "warnings": "".join(f"<li>{escape(warning)}</li>" for warning in warnings),
        "sections": "".join(_section(name, figure) for name, figure in figures.items()),
        "figures": drawn.replace("</", "<\\/"),
        "theme": THEME,
        "footer": _footer(command),
    }
    return re.sub(r"\[\[(\w+)\]\]", lambda place: parts[place[1]], PAGE)


def _section(name: str, figure: Figure) -> str:
    title = escape(figure.layout.meta["title"])
    return f'<section><h2>{title}</h2><div id="{name}" role="img" aria-label="{title}"></div></section>\n'


def _estimate(report: Report) -> list[tuple[str, ...]]:
    found = report.estimate
    if found is None:
        return []
    lines: list[tuple[str, ...]] = [("estimate", ""), *stages(found)]
    lines += [
        ("bound by", found.bound_by or "—"),
        ("memory per worker", format_bytes(found.memory_bytes_per_worker)),
        ("disk space", format_bytes(found.disk_bytes)),
    ]
    return lines


def html_table(lines: Iterable[tuple[str, ...]], name: str) -> str:
    """A table of words or numbers; a first line that begins with nothing is its head."""
    rows = []
    for number, line in enumerate(lines):
        tag = "td" if number or line[0] else "th"
        rows.append("<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in line) + "</tr>")
    return f'<table class="{name}">{"".join(rows)}</table>' if rows else ""


def _footer(command: Sequence[str]) -> str:
    """What made the page, and when."""
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return f"<code>{escape(printable(shlex.join(command)))}</code><br>eplb {__version__}, {now}"
