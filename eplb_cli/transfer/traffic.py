"""What travels between workers, and how large its chunks are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from eplb_cli.arrays import Int, sum_by
from eplb_cli.exchange.units import PART_ALIGNMENT, STRIPE_ALIGNMENT
from eplb_cli.exchange.wire import Wire, plan_wire
from eplb_cli.plan.hosting import Hosting
from eplb_cli.plan.pieces import Pieces
from eplb_cli.values import dataclass

CHUNKS_PER_BUFFER = 4
"""`--buffer-size` is two send and two receive buffers, each of which holds a chunk."""

LEAST_STRIPE_NBYTES = 1 << 20
"""Rows are cut into stripes smaller than this only where `--buffer-size` asks for it."""


@dataclass(frozen=True)
class TransferOptions:
    """How the bytes are moved; the result does not depend on it.

    Attributes:
        buffer_nbytes: all send and receive buffers of one worker.
        threads: of one worker, that write what stays, and as many for what travels.
        readers: of one worker, that read back.
        digests: take digests of what is read. verify: read back what was written.
        durable: fsync. keep_cache: leave SRC and the output in the page cache.
    """

    buffer_nbytes: int
    threads: int
    readers: int
    digests: bool = True
    verify: bool = True
    durable: bool = True
    keep_cache: bool = True


def plan_traffic(
    pieces: Pieces, hosting: Hosting, buffer_nbytes: int, done: NDArray[np.bool_] | None = None
) -> Wire:
    """The wire of a job: the pieces whose two ranks are on different workers, and that lead.

    Args:
        buffer_nbytes: of one worker, as in `TransferOptions`.
        done: (N,) pieces whose bytes are where they belong. One travels again if a piece that takes its
            bytes from it is not done.
    """
    travels, sender, receiver = _travelling(pieces, hosting, done)
    return plan_wire(
        travels,
        pieces.cell[travels],
        sender,
        receiver,
        pieces.cell_nbytes[:, None],
        hosting.num_workers,
        max(buffer_nbytes // CHUNKS_PER_BUFFER, 1),
    )


def largest_chunk_nbytes(pieces: Pieces, hosting: Hosting) -> int:
    """Bytes of a chunk that holds a stripe of `LEAST_STRIPE_NBYTES` of any cell's rows."""
    travels, sender, receiver = _travelling(pieces, hosting)
    if not len(travels):
        return 0
    num_workers = hosting.num_workers
    cell, num_cells = pieces.cell[travels], len(pieces.cell_nbytes)
    ends = [np.bincount(cell * num_workers + worker) for worker in (sender, receiver)]
    rows = np.zeros(num_cells * num_workers, np.int64)
    for end in ends:
        rows[: len(end)] = np.maximum(rows[: len(end)], end)
    stripes = np.minimum(-(-pieces.cell_nbytes // STRIPE_ALIGNMENT) * STRIPE_ALIGNMENT, LEAST_STRIPE_NBYTES)
    padding = num_workers * PART_ALIGNMENT
    return int((rows.reshape(num_cells, num_workers).max(axis=1) * stripes).max()) + padding


def cross_host_nbytes(pieces: Pieces, hosting: Hosting, done: NDArray[np.bool_] | None = None) -> Int:
    """(N, N) bytes of rows and other tensors that go from one host to another, without padding.

    Rows that stay on the rank of their number are counted too, where that rank was on another host before.

    Args:
        done: as for `plan_traffic`.
    """
    travels, sender, receiver = _travelling(pieces, hosting, done)
    origin, goal, count = hosting.node[sender], hosting.node[receiver], hosting.num_nodes
    crosses = origin != goal
    pair = origin[crosses] * count + goal[crosses]
    return sum_by(pair, pieces.nbytes[travels[crosses]], count * count).reshape(count, count)


def _travelling(
    pieces: Pieces, hosting: Hosting, done: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """The pieces that travel, and the workers that they travel from and to."""
    sender, receiver = hosting.ends(pieces.src_rank, pieces.dst_rank)
    leads = pieces.leader == np.arange(len(pieces.leader))
    if done is not None:
        wanted = np.zeros(len(done), bool)
        wanted[pieces.leader[~done]] = True
        leads &= wanted
    travels = np.flatnonzero((sender != receiver) & leads)
    return travels, sender[travels], receiver[travels]
