"""Ranges of files as source and sink of the exchange."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from eplb_cli.arrays import Int
from eplb_cli.checkpoint.places import Places
from eplb_cli.exchange.loop import Pending
from eplb_cli.exchange.units import Units
from eplb_cli.exchange.wire import Parcels, of_chunk
from eplb_cli.plan.pieces import Pieces
from eplb_cli.transfer.digest_table import DigestTable
from eplb_cli.transfer.threads import Tasks, Threads, cut_tasks
from eplb_cli.transfer.trees import Tree
from eplb_cli.values import dataclass


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
    pool: Threads
    digests: DigestTable | None
    advance: Callable[[int], None]
    wrote: Callable[[int, int], None]
    known: NDArray[np.uint8] | None = None

    def share(self, call: Callable[[slice], None], tasks: Iterable[slice]) -> Tasks:
        """Run `call` on every slice in the pool."""
        return self.pool.share(call, tasks)


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
        part = of_chunk(self._chunk, chunk)
        new_place = np.diff(self._place[part], prepend=-1) != 0
        tasks = cut_tasks(self._nbytes[part], new_place, start=part.start)
        buffer = self._buffers[chunk % 2]
        return self._ends.share(lambda task: self._read(task, buffer), tasks)

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
        part = of_chunk(self._chunk, chunk)
        tasks = cut_tasks(self._nbytes[part], start=part.start)
        buffer = self._buffers[chunk % 2]
        return self._ends.share(lambda task: self._write(task, buffer), tasks)

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
