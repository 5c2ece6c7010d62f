"""What `balance` prints: how evenly NEW spreads the load, what has to move for it, and the curve of the two.

::

    max / mean against bytes from another rank
    1.290 ●
          │
          │◆
          │  · ·
    1.000 │      ●· · · · · ●
          └──────────────────
          0                40 GB
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from rich.console import Console
from rich.text import Text

from eplb_cli.balance.curve import Point
from eplb_cli.render.balance import show_balances
from eplb_cli.render.page import heading, show_list, show_pairs, table
from eplb_cli.render.text import format_bytes, format_ratio, plural, printable
from eplb_cli.report.rebalance import Rebalance

_HEIGHT = 12
_WIDTH = 60
"""Characters of the picture, where there is room for as many; the labels are beside and below it."""

_MARKS = {"line": "·", "point": "●", "knee": "◆"}
_ASCII_MARKS = {"line": ".", "point": "o", "knee": "*"}


def show_rebalance(console: Console, found: Rebalance, *, picture: bool) -> None:
    """Print the whole page; `picture` adds the curve as one."""
    console.print(Text(_headline(found), style="bold", overflow="fold"))
    console.print()
    show_pairs(console, rebalance_summary(found))
    show_balances(console, found.load)
    if found.layers is not None:
        heading(console, "per layer")
        head, *lines = layer_lines(found)
        console.print(table(head, lines))
    if found.points:
        heading(console, "what balance costs")
        head, *lines = curve_lines(found)
        console.print(table(head, lines, words=(len(head) - 1,)))
    if picture and len(found.points) > 1:
        _show_curve(console, found)
    show_list(console, "warnings", found.warnings)


def _headline(found: Rebalance) -> str:
    ratios = " → ".join(format_ratio(each.imbalance.overall) for each in found.load.placements)
    return f"{printable(found.output)}: {plural(found.shape.num_ranks, 'rank')}, max / mean {ratios}"


def rebalance_summary(found: Rebalance) -> Iterator[tuple[str, str]]:
    """What NEW is, and what has to move for it."""
    shape = found.shape
    slots = f"{plural(shape.num_slots, 'slot')} a layer for {plural(shape.num_experts, 'expert')}"
    yield "slots", f"{slots}, {shape.num_slots // shape.num_ranks:,} a rank"
    kept = f"{plural(shape.num_groups, 'group')} on {plural(shape.num_nodes, 'node')}"
    yield "policy", f"{kept}, each whole" if shape.keeps_groups else "all ranks alike"
    if found.layers is not None:
        total = plural(shape.num_slots * len(found.layers), "row")
        rows = f"{found.remote_rows:,} of {total}"
        yield "between ranks", f"{format_bytes(found.remote_bytes)}, {rows}" if found.in_bytes else rows
    if found.max_moved_bytes is not None:
        yield "limit", format_bytes(found.max_moved_bytes)


def layer_lines(found: Rebalance) -> Iterator[tuple[str, ...]]:
    """The head and a line for each layer."""
    old, new = found.load.placements
    yield ("\nlayer", "OLD\nmax / mean", "NEW\nmax / mean", "NEW\nbound", "\nbytes", "\nrows")
    for row, layer in enumerate(found.layers or ()):
        ratios = (old.imbalance.max_over_mean, new.imbalance.max_over_mean, new.imbalance.bound)
        shown = (format_ratio(column[row]) for column in ratios)
        yield (str(layer.layer), *shown, format_bytes(layer.remote_bytes), f"{layer.remote_rows:,}")


def curve_lines(found: Rebalance) -> Iterator[tuple[str, ...]]:
    """The head and a line for each point; limits are what `--max-moved-bytes` takes."""
    in_bytes = found.in_bytes
    yield ("limit", "moves", "rows", "max / mean", "") if in_bytes else ("rows", "max / mean", "")
    for point in found.points:
        sizes = (format_bytes(point.limit), format_bytes(point.moved)) if in_bytes else ()
        yield (*sizes, f"{point.rows:,}", format_ratio(point.overall), "knee" if point.is_knee else "")


def _show_curve(console: Console, found: Rebalance) -> None:
    """Points and the lines between them."""
    points = found.points
    marks, axes = (_ASCII_MARKS, "|+-") if console.options.ascii_only else (_MARKS, "│└─")
    amount = format_bytes if found.in_bytes else "{:,} rows".format
    top, bottom = (format_ratio(point.overall) for point in (points[0], points[-1]))
    margin = max(len(top), len(bottom))
    first, last = amount(points[0].moved), amount(points[-1].moved)
    width = max(min(_WIDTH, console.width - margin - 2), len(first) + len(last) + 1)
    heading(console, "max / mean against what comes from another rank")
    for number, line in enumerate(_grid(points, marks, width)):
        label = {0: top, _HEIGHT - 1: bottom}.get(number, "")
        console.print(Text(f"{label:>{margin}} {axes[0]}{line}"))
    console.print(Text(f"{'':>{margin}} {axes[1]}{axes[2] * width}"))
    console.print(Text(f"{'':>{margin}}  {first}{last:>{width - len(first)}}"))


def _grid(points: Sequence[Point], marks: dict[str, str], width: int) -> list[str]:
    """Lines from the top of the picture to its bottom."""
    cells = np.full((_HEIGHT, width), " ")
    moved, overall = (np.array([getattr(point, name) for point in points]) for name in ("moved", "overall"))
    wide, low, high = np.ptp(moved) or 1, overall.min(), np.ptp(overall) or 1.0

    def place(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        column = np.rint((x - moved[0]) / wide * (width - 1)).astype(int)
        return np.rint((1 - (y - low) / high) * (_HEIGHT - 1)).astype(int), column

    along = np.linspace(moved[0], moved[-1], width)
    cells[place(along, np.interp(along, moved, overall))] = marks["line"]
    cells[place(moved, overall)] = marks["point"]
    knees = np.array([point.is_knee for point in points])
    cells[place(moved[knees], overall[knees])] = marks["knee"]
    return ["".join(line) for line in cells]
