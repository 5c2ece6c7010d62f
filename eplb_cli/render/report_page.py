"""What `plan` and `reshard` print: what each rank sends and gets, who sends to whom, and the totals."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from eplb_cli.render.balance import show_balances
from eplb_cli.render.bars import show_layers
from eplb_cli.render.heat_map import show_traffic
from eplb_cli.render.page import fits, heading, show_list, show_pairs, table
from eplb_cli.render.run_page import show_run
from eplb_cli.render.text import format_bytes, format_seconds, plural, printable
from eplb_cli.render.words import kinds, num_rows, stages, summary
from eplb_cli.report.report import Estimate, RankTraffic, Report

MAX_RANKS = 64
"""Ranks that are all listed; of more, only the `BUSIEST_RANKS` are, unless all are asked for."""

BUSIEST_RANKS = 16


def show_report(console: Console, report: Report, *, full: bool) -> None:
    """Print the whole page: what matters most first, then the details that it is made of."""
    console.print(Text(_headline(report), style="bold", overflow="fold"))
    console.print()
    show_pairs(console, summary(report))
    _show_ranks(console, report, full=full)
    show_traffic(console, report)
    show_layers(console, report.layers)
    if report.load:
        show_balances(console, report.load)
    _show_totals(console, report)
    if report.estimate:
        _show_estimate(console, report.estimate)
    if report.run:
        show_run(console, report.run)
    misread = report.run.misread if report.run else []
    show_list(console, "warnings", [warning for warning in report.warnings if warning not in misread])
    show_list(console, "misread without an error", misread, "bold red")


def _headline(report: Report) -> str:
    ranks, run = plural(len(report.ranks), "rank"), report.run
    if run is None:
        rows = plural(num_rows(report.totals), "row")
        return f"plan for {ranks}: {report.totals.remote_rows:,} of {rows} come from another rank"
    workers, seconds = plural(run.num_workers, "worker"), format_seconds(run.seconds["total"])
    return f"resharded {ranks} with {run.backend}, {workers}, in {seconds}: {printable(run.output)}"


def _show_ranks(console: Console, report: Report, *, full: bool) -> None:
    """One table with bytes and rows side by side, or a table of each where that is too wide."""
    ranks = report.ranks if full or len(report.ranks) <= MAX_RANKS else _busiest(report.ranks)
    hidden = len(report.ranks) - len(ranks)
    title = f"the {len(ranks)} busiest ranks" if hidden else "per rank"
    quantities = ["rows"] if report.totals.remote_bytes is None else ["bytes", "rows"]
    tables = {title: _rank_table(ranks, quantities)}
    if not fits(console, tables[title]):
        tables = {f"{title}, {quantity}": _rank_table(ranks, [quantity]) for quantity in quantities}
    for name, part in tables.items():
        heading(console, name)
        console.print(part)
    if hidden:
        how = "`--format json`" if report.run else "`--full` or `--format json`"
        console.print(f"… {plural(hidden, 'more rank')}: {how}")


def _busiest(ranks: Sequence[RankTraffic]) -> list[RankTraffic]:
    """Those that send or receive most, the first of them first."""

    def traffic(rank: RankTraffic) -> int:
        if rank.sent_bytes is None or rank.received_bytes is None:
            return max(rank.sent_rows, rank.received_rows)
        return max(rank.sent_bytes, rank.received_bytes)

    return sorted(ranks, key=traffic, reverse=True)[:BUSIEST_RANKS]


def _rank_table(ranks: Sequence[RankTraffic], quantities: Sequence[str]) -> Table:
    flows = ["sent", "received", "local", "unchanged"]
    if any(rank.duplicate_rows for rank in ranks):
        flows.insert(3, "duplicate")
    columns = [["\nrank", *(str(rank.rank) for rank in ranks)]]
    columns += [_flow_column(ranks, flow, quantities) for flow in flows]
    headers, *rows = zip(*columns, strict=True)
    return table(headers, rows, words=())


def _flow_column(ranks: Sequence[RankTraffic], flow: str, quantities: Sequence[str]) -> list[str]:
    """The header and the cells of one column; a cell is one number per quantity, aligned over all ranks."""
    columns = []
    for quantity in quantities:
        amounts = [getattr(rank, f"{flow}_{quantity}") for rank in ranks]
        numbers = [format_bytes(n) if quantity == "bytes" else f"{n:,}" for n in amounts]
        width = max(map(len, (quantity, *numbers)))
        columns.append([f"{cell:>{width}}" for cell in (quantity, *numbers)])
    labels, *cells = (" ".join(parts) for parts in zip(*columns, strict=True))
    return [f"{flow}\n{labels}", *cells]


def _show_totals(console: Console, report: Report) -> None:
    heading(console, "what becomes of all rows")
    headers, *lines = kinds(report.totals)
    console.print(table(headers, lines, words=(0, len(headers) - 1)))


def _show_estimate(console: Console, estimate: Estimate) -> None:
    heading(console, "estimate")
    console.print(table(["", "time"], stages(estimate)))
    console.print()
    if estimate.bound_by:
        console.print(f"bound by {estimate.bound_by}")
    console.print(f"memory per worker {format_bytes(estimate.memory_bytes_per_worker)}")
    console.print(f"disk space {format_bytes(estimate.disk_bytes)}")
