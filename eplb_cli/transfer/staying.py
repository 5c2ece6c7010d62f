"""Pieces whose two ends are on one worker: shared, or copied from file to file."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from eplb_cli import files
from eplb_cli.arrays import Int, without
from eplb_cli.checkpoint.places import Places
from eplb_cli.formats.safetensors_header import DATA_ALIGNMENT
from eplb_cli.transfer.file_ends import FileEnds
from eplb_cli.transfer.reading import Wanted, block_nbytes, start_reading
from eplb_cli.transfer.threads import Tasks
from eplb_cli.values import dataclass

SMALL_NBYTES = 1 << 18
"""A smaller place is read together with its neighbours, wherever they go."""


@dataclass(frozen=True, eq=False)
class Runs:
    """Pieces that are neighbours at both ends, as one range each: columns of shape (N,).

    Attributes:
        first: the first piece of each run; pieces are in the order of their destinations.
    """

    src_file: Int
    src_offset: Int
    dst_file: Int
    dst_offset: Int
    nbytes: Int
    first: Int


def join_runs(old: Places, new: Places, source: Int, destination: Int) -> Runs:
    """Runs of pieces from places of OLD to places of NEW, which are in the order of (file, offset)."""
    src_file, src_offset, nbytes = old.file[source], old.offset[source], old.nbytes[source]
    dst_file, dst_offset = new.file[destination], new.offset[destination]
    breaks = (
        (np.diff(src_file) != 0)
        | (np.diff(dst_file) != 0)
        | (np.diff(src_offset) != nbytes[:-1])
        | (np.diff(dst_offset) != nbytes[:-1])
    )
    first = np.flatnonzero(np.r_[len(source) > 0, breaks])
    total = np.add.reduceat(nbytes, first) if len(first) else first
    return Runs(src_file[first], src_offset[first], dst_file[first], dst_offset[first], total, first)


class StayingRows:
    """The staying pieces of a worker, and its old places that are only to be digested.

    What the file system can share is shared, and takes its digest from the manifest of SRC where that
    has one. Every other place is read once, hashed, and written to all its destinations, a block at a
    time: two threads that let the kernel copy (`copy_file_range`) take more than twice as long on ext4.
    """

    def __init__(self, ends: FileEnds, staying: NDArray[np.bool_], only_digest: Int) -> None:
        self._ends = ends
        self._only_digest = only_digest if ends.digests is not None else only_digest[:0]
        source, destination = ends.pieces.source[staying], ends.pieces.destination[staying]
        order = np.lexsort((ends.new.offset[destination], ends.new.file[destination]))
        self._source, self._destination = source[order], destination[order]
        self._shared = np.zeros(len(order), bool)

    @property
    def shared(self) -> Int:
        """New places that share their blocks with SRC."""
        return self._destination[self._shared]

    def start(self) -> Tasks:
        """Share what can be, and start copying the rest."""
        self._shared = self._share()
        copied = ~self._shared
        source, destination = self._source[copied], self._destination[copied]
        if self._ends.digests is not None:
            unread = without(self._source[self._shared], source)
            hashed = np.r_[unread, self._only_digest]
            if len(unread):  # where rows are not read, neither are those that nothing is made from
                hashed = hashed[~self._carry_over(hashed)]
            source = np.r_[source, hashed]
            destination = np.r_[destination, np.full(len(hashed), -1)]
        return self._start_copies(source, destination)

    def _share(self) -> NDArray[np.bool_]:
        """Clone runs of whole pages; which pieces share their blocks now.

        The first run that cannot be cloned ends it: a file system can share blocks or it cannot.
        """
        old, new = self._ends.old, self._ends.new
        bits = old.offset[self._source] | old.nbytes[self._source] | new.offset[self._destination]
        whole_pages = np.flatnonzero((bits % DATA_ALIGNMENT == 0) & (old.nbytes[self._source] > 0))
        runs = join_runs(old, new, self._source[whole_pages], self._destination[whole_pages])
        bounds = np.r_[runs.first, len(whole_pages)].tolist()
        shared = np.zeros(len(self._source), bool)
        for number, run in enumerate(_rows_of(runs)):
            if not self._clone(*run):
                break
            shared[whole_pages[bounds[number] : bounds[number + 1]]] = True
            self._ends.advance(run[-1])
        return shared

    def _clone(self, src_file: int, src_offset: int, dst_file: int, dst_offset: int, nbytes: int) -> bool:
        ends = self._ends
        return files.clone_range(
            ends.source.descriptor(src_file),
            ends.destination.descriptor(dst_file),
            nbytes,
            src_offset,
            dst_offset,
            ends.destination.paths[dst_file],
        )

    def _carry_over(self, places: Int) -> NDArray[np.bool_]:
        """Take digests of shared places from the manifest of SRC; for which it has one."""
        known, digests = self._ends.known, self._ends.digests
        if known is None or digests is None:
            return np.zeros(len(places), bool)
        digests.values[places] = known[places]
        return np.asarray(known[places].any(axis=1))

    def _start_copies(self, source: Int, destination: Int) -> Tasks:
        """Read every place once; hash it if wanted, and write it to its destinations (-1 for none)."""
        ends, old = self._ends, self._ends.old
        lane = self._lanes(source, destination)
        order = np.lexsort((old.offset[source], old.file[source], lane))
        source, destination = source[order], destination[order]
        first = np.flatnonzero(np.diff(source, prepend=-1))
        bounds = np.r_[first, len(source)].tolist()
        places, sizes = source[first].tolist(), old.nbytes[source[first]].tolist()
        goals, files, offsets = (
            column.tolist()
            for column in (destination, ends.new.file[destination], ends.new.offset[destination])
        )

        def take(index: int, begin: int, view: memoryview) -> None:
            nbytes = sizes[index]
            is_last = begin + len(view) == nbytes
            if ends.digests is not None:
                ends.digests.feed(places[index], view, first=begin == 0, last=is_last)
            for number in range(bounds[index], bounds[index + 1]):
                if goals[number] >= 0:
                    ends.destination.write(files[number], view, offsets[number] + begin)
                    if is_last:
                        ends.advance(nbytes)
                        ends.wrote(goals[number], nbytes)

        size = block_nbytes(1 if ends.digests is None else ends.pool.count)
        wanted = Wanted(old, source[first], size, lane=lane[order][first])
        return start_reading(wanted, ends.source, ends.share, take)

    def _lanes(self, source: Int, destination: Int) -> Int:
        """For each pair the file that its place is first written to, so that threads write to different ones.

        A file system lets one thread at a time write to a file. Small places are in a lane of their own,
        where neighbours are read together, and so are those that are not written.
        """
        new, old = self._ends.new, self._ends.old
        file = np.where(destination >= 0, new.file[destination], -1)
        first = np.full(len(old.rank), -1)
        first[source[::-1]] = np.where(old.nbytes[source] < SMALL_NBYTES, -1, file)[::-1]
        return 1 + first[source]


def _rows_of(runs: Runs) -> list[tuple[int, int, int, int, int]]:
    """Runs as tuples (source file and offset, destination file and offset, bytes)."""
    columns = (runs.src_file, runs.src_offset, runs.dst_file, runs.dst_offset, runs.nbytes)
    return list(zip(*(column.tolist() for column in columns), strict=True))
