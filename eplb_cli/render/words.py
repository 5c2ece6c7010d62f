"""What the numbers of a report are called and mean, on a terminal and on a page for a browser alike."""

from __future__ import annotations

from collections.abc import Iterator

from eplb_cli.render.text import (
    format_bytes,
    format_ratio,
    format_seconds,
    format_share,
    plural,
    printable,
)
from eplb_cli.report.report import Estimate, Relabelled, Report, Totals

NO_NODES = "unknown, no --ranks-per-node"
"""What stands for what goes between nodes where nobody says which ranks are on one."""

KINDS = {
    "unchanged": "same rank, same row",
    "local": "same rank, another row",
    "remote": "from another rank",
    "duplicate": "copied from a row that arrived",
    "empty": "no expert in NEW",
}
"""The kinds of moves, in the order of a report."""


def num_rows(totals: Totals) -> int:
    """All slots of NEW, over all layers."""
    return sum(getattr(totals, f"{kind}_rows") for kind in KINDS)


def summary(report: Report) -> Iterator[tuple[str, str]]:
    """What decides whether and when a plan is carried out: bytes between ranks, of one of them, and time."""
    totals = report.totals
    rows = f"{totals.remote_rows:,} of {plural(num_rows(totals), 'row')}"
    if totals.remote_bytes is None:
        yield "between ranks", rows
    else:
        yield "between ranks", f"{format_bytes(totals.remote_bytes)}, {rows}"
    yield "busiest sender", _against_bound(totals, "busiest_sender")
    has_nodes = report.ranks_per_node is not None or report.has_uneven_nodes
    yield "between nodes", _against_bound(totals, "cross_node") if has_nodes else NO_NODES
    if report.relabelled:
        yield "relabelled", _relabelled(report.relabelled, totals)
    if totals.remote_bytes is None:
        yield "bytes", "unknown: give `--checkpoint`, `--model` or `--expert-bytes`"
    if report.load:
        old, new = (balance.imbalance for balance in report.load.placements)
        ratios = f"{format_ratio(old.overall)} before, {format_ratio(new.overall)} after"
        yield "max / mean load", f"{ratios}, bound {format_ratio(new.overall_bound)}"
    if report.run:
        yield "time", format_seconds(report.run.seconds["total"])
    elif report.estimate and report.estimate.seconds["total"] is not None:
        yield "time", f"{format_seconds(report.estimate.seconds['total'])} at the given rates"


def kinds(totals: Totals) -> Iterator[tuple[str, ...]]:
    """The header and a line per kind of move; where sizes are known also bytes, other tensors, the output."""
    in_bytes = totals.remote_bytes is not None
    yield ("", "bytes", "rows", "share", "") if in_bytes else ("", "rows", "share", "")
    for kind, meaning in KINDS.items():
        rows = getattr(totals, f"{kind}_rows")
        nbytes = [format_bytes(getattr(totals, f"{kind}_bytes"))] if in_bytes else []
        yield (kind, *nbytes, f"{rows:,}", format_share(rows, num_rows(totals)), meaning)
    if in_bytes:
        yield ("other tensors", format_bytes(totals.other_bytes), "", "", "of all ranks")
        yield ("whole output", format_bytes(totals.output_bytes), "", "", "all shard files")


def stages(estimate: Estimate) -> Iterator[tuple[str, str]]:
    """How long each stage of a run takes at given rates."""
    for stage, seconds in estimate.seconds.items():
        yield stage, "no rate given" if seconds is None else format_seconds(seconds)


def _relabelled(done: Relabelled, totals: Totals) -> str:
    """`ranks and rows; 20% less between ranks than 17.0 GB; unchanged 5,728 rows instead of 87; ...`."""
    in_bytes = totals.remote_bytes is not None
    before, after = (getattr(of, f"remote_{'bytes' if in_bytes else 'rows'}") for of in (done.before, totals))
    said = ["ranks and rows" if done.how == "ranks" else "rows"]
    if after < before:
        amount = format_bytes(before) if in_bytes else plural(before, "row")
        said.append(f"{format_share(before - after, before)} less between ranks than {amount}")
    said.append(f"unchanged {totals.unchanged_rows:,} rows instead of {done.before.unchanged_rows:,}")
    if done.output is not None:
        said.append(f"shards go with {printable(done.output)}, and not with NEW as it was")
    return "; ".join(said)


def _against_bound(totals: Totals, name: str) -> str:
    """`29.6 GB, bound 29.5 GB, 0.11% above it`: no choice of senders could do better than the bound."""
    in_bytes = totals.remote_bytes is not None
    quantity = "bytes" if in_bytes else "rows"
    amount, bound = (getattr(totals, f"{key}_{quantity}") for key in (name, f"{name}_bound"))

    def shown(number: int) -> str:
        return format_bytes(number) if in_bytes else plural(number, "row")

    beside = "" if bound is None else f", bound {shown(bound)}"
    return shown(amount) + beside + _gap(amount, bound)


def _gap(amount: int | None, bound: int | None) -> str:
    """How far above its bound something is, where it is."""
    if not bound or amount is None or amount <= bound:
        return ""
    return f", {100 * (amount / bound - 1):.2g}% above it"
