"""The table of moves as pieces: every move times every expert tensor of its layer."""

from __future__ import annotations

from functools import cached_property

import numpy as np

from eplb_cli.arrays import Int, begins
from eplb_cli.plan.moves import DUPLICATE, REMOTE, ReshardPlan
from eplb_cli.values import dataclass


@dataclass(frozen=True, eq=False)
class Pieces:
    """Columns of shape (N,) in the order of the wire.

    Attributes:
        cell: (layer, tensor) as one number; other tensors have numbers of their own.
        source, destination: places of the old and the new tree.
        src_rank, dst_rank: their ranks.
        leader: the piece whose bytes this one takes if they come from another worker: itself, but for
            a DUPLICATE.
        cell_nbytes: (C,) bytes of a piece of each cell.
        move: index into the table of moves, -1 for another tensor.
    """

    cell: Int
    source: Int
    destination: Int
    src_rank: Int
    dst_rank: Int
    leader: Int
    cell_nbytes: Int
    move: Int

    @cached_property
    def nbytes(self) -> Int:
        """(N,) bytes of each piece."""
        return self.cell_nbytes[self.cell]


def row_pieces(plan: ReshardPlan, row_nbytes: Int) -> Pieces:
    """The pieces of the table alone."""
    moves = plan.moves
    num_tensors = row_nbytes.shape[1]
    layer, tensor = np.nonzero(row_nbytes > 0)
    begin = np.searchsorted(moves.layer, layer, "left")
    count = np.searchsorted(moves.layer, layer, "right") - begin
    of_cell = np.repeat(np.arange(len(layer)), count)
    within = np.arange(len(of_cell)) - np.repeat(np.cumsum(count) - count, count)
    move = within + begin[of_cell]
    cell = layer[of_cell] * num_tensors + tensor[of_cell]
    return Pieces(
        cell,
        cell * plan.old.num_slots + moves.src_slot[move],
        cell * plan.new.num_slots + moves.dst_slot[move],
        plan.src_rank[move],
        plan.dst_rank[move],
        np.arange(len(move)) + leading_move(plan)[move] - move,
        row_nbytes.ravel(),
        move,
    )


def leading_move(plan: ReshardPlan) -> Int:
    """(N,) for a DUPLICATE the REMOTE of its layer, rank and expert; every other move leads itself."""
    moves = plan.moves
    # They have one source too, and so are neighbours in the order of the wire.
    block = np.cumsum(begins(moves.layer) | begins(plan.dst_rank) | begins(moves.expert))
    remote, duplicate = (np.flatnonzero(moves.kind == kind) for kind in (REMOTE, DUPLICATE))
    of_block = np.zeros(len(moves) + 1, np.int64)
    of_block[block[remote]] = remote
    leader = np.arange(len(moves))
    leader[duplicate] = of_block[block[duplicate]]
    return leader
