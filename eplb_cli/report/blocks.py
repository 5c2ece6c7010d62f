"""Ranks taken together where there are too many of them to show."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

from eplb_cli.report.report import Report

DEFAULT_NODE = 8
"""Ranks of a block where nothing says what a node is."""


def block_of(report: Report, fits: Callable[[int], bool]) -> int:
    """Ranks to take together so that as many blocks as that makes fit: one, a node, or some nodes.

    A node is of `DEFAULT_NODE` ranks where nothing says.
    """
    block = report.block
    while not fits(-(-len(report.ranks) // block)):
        block = max(2, report.ranks_per_node or DEFAULT_NODE) if block == 1 else 2 * block
    return block


def name_of_block(report: Report, block: int) -> str:
    """`rank`, `node of 8 ranks` or `block of 16 ranks`."""
    if block == 1:
        return "rank"
    return f"{'node' if block == report.ranks_per_node else 'block'} of {block} ranks"


def traffic_of_blocks(report: Report, block: int) -> dict[tuple[int, int], int]:
    """Bytes, or rows where sizes are unknown, by (old, new) block of so many ranks."""
    fold = block // report.block
    amounts: dict[tuple[int, int], int] = defaultdict(int)
    for old, new, nbytes, rows in report.traffic:
        amounts[old // fold, new // fold] += rows if nbytes is None else nbytes
    return amounts
