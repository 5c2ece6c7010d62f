"""What balance costs in bytes: the best that a limit allows, and the curve of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import floor, log10

import numpy as np

from eplb_cli.arrays import Int
from eplb_cli.balance.replicas import Float
from eplb_cli.balance.way import Way
from eplb_cli.errors import UsageError
from eplb_cli.values import dataclass

SHARES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75)
"""Limits of the curve, of what the best balance moves; that itself is the last point."""


@dataclass(frozen=True)
class Point:
    """What can be had for a limit.

    Attributes:
        limit: most that may come from other ranks, in bytes, or in rows where sizes are not known.
        moved: what does come, likewise.
        rows: experts that come, over all layers.
        overall: the sum over layers of the busiest rank's load, over the sum of means.
        is_knee: beyond it, balance costs more than it did so far.
    """

    limit: int
    moved: int
    rows: int
    overall: float
    is_knee: bool = False


def within(way: Way, row_nbytes: Int, limit: int) -> Int:
    """(L,) how far to go in each layer for the best balance that moves no more than `limit` in all.

    From where each layer begins, again and again the steps of one layer that spare busiest ranks most for
    each byte. Nothing that fits is left out at the end.

    Args:
        row_nbytes: (L,) bytes of an expert.

    Raises:
        UsageError: EP001, with what has to be moved in any case.
    """
    nbytes = way.rows * row_nbytes
    layers = np.arange(nbytes.shape[1])
    if nbytes[way.best, layers].sum() <= limit:
        return way.best
    step = np.zeros(len(layers), np.int64)
    if (least := int(nbytes[0].sum())) > limit:
        problem = (
            f"--max-moved-bytes is {limit:,}, and NEW has ranks or slots for which {least:,} bytes "
            "have to move"
        )
        raise UsageError("EP001", problem, "raise it, or ask for the ranks and slots that OLD has")
    while True:
        spared = way.worst[step, layers] - way.worst
        further = nbytes - nbytes[step, layers]
        fits = (spared > 0) & (further <= limit - nbytes[step, layers].sum())
        if not fits.any():
            return step
        worth = np.where(fits, spared / np.maximum(further, 0.5), -1.0)
        to, layer = np.unravel_index(int(worth.argmax()), worth.shape)
        step[layer] = to


def curve(way: Way, row_nbytes: Int, mean: Float) -> list[Point]:
    """Points from what has to be moved in any case, mostly nothing, to the best balance, and the knee marked.

    Args:
        row_nbytes: (L,) bytes of an expert; ones where sizes are not known.
        mean: (L,) mean load of ranks.
    """
    layers = np.arange(len(mean))

    def point(limit: int, step: Int) -> Point:
        rows = way.rows[step, layers]
        total = mean.sum()
        overall = float(way.worst[step, layers].sum() / total) if total > 0 else 1.0
        return Point(limit, int((rows * row_nbytes).sum()), int(rows.sum()), overall)

    last = point(0, way.best)
    least = point(0, np.zeros_like(way.best)).moved
    between = [_short(least + share * (last.moved - least)) for share in SHARES]
    points: list[Point] = []
    for limit in sorted({limit for limit in (least, *between) if least <= limit < last.moved}):
        found = point(limit, within(way, row_nbytes, limit))
        if not points or found.moved > points[-1].moved:
            points.append(found)
    points.append(replace(last, limit=last.moved))
    marked = knee(points)
    return [replace(each, is_knee=number == marked) for number, each in enumerate(points)]


def knee(points: Sequence[Point]) -> int | None:
    """Which point is farthest below the straight line from the first to the last; None where all are on it.

    Both axes go from 0 to 1, as in V. Satopää, J. Albrecht, D. Irwin and B. Raghavan, "Finding a 'kneedle' in
    a haystack", ICDCS workshops 2011.
    """
    moved, overall = (np.array([getattr(point, name) for point in points]) for name in ("moved", "overall"))
    wide, high = moved[-1] - moved[0], overall[0] - overall[-1]
    if wide <= 0 or high <= 0:
        return None
    below = (overall[0] - overall) / high - (moved - moved[0]) / wide
    return int(below.argmax()) if below.max() > 0 else None


def _short(amount: float) -> int:
    """With two digits and zeros behind them, as it can be typed again."""
    unit = 10 ** max(floor(log10(amount)) - 1, 0) if amount >= 1 else 1
    return round(amount / unit) * unit
