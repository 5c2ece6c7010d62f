"""What one rank does with live tensors: parcels of the exchange, and rows copied on the rank."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from eplb_cli.arrays import Int
from eplb_cli.exchange.landing import landing
from eplb_cli.exchange.units import Units
from eplb_cli.exchange.wire import Parcels, Schedule, Wire, pair_by_cell, plan_wire, schedule_for
from eplb_cli.plan.moves import LOCAL, REMOTE, ReshardPlan
from eplb_cli.plan.pieces import Pieces, row_pieces

CHUNKS_PER_BUFFER = 4

MAX_LEVELS = 3
"""Steps of direct copies in a chunk. Each is a kernel of its own, and three of them reach six in seven of
the rows that stay on their rank; the rest goes through a buffer."""


@dataclass(frozen=True, eq=False)
class Direct:
    """Copies from row to row of one cell, as columns of shape (N,).

    Attributes:
        chunk: after whose gathering it is safe; -1 comes before all chunks, where the cell does not travel.
        level: copies of one level are independent of each other, and follow those of the level before.
        piece: what is copied.
        start: the first byte of a row that is.
        nbytes: how many are.
    """

    chunk: Int
    level: Int
    piece: Int
    start: Int
    nbytes: Int


@dataclass(frozen=True, eq=False)
class LivePlan:
    """What one rank does with live tensors: parcels of the exchange, and rows copied on the rank.

    Attributes:
        schedule: what it sends and receives, chunk by chunk.
        wire: what all ranks send.
        pieces: the moves of all ranks, cell by cell.
        own: what it sends to itself.
        direct: what goes from row to row without a buffer.
        repeated: (4, N) rows of the rank that repeat one that arrived: chunk, cell, from row, to row.
        source_row: (N,) per piece, the row of the rank that it comes from.
        target_row: (N,) per piece, the row of the rank that it goes to.
    """

    schedule: Schedule
    wire: Wire
    pieces: Pieces
    own: Parcels
    direct: Direct
    repeated: Int
    source_row: Int
    target_row: Int

    @property
    def units(self) -> Units:
        """Byte stripes of cells."""
        return self.wire.units

    @cached_property
    def landing(self) -> Int:
        """(N,) where each parcel that the rank sends lies in its receiver's buffer for the chunk."""
        return landing(self.wire, self.schedule)


def plan_live(
    plan: ReshardPlan,
    sizes: Int,
    rank: int,
    buffer_nbytes: int,
    *,
    in_place: bool = True,
    ramp: bool = False,
) -> LivePlan:
    """Cut a plan of live rows into chunks, and take the view of `rank`.

    Args:
        sizes: (L, K) bytes of a row.
        buffer_nbytes: all send and receive buffers of a rank.
        in_place: rows are overwritten where they are, and rows that repeat a received one are filled;
            otherwise the target is another set of tensors, which gets no repeated rows.
        ramp: the first chunks are smaller, and the last.
    """
    pieces = row_pieces(plan, sizes)
    source_row = plan.old.row_of_slot[pieces.source % plan.old.num_slots]
    target_row = plan.new.row_of_slot[pieces.destination % plan.new.num_slots]
    leads = pieces.leader == np.arange(len(pieces.leader))
    kind = plan.moves.kind[pieces.move]
    level = local_levels(plan, in_place=in_place)[pieces.move]
    travels = np.flatnonzero((kind == REMOTE) | ((kind == LOCAL) & (level < 0)))
    wire = plan_wire(
        travels,
        pieces.cell[travels],
        pieces.src_rank[travels],
        pieces.dst_rank[travels],
        pieces.cell_nbytes,
        plan.num_ranks,
        buffer_nbytes // CHUNKS_PER_BUFFER,
        ramp=ramp,
    )
    schedule = schedule_for(wire, rank)
    mine = pieces.dst_rank == rank
    return LivePlan(
        schedule,
        wire,
        pieces,
        schedule.receives.only(schedule.receives.peer == rank),
        _direct(wire.units, pieces, np.flatnonzero((kind == LOCAL) & (level >= 0) & mine), level),
        _repeated(wire.units, pieces, np.flatnonzero(~leads & mine), target_row)
        if in_place
        else np.zeros((4, 0), np.int64),
        source_row,
        target_row,
    )


def local_levels(plan: ReshardPlan, *, in_place: bool) -> Int:
    """(N,) when a LOCAL move can be made from row to row; -1 where it has to go through a buffer.

    A row may be overwritten once no other local move reads it: level 0 are moves to rows that none
    reads, level 1 those that level 0 has made free, and so on, up to `MAX_LEVELS`. Where only cycles are
    left, one move of each goes through a buffer, which frees the others. Rows that travel, to another
    rank or through a buffer, have been gathered before level 0.
    """
    moves = plan.moves
    local = np.flatnonzero(moves.kind == LOCAL)
    levels = np.full(len(moves), -1)
    if not in_place:
        levels[local] = 0
        return levels
    base = moves.layer[local] * plan.old.num_slots
    source, target = base + moves.src_slot[local], base + moves.dst_slot[local]
    readers = np.bincount(source, minlength=plan.old.physical_to_logical.size)
    group = moves.layer[local] * plan.num_ranks + plan.dst_rank[local]
    waiting = np.arange(len(local))
    level = 0
    while len(waiting) and level < MAX_LEVELS:
        ready = readers[target[waiting]] == 0
        if ready.any():
            levels[local[waiting[ready]]] = level
            level += 1
        else:
            ready[np.unique(group[waiting], return_index=True)[1]] = True
        np.subtract.at(readers, source[waiting[ready]], 1)
        waiting = waiting[~ready]
    return levels


def _direct(units: Units, pieces: Pieces, chosen: Int, level: Int) -> Direct:
    """Direct copies by unit, and as whole rows where a cell has no units."""
    cell = pieces.cell[chosen]
    unit, which = pair_by_cell(units.cell, cell)
    alone = chosen[~np.isin(cell, units.cell)]
    piece = np.r_[alone, chosen[which]]
    return Direct(
        np.r_[np.full(len(alone), -1), units.chunk[unit]],
        level[piece],
        piece,
        np.r_[np.zeros(len(alone), np.int64), units.start[unit]],
        np.r_[pieces.nbytes[alone], units.nbytes[unit]],
    )


def _repeated(units: Units, pieces: Pieces, followers: Int, target_row: Int) -> Int:
    """(4, N) chunk that completes the cell, cell, row that arrived, row that repeats it."""
    cell = pieces.cell[followers]
    last_unit = np.searchsorted(units.cell, cell, "right") - 1
    return np.stack(
        [units.chunk[last_unit], cell, target_row[pieces.leader[followers]], target_row[followers]]
    )
