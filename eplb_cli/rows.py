"""Ranges of files as source and sink of the exchange, and the rows that stay on their worker."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eplb_cli import files
from eplb_cli.digests import DigestTable, ThreadBuffers
from eplb_cli.errors import CheckpointError, OutputError
from eplb_cli.exchange import Parcels, Pending, Units
from eplb_cli.meter import Meter
from eplb_cli.pieces import Pieces, Places

Int = NDArray[np.int64]

TASK_NBYTES = 16 << 20
"""Bytes of one task of a thread pool: large enough to hide its cost, small enough to balance."""


class Tree:
    """The files of one tree, by number, each opened on first use; every byte of them goes through `meter`.

    `opener` is `files.open_source` or `files.open_output`. `keep`: leave what was read in the page cache;
    False for trees that are larger than it.
    """

    def __init__(
        self, paths: Sequence[Path], opener: Callable[[Path], int], meter: Meter, *, keep: bool = True
    ) -> None:
        self.paths = paths
        self.meter = meter
        self._opener, self._keep = opener, keep
        self._lock = threading.Lock()
        self._open: dict[int, int] = {}

    def descriptor(self, number: int) -> int:
        """The open file."""
        with self._lock:
            if number not in self._open:
                self._open[number] = self._opener(self.paths[number])
            return self._open[number]

    def read(self, number: int, view: memoryview, offset: int) -> None:
        """Fill `view` from a file. Raises CheckpointError, or OutputError where it is one of ours."""
        descriptor, path = self.descriptor(number), self.paths[number]
        try:
            self.meter.timed("read", len(view), files.read_into, descriptor, view, offset, path)
        except CheckpointError as error:
            if self._opener is files.open_output:
                raise OutputError("EP604", f"{error.message}, where it was written before") from error
            raise

    def write(self, number: int, view: memoryview, offset: int) -> None:
        """Write `view` to a file."""
        descriptor = self.descriptor(number)
        self.meter.timed("write", len(view), files.write_from, descriptor, view, offset, self.paths[number])

    def sync(self, number: int) -> None:
        """Wait until the disk has a file."""
        self.meter.timed("write", 0, files.sync, self.descriptor(number), self.paths[number])

    def forget(self, number: int, offset: int, nbytes: int) -> None:
        """Say that a range is not needed again; 0 bytes are all up to the end."""
        if not self._keep:
            files.forget(self.descriptor(number), offset, nbytes)

    def opened(self) -> dict[int, int]:
        """Number to descriptor, for all files opened so far."""
        return dict(self._open)

    def close(self) -> None:
        """Close all of them."""
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()


@dataclass(frozen=True)
class Tasks:
    """Work given to a thread pool; waiting raises the first error."""

    futures: Sequence[Future[None]]

    def wait(self) -> None:
        """Wait for all of it."""
        for future in self.futures:
            future.result()


def cut_tasks(nbytes: Int, boundary: NDArray[np.bool_] | None = None) -> Iterator[slice]:
    """Cut a column of sizes into slices of about `TASK_NBYTES`, only where `boundary` allows."""
    if not len(nbytes):
        return
    number = (np.cumsum(nbytes) - 1) // TASK_NBYTES
    if boundary is not None:
        starts = np.flatnonzero(boundary)
        number = np.repeat(number[starts], np.diff(np.r_[starts, len(nbytes)]))
    cuts = np.r_[0, np.flatnonzero(np.diff(number)) + 1, len(nbytes)]
    yield from (slice(int(begin), int(end)) for begin, end in itertools.pairwise(cuts))


@dataclass(frozen=True, eq=False)
class FileEnds:
    """Both trees as one worker sees them, and what it does with their bytes.

    Attributes:
        digests: of old places; None where none are wanted.
        known: (X, 16) digests of old places that need not be read for them, zero where there is none.
        advance: called with the number of bytes written.
        wrote: called with a new place and the number of bytes that were written to it.
    """

    pieces: Pieces
    old: Places
    new: Places
    source: Tree
    destination: Tree
    pool: ThreadPoolExecutor
    digests: DigestTable | None
    advance: Callable[[int], None]
    wrote: Callable[[int, int], None]
    known: NDArray[np.uint8] | None = None

    def submit(self, call: Callable[[slice], None], tasks: Iterator[slice]) -> Tasks:
        """Run `call` on every slice in the pool."""
        return Tasks([self.pool.submit(call, task) for task in tasks])


class FileSource:
    """Fills send buffers from the files of the worker's old ranks.

    `stays`: (X,) old places that `StayingRows` reads too, and digests; the others are digested here.
    """

    def __init__(
        self,
        ends: FileEnds,
        units: Units,
        parcels: Parcels,
        buffers: Sequence[memoryview],
        stays: NDArray[np.bool_],
    ) -> None:
        place = ends.pieces.source[parcels.piece]
        start = units.start[parcels.unit]
        order = np.lexsort((start, place, parcels.chunk))
        self._ends = ends
        self._buffers = buffers
        self._chunk = parcels.chunk[order]
        self._place = place[order]
        self._file = ends.old.file[self._place]
        self._offset = (ends.old.offset[place] + start)[order]
        self._position, self._nbytes, self._start = (
            parcels.position[order],
            parcels.nbytes[order],
            start[order],
        )
        same_bytes = (np.diff(self._place, prepend=-1) == 0) & (np.diff(self._start, prepend=-1) == 0)
        self._to_digest = ~same_bytes & ~stays[self._place]

    def fill(self, chunk: int, after: Sequence[Pending]) -> Tasks:
        """Start reading the parcels of a chunk; stripes of a row stay in one task, in order."""
        for pending in after:
            pending.wait()
        part = slice(*np.searchsorted(self._chunk, [chunk, chunk + 1]).tolist())
        new_place = np.diff(self._place[part], prepend=-1) != 0
        tasks = (
            slice(part.start + task.start, part.start + task.stop)
            for task in cut_tasks(self._nbytes[part], new_place)
        )
        buffer = self._buffers[chunk % 2]
        return self._ends.submit(lambda task: self._read(task, buffer), tasks)

    def _read(self, task: slice, buffer: memoryview) -> None:
        ends = self._ends
        columns = (
            self._place,
            self._file,
            self._offset,
            self._position,
            self._nbytes,
            self._start,
            self._to_digest,
        )
        for place, file, offset, position, nbytes, start, wanted in zip(
            *(column[task].tolist() for column in columns), strict=True
        ):
            view = buffer[position : position + nbytes]
            ends.source.read(file, view, offset)
            ends.source.forget(file, offset, nbytes)
            if ends.digests is not None and wanted:
                ends.digests.feed(
                    place, view, first=start == 0, last=start + nbytes == ends.old.nbytes[place]
                )


class FileSink:
    """Drains receive buffers into the files of the worker's new ranks."""

    def __init__(self, ends: FileEnds, units: Units, parcels: Parcels, buffers: Sequence[memoryview]) -> None:
        self._ends = ends
        self._buffers = buffers
        parcel, piece = _landings(ends.pieces, parcels)
        place = ends.pieces.destination[piece]
        order = np.argsort(parcels.chunk[parcel], kind="stable")
        self._chunk = parcels.chunk[parcel][order]
        self._place = place[order]
        self._file = ends.new.file[self._place]
        self._offset = (ends.new.offset[place] + units.start[parcels.unit[parcel]])[order]
        self._position, self._nbytes = parcels.position[parcel][order], parcels.nbytes[parcel][order]

    def drain(self, chunk: int, after: Sequence[Pending]) -> Tasks:
        """Start writing the parcels of a chunk."""
        for pending in after:
            pending.wait()
        part = slice(*np.searchsorted(self._chunk, [chunk, chunk + 1]).tolist())
        tasks = (
            slice(part.start + task.start, part.start + task.stop) for task in cut_tasks(self._nbytes[part])
        )
        buffer = self._buffers[chunk % 2]
        return self._ends.submit(lambda task: self._write(task, buffer), tasks)

    def _write(self, task: slice, buffer: memoryview) -> None:
        ends = self._ends
        columns = (self._place, self._file, self._offset, self._position, self._nbytes)
        for place, file, offset, position, nbytes in zip(
            *(column[task].tolist() for column in columns), strict=True
        ):
            view = buffer[position : position + nbytes]
            ends.destination.write(file, view, offset)
            ends.advance(nbytes)
            ends.wrote(place, nbytes)


def _landings(pieces: Pieces, parcels: Parcels) -> tuple[Int, Int]:
    """(parcel, piece) for every place a received parcel goes to: its own, and those of its duplicates."""
    follower = np.flatnonzero(pieces.leader != np.arange(len(pieces.leader)))
    by_piece = np.argsort(parcels.piece, kind="stable")
    sorted_piece = parcels.piece[by_piece]
    begin = np.searchsorted(sorted_piece, pieces.leader[follower], "left")
    count = np.searchsorted(sorted_piece, pieces.leader[follower], "right") - begin
    within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    parcel = by_piece[np.repeat(begin, count) + within]
    every = np.arange(len(parcels.piece))
    return np.r_[every, parcel], np.r_[parcels.piece, np.repeat(follower, count)]


BLOCK_NBYTES = 1 << 20
"""What a thread reads, hashes and writes at a time: it stays in its core's cache."""


def digest_places(
    places: Places, wanted: Int, tree: Tree, pool: ThreadPoolExecutor, advance: Callable[[int], None]
) -> NDArray[np.uint8]:
    """Read places of a tree and hash them: uint8 (X, 16), zero where a place is not wanted."""
    digests = DigestTable.empty(len(places.rank), tree.meter)
    wanted = wanted[np.lexsort((places.offset[wanted], places.file[wanted]))]
    buffers = ThreadBuffers(BLOCK_NBYTES)

    def digest(task: slice) -> None:
        columns = (places.file, places.offset, places.nbytes)
        for place, file, offset, nbytes in zip(
            wanted[task].tolist(), *(column[wanted[task]].tolist() for column in columns), strict=True
        ):
            for begin in range(0, nbytes, BLOCK_NBYTES):
                view = buffers.view[: min(BLOCK_NBYTES, nbytes - begin)]
                tree.read(file, view, offset + begin)
                digests.feed(place, view, first=begin == 0, last=begin + len(view) == nbytes)
            advance(nbytes)

    Tasks([pool.submit(digest, task) for task in cut_tasks(places.nbytes[wanted])]).wait()
    return digests.values


def digest_distinct(
    places: Places,
    wanted: Int,
    identity: Int,
    tree: Tree,
    pool: ThreadPoolExecutor,
    advance: Callable[[int], None],
) -> NDArray[np.uint8]:
    """As `digest_places`, and of the places with one number in `identity` only the first is read."""
    _, first, which = np.unique(identity[wanted], return_index=True, return_inverse=True)
    digests = digest_places(places, wanted[first], tree, pool, advance)
    digests[wanted] = digests[wanted[first]][which.ravel()]
    return digests


def worker_of(rank: Int, num_workers: int) -> Int:
    """The worker that hosts a rank, old or new: each has its share of both sides."""
    return rank % num_workers
