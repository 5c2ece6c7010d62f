"""Bars: what each rank sends and receives, a character high, and the layers that move most."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from eplb_cli.render.page import heading, table
from eplb_cli.render.text import format_bytes, plural
from eplb_cli.report.report import LayerTraffic, Report

HEIGHTS = "·▁▂▃▄▅▆▇█"
ASCII_HEIGHTS = ".:-=+*%#@"

MAX_LAYERS = 5
"""Layers that are named; of fewer than two there is nothing to compare."""

_LABEL_WIDTH = 10
_BAR_WIDTH = 20


def show_rank_bars(console: Console, report: Report, *, block: int, of: str) -> None:
    """One line each for sent and received; a bar is a rank, or the sum of a block of them."""
    in_bytes = report.totals.remote_bytes is not None
    quantity = "bytes" if in_bytes else "rows"
    flows = {
        flow: _summed([getattr(rank, f"{flow}_{quantity}") for rank in report.ranks], block)
        for flow in ("sent", "received")
    }
    largest = max(map(max, flows.values()))
    width = next((w for w in (2, 1) if _LABEL_WIDTH + w * len(flows["sent"]) <= console.width), 0)
    if not width or not largest:
        return
    heights = ASCII_HEIGHTS if console.options.ascii_only else HEIGHTS
    top = format_bytes(largest) if in_bytes else plural(largest, "row")
    heading(console, f"{quantity} by {of}, a full bar is {top}")
    for flow, amounts in flows.items():
        bars = "".join(width * heights[_height(amount, largest, len(heights) - 1)] for amount in amounts)
        console.print(Text(f"{flow:<{_LABEL_WIDTH}}{bars}"))


def show_layers(console: Console, layers: Sequence[LayerTraffic]) -> None:
    """The layers with most from another rank, the first of them first."""
    in_bytes = all(layer.remote_bytes is not None for layer in layers)
    ordered = sorted(layers, key=lambda layer: (layer.remote_bytes or 0, layer.remote_rows), reverse=True)
    moving = [layer for layer in ordered if layer.remote_rows][:MAX_LAYERS]
    if len(moving) < 2:  # noqa: PLR2004 - see MAX_LAYERS
        return
    bar = "#" if console.options.ascii_only else "█"
    amounts = [layer.remote_bytes if in_bytes else layer.remote_rows for layer in moving]
    largest = max(amount or 0 for amount in amounts) or 1
    lines = []
    for layer, amount in zip(moving, amounts, strict=True):
        numbers = [format_bytes(layer.remote_bytes)] if in_bytes else []
        length = -(-(amount or 0) * _BAR_WIDTH // largest)
        lines.append((str(layer.layer), *numbers, f"{layer.remote_rows:,}", bar * length))
    names = ["layer", "bytes", "rows", ""] if in_bytes else ["layer", "rows", ""]
    heading(console, "layers that move most")
    console.print(table(names, lines, words=(len(names) - 1,)))


def _summed(amounts: Sequence[int | None], block: int) -> list[int]:
    return [
        sum(amount or 0 for amount in amounts[begin : begin + block])
        for begin in range(0, len(amounts), block)
    ]


def _height(amount: int, largest: int, levels: int) -> int:
    """From 1 for next to nothing to `levels` for the largest; 0 for nothing."""
    return -(-amount * levels // largest)
