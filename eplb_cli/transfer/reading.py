"""Places of a tree, read once, in the order of their bytes, by threads: what all work on rows is made of.

A block is what a thread reads, hashes and writes at a time. A large row is several blocks; small rows that
follow each other are read as one::

    rows      | 0          | 1 | 2 | 3 |   | 4 | 5 |
    reads     [    ][    ][ ][         ]   [       ]
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from eplb_cli.arrays import Int
from eplb_cli.checkpoint.places import Places
from eplb_cli.transfer.digest_table import DigestTable, ThreadBuffers
from eplb_cli.transfer.threads import Tasks, Threads, cut_in_turn
from eplb_cli.transfer.trees import Tree
from eplb_cli.values import dataclass

LEAST_BLOCK_NBYTES = 2 << 20
MOST_BLOCK_NBYTES = 8 << 20
_MORE_A_THREAD_NBYTES = 1 << 19
"""What is read at a time stays in a core's cache where that is small. But each call that reads, hashes or
writes takes the interpreter's lock again: many threads with small blocks mostly wait for it."""

Take = Callable[[int, int, memoryview], None]
"""Is given the bytes of places, those of one place in order and by one thread: where the place stands in the
order of reading, the first byte within the place, and what follows there. One of no bytes is not given."""

Share = Callable[[Callable[[slice], None], Iterable[slice]], Tasks]
"""`Threads.share`, or what stands for it."""


def block_nbytes(threads: int) -> int:
    """Bytes that each of so many threads reads at a time."""
    return min(max(threads * _MORE_A_THREAD_NBYTES, LEAST_BLOCK_NBYTES), MOST_BLOCK_NBYTES)


def in_order(places: Places, wanted: Int) -> Int:
    """Some places in the order of their bytes."""
    return wanted[np.lexsort((places.offset[wanted], places.file[wanted]))]


@dataclass(frozen=True, eq=False)
class Wanted:
    """Places that are to be read, lane by lane in the order of their bytes.

    Attributes:
        number: the places.
        block_nbytes: what is read at a time.
        boundary: where a thread may take over from another; anywhere if it is left out.
        lane: lanes are read beside each other, each in its order; all is one if it is left out.
    """

    places: Places
    number: Int
    block_nbytes: int
    boundary: NDArray[np.bool_] | None = None
    lane: Int | None = None


def start_reading(wanted: Wanted, tree: Tree, share: Share, take: Take) -> Tasks:
    """Read places of a tree."""
    places, number, block, boundary = wanted.places, wanted.number, wanted.block_nbytes, wanted.boundary
    lane = np.zeros(len(number), np.int64) if wanted.lane is None else wanted.lane
    file, offset, nbytes = places.file[number], places.offset[number], places.nbytes[number]
    begins = _begins_read(file, offset, nbytes, block) | (np.diff(lane, prepend=-1) != 0)
    first = np.flatnonzero(begins)
    last = np.r_[first[1:], len(number)]
    total = np.add.reduceat(nbytes, first) if len(first) else first
    reads = (first, last, file[first], offset[first], total)
    buffers = ThreadBuffers(block)

    def read(task: slice) -> None:
        buffer = buffers.view
        for begin, end, of_file, start, length in zip(
            *(column[task].tolist() for column in reads), strict=True
        ):
            if end == begin + 1:
                _read_one(tree, of_file, start, length, buffer, begin, take)
            else:
                tree.read(of_file, buffer[:length], start)
                _hand_out(buffer, nbytes[begin:end].tolist(), begin, take)
            if length:  # forgetting no bytes is forgetting all behind
                tree.forget(of_file, start, length)

    return share(read, cut_in_turn(total, lane[first], None if boundary is None else boundary[first]))


def _begins_read(file: Int, offset: Int, nbytes: Int, most: int) -> NDArray[np.bool_]:
    """Which places do not belong to the read of the one before: there is a gap, or a block is full."""
    end = np.cumsum(nbytes)
    block = (end - nbytes) // most
    fits = ((end - 1) // most == block) & (nbytes > 0)
    follows = (np.diff(file) == 0) & (np.diff(offset) == nbytes[:-1]) & (np.diff(block) == 0)
    begins = np.ones(len(nbytes), np.bool_)
    begins[1:] = ~(follows & fits[1:] & fits[:-1])
    return begins


def _read_one(
    tree: Tree, file: int, offset: int, nbytes: int, buffer: memoryview, place: int, take: Take
) -> None:
    """One place, block by block."""
    for begin in range(0, nbytes, len(buffer)):
        view = buffer[: nbytes - begin]
        tree.read(file, view, offset + begin)
        take(place, begin, view)


def _hand_out(buffer: memoryview, sizes: list[int], place: int, take: Take) -> None:
    """Several places of one read."""
    begin = 0
    for number, size in enumerate(sizes, place):
        take(number, 0, buffer[begin : begin + size])
        begin += size


def digest_places(
    places: Places, wanted: Int, tree: Tree, pool: Threads, advance: Callable[[int], None]
) -> NDArray[np.uint8]:
    """Read places of a tree and hash them: uint8 (X, 16), zero where a place is not wanted."""
    digests, tasks = start_digests(places, wanted, tree, pool, advance)
    tasks.wait()
    return digests


def start_digests(
    places: Places, wanted: Int, tree: Tree, pool: Threads, advance: Callable[[int], None]
) -> tuple[NDArray[np.uint8], Tasks]:
    """As `digest_places`; the digests are there when the tasks are done."""
    digests = DigestTable.empty(len(places.rank), tree.meter)
    wanted = in_order(places, wanted)
    numbers, sizes = wanted.tolist(), places.nbytes[wanted].tolist()

    def take(index: int, begin: int, view: memoryview) -> None:
        nbytes = sizes[index]
        is_last = begin + len(view) == nbytes
        digests.feed(numbers[index], view, first=begin == 0, last=is_last)
        if is_last:
            advance(nbytes)

    return digests.values, start_reading(
        Wanted(places, wanted, block_nbytes(pool.count)), tree, pool.share, take
    )


def digest_distinct(
    places: Places,
    wanted: Int,
    identity: Int,
    tree: Tree,
    pool: Threads,
    advance: Callable[[int], None],
) -> NDArray[np.uint8]:
    """As `digest_places`, and of the places with one number in `identity` only the first is read."""
    _, first, which = np.unique(identity[wanted], return_index=True, return_inverse=True)
    digests = digest_places(places, wanted[first], tree, pool, advance)
    digests[wanted] = digests[wanted[first]][which.ravel()]
    return digests
