"""What one rank does with live tensors: parcels of the exchange, and rows copied on the rank."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from eplb_cli.arrays import Int, begins, runs
from eplb_cli.exchange.landing import landing
from eplb_cli.exchange.units import BOTH_ENDS, Ramp, Units
from eplb_cli.exchange.wire import Parcels, Schedule, Wire, pair_by_group, plan_wire, schedule_for
from eplb_cli.plan.moves import DUPLICATE, LOCAL, REMOTE, ReshardPlan
from eplb_cli.plan.pieces import leading_move
from eplb_cli.values import dataclass

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
        piece: the move that is made.
        cell: in which (layer, tensor), as one number.
        start: the first byte of a row that is copied.
        nbytes: how many are.
    """

    chunk: Int
    level: Int
    piece: Int
    cell: Int
    start: Int
    nbytes: Int


@dataclass(frozen=True, eq=False)
class LivePlan:
    """What one rank does with live tensors: parcels of the exchange, and rows copied on the rank.

    Attributes:
        schedule: what it sends and receives, chunk by chunk; a piece is a move, in every tensor of its layer.
        wire: what all ranks send.
        cell_nbytes: (C,) bytes of a row of each (layer, tensor).
        own: what it sends to itself.
        direct: what goes from row to row without a buffer.
        repeated: (4, N) rows of the rank that repeat one that arrived: chunk, cell, from row, to row.
        source_row: (N,) per move, the row of the rank that it comes from.
        target_row: (N,) per move, the row of the rank that it goes to.
    """

    schedule: Schedule
    wire: Wire
    cell_nbytes: Int
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
    ramp: Ramp = BOTH_ENDS,
) -> LivePlan:
    """Cut a plan of live rows into chunks, and take the view of `rank`.

    Args:
        sizes: (L, K) bytes of a row.
        buffer_nbytes: all send and receive buffers of a rank.
        in_place: rows are overwritten where they are, and rows that repeat a received one are filled;
            otherwise the target is another set of tensors, which gets no repeated rows.
        ramp: where chunks are smaller: at an end of what moves without a pause.
    """
    moves = plan.moves
    level = local_levels(plan, in_place=in_place)
    is_local = moves.kind == LOCAL
    travels = np.flatnonzero((moves.kind == REMOTE) | (is_local & (level < 0)))
    wire = plan_wire(
        travels,
        moves.layer[travels],
        plan.src_rank[travels],
        plan.dst_rank[travels],
        sizes,
        plan.num_ranks,
        buffer_nbytes // CHUNKS_PER_BUFFER,
        ramp=ramp,
    )
    schedule = schedule_for(wire, rank)
    mine = plan.dst_rank == rank
    direct = np.flatnonzero(is_local & mine & (level >= 0))
    target_row = plan.new.row_of_slot[moves.dst_slot]
    return LivePlan(
        schedule,
        wire,
        sizes.ravel(),
        schedule.receives.only(schedule.receives.peer == rank),
        _direct(wire, sizes, direct, moves.layer[direct], level[direct]),
        _repeated(wire, plan, np.flatnonzero((moves.kind == DUPLICATE) & mine), target_row)
        if in_place
        else np.zeros((4, 0), np.int64),
        plan.old.row_of_slot[moves.src_slot],
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
    level = 0
    while len(local) and level < MAX_LEVELS:
        is_ready = readers[target] == 0
        if is_ready.any():
            levels[local.compress(is_ready)] = level
            level += 1
        else:
            is_ready = begins(moves.layer[local]) | begins(plan.dst_rank[local])
        np.subtract.at(readers, source.compress(is_ready), 1)
        local, source, target = (column.compress(~is_ready) for column in (local, source, target))
    return levels


def _direct(wire: Wire, sizes: Int, piece: Int, layer: Int, level: Int) -> Direct:
    """Direct copies by unit, after whole rows of cells that do not travel, which have no units."""
    units, nbytes = wire.units, sizes.ravel()
    is_still = nbytes > 0
    is_still[units.cell] = False
    still = np.flatnonzero(is_still)
    cell = np.concatenate([still, units.cell])
    chunk = np.concatenate([np.full(len(still), -1), units.chunk])
    start = np.concatenate([np.zeros_like(still), units.start])
    nbytes = np.concatenate([nbytes[still], units.nbytes])
    stripe, which = pair_by_group(cell // max(sizes.shape[1], 1), layer)
    return Direct(chunk[stripe], level[which], piece[which], cell[stripe], start[stripe], nbytes[stripe])


def _repeated(wire: Wire, plan: ReshardPlan, followers: Int, target_row: Int) -> Int:
    """(4, N) chunk that completes the cell, cell, row that arrived, row that repeats it."""
    units = wire.units
    first, count = runs(begins(units.cell))
    last = first + count - 1
    of_cell, which = pair_by_group(wire.unit_group[last], plan.moves.layer[followers])
    unit, follower = last[of_cell], followers[which]
    leader = leading_move(plan)[follower]
    return np.stack([units.chunk[unit], units.cell[unit], target_row[leader], target_row[follower]])
