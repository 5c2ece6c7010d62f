"""Units and chunks: in what byte stripes rows travel, and how many of these at once.

Whatever one worker fills or drains in a chunk fits into one of its buffers. With a ramp the first chunks
grow and the last ones shrink, since nothing travels while the first is filled and the last is drained:

    8 chunks   ████ ████ ████ ████ ████ ████ ████ ████
    a ramp     ██ ████ ████ ████ ████ ████ ████ ████ ██
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from eplb_cli.arrays import Int
from eplb_cli.values import dataclass

STRIPE_ALIGNMENT = 512
"""Stripes wider than this start at a multiple of it."""

PART_ALIGNMENT = 16
"""The part of a message that belongs to one unit starts at a multiple of this, so that rows of live
tensors are gathered and scattered in wide words, whatever was packed before them."""

FIRST_OF_RAMP = 2
"""The first and the last chunk of a ramp hold this part of a chunk; each further one twice as much."""


class Ramp(NamedTuple):
    """Whether the first chunks grow, and whether the last ones shrink."""

    up: bool = False
    down: bool = False


NO_RAMP = Ramp()
BOTH_ENDS = Ramp(up=True, down=True)


@dataclass(frozen=True, eq=False)
class Units:
    """Columns of shape (U,) in the order of the wire.

    Attributes:
        cell: a (layer, tensor), as one number.
        start, nbytes: the byte columns of its rows.
        chunk: what they travel in.
    """

    cell: Int
    start: Int
    nbytes: Int
    chunk: Int

    @property
    def num_chunks(self) -> int:
        """Number of chunks."""
        return int(self.chunk[-1]) + 1 if len(self.chunk) else 0


def part_room(nbytes: Int) -> Int:
    """(N,) the bytes that parts of so many bytes take in a message."""
    return -(-nbytes // PART_ALIGNMENT) * PART_ALIGNMENT


def plan_units(load: Int, cell_nbytes: Int, num_workers: int, chunk_nbytes: int, ramp: Ramp) -> Units:
    """Cut rows into units, and runs of units into chunks.

    Args:
        load: (C, 2 W) rows that each worker fills, then rows that each worker drains, per cell.
        cell_nbytes: (C,) bytes of a row.
        chunk_nbytes: what a worker may at most fill, and at most drain, in a chunk.
        ramp: where chunks are smaller.
    """
    padding = np.minimum(load, num_workers) * (PART_ALIGNMENT - 1)
    most_rows = load.max(axis=1)
    units = _cut_stripes(cell_nbytes, most_rows, chunk_nbytes - padding.max(axis=1))
    first = max(chunk_nbytes // FIRST_OF_RAMP, 1) if any(ramp) else chunk_nbytes
    if first < chunk_nbytes and len(units.cell):
        units = _narrowed(units, most_rows[units.cell], padding.max(axis=1)[units.cell], first, ramp)
    per_unit = load[units.cell] * units.nbytes[:, None] + padding[units.cell]
    return replace(units, chunk=_cut_chunks(per_unit, chunk_nbytes, first, ramp))


def _cut_stripes(cell_nbytes: Int, most_rows: Int, room: Int) -> Units:
    """Units in which no worker fills or drains more than a chunk, for cells in which rows travel.

    Args:
        most_rows: (C,) the most rows that one worker fills or drains.
        room: (C,) bytes that a chunk has for them.
    """
    cell = np.flatnonzero((cell_nbytes > 0) & (most_rows > 0))
    width = np.maximum(room[cell] // most_rows[cell], 1)
    width = np.where(width > STRIPE_ALIGNMENT, width // STRIPE_ALIGNMENT * STRIPE_ALIGNMENT, width)
    return _striped(cell, np.zeros_like(cell), cell_nbytes[cell], width)


def _narrowed(units: Units, most_rows: Int, padding: Int, first: int, ramp: Ramp) -> Units:
    """The same with narrower stripes in what travels first or last.

    Args:
        most_rows, padding: (U,) the most that one worker fills or drains.
    """
    most_bytes = most_rows * units.nbytes
    end = np.cumsum(most_bytes)
    behind = end - most_bytes if ramp.up else end[-1]
    ahead = end[-1] - end if ramp.down else end[-1]
    room = np.minimum(behind, ahead) + first - padding
    widest = np.maximum(room // most_rows // STRIPE_ALIGNMENT, 1) * STRIPE_ALIGNMENT
    even = -(-units.nbytes // -(-units.nbytes // widest))
    width = -(-even // STRIPE_ALIGNMENT) * STRIPE_ALIGNMENT
    return _striped(units.cell, units.start, units.nbytes, width)


def _cut_chunks(per_unit: Int, chunk_nbytes: int, first: int, ramp: Ramp) -> Int:
    """(U,) the chunk of each unit: greedily, while the largest of the columns of `per_unit` fits.

    In 1, 1, 2, 4, 8, .. each number is the sum of those before it. So a chunk may hold as much as went
    before it, or comes after it, and the `first` of a ramp more.
    """
    end = np.cumsum(per_unit.T, axis=1)
    begin = end - per_unit.T
    busiest = end[:, -1:].sum(axis=1).argmax()
    behind, ahead = begin[busiest], np.maximum((end[busiest, -1:] - begin[busiest] - first) // 2, 0)
    limit = np.full(len(per_unit), chunk_nbytes)
    for is_asked, nbytes in zip(ramp, (behind, ahead), strict=True):
        limit = np.minimum(limit, nbytes + first) if is_asked else limit
    fits = [
        np.searchsorted(column, before + limit, "right") for column, before in zip(end, begin, strict=True)
    ]
    following = np.maximum(np.min(fits, axis=0), np.arange(len(limit)) + 1).tolist()
    starts, unit = np.zeros(len(limit), np.int64), 0
    while unit < len(limit):
        starts[unit] = 1
        unit = following[unit]
    return np.cumsum(starts) - 1


def _striped(cell: Int, start: Int, nbytes: Int, width: Int) -> Units:
    """Units of at most `width` bytes, all still in chunk 0."""
    stripes = -(-nbytes // width)
    whole = np.repeat(np.arange(len(cell)), stripes)
    within = (np.arange(len(whole)) - np.repeat(np.cumsum(stripes) - stripes, stripes)) * width[whole]
    return Units(
        cell[whole],
        start[whole] + within,
        np.minimum(width[whole], nbytes[whole] - within),
        np.zeros_like(within),
    )
