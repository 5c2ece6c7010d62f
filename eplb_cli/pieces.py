"""The table of moves as byte ranges between files.

A piece is one expert tensor of one move, or another tensor on its way to a rank. Pieces are in the
order of the wire: by cell, a (layer, tensor), and within it in the order of the table; other tensors
follow, each a cell of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from eplb_cli import files
from eplb_cli.checkpoint import Extents, ShardedCheckpoint, TensorAt
from eplb_cli.output import OutputTree
from eplb_cli.plan import DUPLICATE, REMOTE, ReshardPlan

Int = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Places:
    """All rows and other tensors of one tree, columns of shape (X,).

    Rows come first, as (layer, tensor, slot) flattened; then the other tensors. `nbytes` is 0 where
    there is nothing. A place's number is the number of its digest.
    """

    rank: Int
    file: Int
    offset: Int
    nbytes: Int


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


def old_places(checkpoint: ShardedCheckpoint) -> Places:
    """The places of SRC; other tensors are those of all old ranks, by rank and key."""
    rank, at = [], []
    for number, tensors in enumerate(checkpoint.others):
        rank += [number] * len(tensors)
        at += [tensors[key] for key in sorted(tensors)]
    return _places(
        checkpoint.extents,
        checkpoint.row_nbytes,
        checkpoint.placement.rank_of_slot,
        np.array(rank, np.int64),
        np.array([(tensor.file, tensor.offset, tensor.entry.nbytes) for tensor in at], np.int64).reshape(
            -1, 3
        ),
    )


def new_places(plan: ReshardPlan, checkpoint: ShardedCheckpoint, output: OutputTree) -> Places:
    """The places of the output; other tensors in the order of `output.others`."""
    rank = np.array([copy.dst_rank for copy in output.others], np.int64)
    where = [(copy.dst_file, copy.dst_offset, copy.source.entry.nbytes) for copy in output.others]
    return _places(
        output.extents,
        checkpoint.row_nbytes,
        plan.new.rank_of_slot,
        rank,
        np.array(where, np.int64).reshape(-1, 3),
    )


def _places(extents: Extents, row_nbytes: Int, rank_of_slot: Int, rank: Int, others: Int) -> Places:
    exists = extents.file >= 0
    return Places(
        np.r_[np.broadcast_to(rank_of_slot, exists.shape).ravel(), rank],
        np.r_[extents.file.ravel(), others[:, 0]].astype(np.int64),
        np.r_[extents.offset.ravel(), others[:, 1]],
        np.r_[(exists * row_nbytes[:, :, None]).ravel(), others[:, 2]],
    )


def file_identities(checkpoint: ShardedCheckpoint, places: Places) -> Int:
    """(X,) a number for each place; the same where two ranks have one file under two names."""
    with files.reading(checkpoint.shards.path):
        status = [file.path.lstat() for file in checkpoint.shards.files]
    inodes = {(one.st_dev, one.st_ino): number for number, one in reversed(list(enumerate(status)))}
    file = np.array([inodes[one.st_dev, one.st_ino] for one in status], np.int64)[places.file]
    return np.unique(np.stack([file, places.offset]), axis=1, return_inverse=True)[1].ravel()


def other_numbers(others: tuple[Mapping[str, TensorAt], ...]) -> dict[tuple[int, str], int]:
    """(old rank, key) to the position among the other tensors of `old_places`."""
    ordered = [(rank, key) for rank, tensors in enumerate(others) for key in sorted(tensors)]
    return {place: number for number, place in enumerate(ordered)}


def cut_pieces(plan: ReshardPlan, checkpoint: ShardedCheckpoint, output: OutputTree) -> Pieces:
    """Cut a plan into pieces: every move times every expert tensor of its layer, then the others."""
    rows = row_pieces(plan, checkpoint.row_nbytes)
    num_cells, num_rows = checkpoint.row_nbytes.size, len(rows.cell)
    numbers = other_numbers(checkpoint.others)
    source = np.array([numbers[copy.src_rank, copy.key] for copy in output.others], np.int64)
    ordered = np.argsort(source, kind="stable")
    cells, cell = np.unique(source[ordered], return_inverse=True)
    src_rank = np.array([copy.src_rank for copy in output.others], np.int64)[ordered]
    dst_rank = np.array([copy.dst_rank for copy in output.others], np.int64)[ordered]
    nbytes = np.array([copy.source.entry.nbytes for copy in output.others], np.int64)[ordered]
    cell_nbytes = np.zeros(len(cells), np.int64)
    cell_nbytes[cell] = nbytes
    num_old = num_cells * plan.old.num_slots
    num_new = num_cells * plan.new.num_slots
    return Pieces(
        np.r_[rows.cell, num_cells + cell],
        np.r_[rows.source, num_old + source[ordered]],
        np.r_[rows.destination, num_new + ordered],
        np.r_[rows.src_rank, src_rank],
        np.r_[rows.dst_rank, dst_rank],
        np.r_[rows.leader, num_rows + np.arange(len(ordered))],
        np.r_[rows.cell_nbytes, cell_nbytes],
        np.r_[rows.move, np.full(len(ordered), -1)],
    )


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
    leader = np.arange(len(moves))
    key = (moves.layer * plan.num_ranks + plan.dst_rank) * plan.new.num_logical_experts + moves.expert
    remote = np.flatnonzero(moves.kind == REMOTE)
    remote = remote[np.argsort(key[remote], kind="stable")]
    duplicate = np.flatnonzero(moves.kind == DUPLICATE)
    leader[duplicate] = remote[np.searchsorted(key[remote], key[duplicate])]
    return leader
