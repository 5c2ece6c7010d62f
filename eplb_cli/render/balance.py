"""Placements under a load: in numbers, and as bars that can be compared with each other.

::

                        worst         its    its   at
         max / mean  bound  layer  max / mean  bound  rank
    ──────────────────────────────────────────────────────
    OLD       1.057  1.000      3       1.200  1.000     1
    NEW       1.343  1.143      3       1.400  1.000     0

    max / mean by layer; nothing is 1, a full bar is 1.400
    OLD    ▄▄··
    bound  ····
    NEW    ██▇▇
    bound  ··▄▄

    load of each rank in the worst layer; a full bar is 1.400 times the mean
    OLD 3  ▅▅▇▇
    NEW 3  ██▄▄
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from eplb_cli.render.bars import ASCII_HEIGHTS, HEIGHTS
from eplb_cli.render.page import heading, show_list, table
from eplb_cli.render.text import format_ratio, printable

if TYPE_CHECKING:
    from eplb_cli.report.balance import Balance, Balances

LEAST_SCALE = 0.1
"""Above 1, of bars by layer: with a smaller one next to nothing would look like much."""

_MAX_LABEL = 24
"""Characters of a name beside bars."""

Line = tuple[str, NDArray[np.float64]]


def show_balances(console: Console, found: Balances) -> None:
    """Print the numbers of all placements, then their layers, then the ranks of each one's worst layer."""
    if not found.placements:
        return
    heading(console, f"load of ranks, by {printable(found.path)}")
    console.print(_table(found))
    _show_layers(console, found)
    _show_ranks(console, found)
    show_list(console, "notes on the load", found.notes)


def _table(found: Balances) -> Table:
    names = ["", "\nmax / mean", "\nbound", "worst\nlayer", "its\nmax / mean", "its\nbound", "at\nrank"]
    return table(names, map(_row, found.placements))


def _row(balance: Balance) -> tuple[str, ...]:
    imbalance, worst = balance.imbalance, balance.imbalance.worst_layer
    return (
        printable(balance.name),
        format_ratio(imbalance.overall),
        format_ratio(imbalance.overall_bound),
        str(balance.worst_layer),
        format_ratio(imbalance.max_over_mean[worst]),
        format_ratio(imbalance.bound[worst]),
        str(imbalance.busiest_rank[worst]),
    )


def _show_layers(console: Console, found: Balances) -> None:
    """A bar for each layer, from 1 up."""
    lines: list[Line] = []
    for balance in found.placements:
        lines.append((balance.name, balance.imbalance.max_over_mean - 1))
        lines.append(("bound", balance.imbalance.bound - 1))
    largest = max(LEAST_SCALE, *(float(heights.max()) for _, heights in lines))
    scale = f"nothing is 1, a full bar is {format_ratio(1 + largest)}"
    _show_bars(console, f"max / mean by layer; {scale}", lines, largest, "layers")


def _show_ranks(console: Console, found: Balances) -> None:
    """A bar for each rank, in the layer where the busiest one is furthest above the mean."""
    lines: list[Line] = []
    for balance in found.placements:
        loads = balance.imbalance.rank_load[balance.imbalance.worst_layer]
        lines.append((f"{balance.name} {balance.worst_layer}", loads / (loads.mean() or 1)))
    largest = max(float(heights.max()) for _, heights in lines)
    title = f"load of each rank in the worst layer; a full bar is {format_ratio(largest)} times the mean"
    _show_bars(console, title, lines, largest, "ranks")


def _show_bars(console: Console, title: str, lines: list[Line], largest: float, of: str) -> None:
    """A line for each placement; where not all bars fit, each is the highest of some that are neighbours."""
    label_width = max(len(_label(name)) for name, _ in lines) + 2
    room, most = console.width - label_width, max(len(heights) for _, heights in lines)
    fold, width = -(-most // room), 2 if 2 * most <= room else 1
    glyphs = ASCII_HEIGHTS if console.options.ascii_only else HEIGHTS
    heading(console, title if fold == 1 else f"{title}; each is the highest of {fold} {of}")
    for name, heights in lines:
        bars = "".join(width * glyph for glyph in _bars(heights, largest, fold, glyphs))
        console.print(Text(f"{_label(name):<{label_width}}{bars}"))


def _bars(heights: NDArray[np.float64], largest: float, fold: int, glyphs: str) -> Iterator[str]:
    """From the first glyph for nothing that is shown as a number to the last for the largest."""
    folded = np.maximum.reduceat(heights, np.arange(0, len(heights), fold))
    levels = np.ceil(folded / max(largest, 1e-9) * (len(glyphs) - 1) - 1e-9)
    return (glyphs[int(level)] for level in levels)


def _label(name: str) -> str:
    """A name, or the end of it, by which files differ."""
    shown = printable(name)
    return shown if len(shown) <= _MAX_LABEL else f"…{shown[1 - _MAX_LABEL :]}"
