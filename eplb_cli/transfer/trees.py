"""The files of one tree: read, written and hashed by threads, every byte counted."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from eplb_cli import files
from eplb_cli.arrays import Int
from eplb_cli.checkpoint.places import Places
from eplb_cli.errors import CheckpointError, OutputError
from eplb_cli.transfer.digest_table import DigestTable, ThreadBuffers
from eplb_cli.transfer.meter import Meter
from eplb_cli.values import dataclass

TASK_NBYTES = 16 << 20
"""Bytes of one task of a thread pool: large enough to hide its cost, small enough to balance."""

BLOCK_NBYTES = 1 << 20
"""What a thread reads, hashes and writes at a time: it stays in its core's cache."""


class _StoppedError(Exception):
    """In a thread whose work nobody wants any more."""


_this_thread = threading.local()


class Threads(ThreadPoolExecutor):
    """A pool whose work ends where its `with` block fails: what is queued is dropped, the rest stops soon.

    An interruption has not the time that gigabytes take.
    """

    def __init__(self, count: int) -> None:
        self._stopped = threading.Event()
        super().__init__(count, initializer=self._begin)

    def _begin(self) -> None:
        _this_thread.stopped = self._stopped

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._stopped.set()
        self.shutdown(wait=True, cancel_futures=kind is not None)


def _go_on() -> None:
    """End the work of this thread where its pool has been stopped."""
    stopped: threading.Event | None = getattr(_this_thread, "stopped", None)
    if stopped is not None and stopped.is_set():
        raise _StoppedError


class Tree:
    """The files of one tree, by number, each opened on first use and closed at the end of the `with` block.

    Args:
        stamps: of SRC, what each file was when its header was read, and has to be at the end of the block;
            None for a tree that is being written.
        meter: what every byte goes through; one of its own if nobody asks.
        keep: leave what was read in the page cache; False for trees that are larger than it.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        stamps: Sequence[files.Stamp] | None = None,
        meter: Meter | None = None,
        *,
        keep: bool = True,
    ) -> None:
        self.paths = paths
        self.meter = meter or Meter()
        self._stamps, self._keep = stamps, keep
        self._lock, self._stack = threading.Lock(), ExitStack()
        self._open: dict[int, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.clear()
        self._stack.__exit__(kind, error, trace)

    def descriptor(self, number: int) -> int:
        """The open file."""
        with self._lock:
            if number not in self._open:
                self._open[number] = self._stack.enter_context(self._opening(number))
            return self._open[number]

    def _opening(self, number: int) -> AbstractContextManager[int]:
        if self._stamps is None:
            return files.opened_output(self.paths[number])
        return files.opened_source(self.paths[number], self._stamps[number])

    def read(self, number: int, view: memoryview, offset: int) -> None:
        """Fill `view` from a file. Raises CheckpointError, or OutputError where it is one of ours."""
        _go_on()
        descriptor, path = self.descriptor(number), self.paths[number]
        try:
            self.meter.timed("read", len(view), files.read_into, descriptor, view, offset, path)
        except CheckpointError as error:
            if self._stamps is None:
                raise OutputError("EP604", f"{error.message}, where it was written before") from error
            raise

    def write(self, number: int, view: memoryview, offset: int) -> None:
        """Write `view` to a file."""
        _go_on()
        descriptor = self.descriptor(number)
        self.meter.timed("write", len(view), files.write_from, descriptor, view, offset, self.paths[number])

    def sync(self, number: int) -> None:
        """Wait until the disk has a file."""
        _go_on()
        self.meter.timed("write", 0, files.sync, self.descriptor(number), self.paths[number])

    def forget(self, number: int, offset: int, nbytes: int) -> None:
        """Say that a range is not needed again; 0 bytes are all up to the end."""
        if not self._keep:
            files.forget(self.descriptor(number), offset, nbytes)

    def opened(self) -> dict[int, int]:
        """Number to descriptor, for all files opened so far."""
        return dict(self._open)


class Known(Protocol):
    """A file of SRC whose header was read."""

    @property
    def path(self) -> Path:
        """Where it is."""

    @property
    def stamp(self) -> files.Stamp:
        """What it was then."""


def source_tree(sources: Sequence[Known], meter: Meter | None = None, *, keep: bool = True) -> Tree:
    """The files of SRC, which are the same at the end as when their headers were read, or EP220."""
    return Tree([file.path for file in sources], [file.stamp for file in sources], meter, keep=keep)


@dataclass(frozen=True)
class Tasks:
    """Work given to a thread pool; waiting raises the first error."""

    futures: Sequence[Future[None]]

    def wait(self) -> None:
        """Wait for all of it."""
        for future in self.futures:
            future.result()


def cut_tasks(nbytes: Int, boundary: NDArray[np.bool_] | None = None, *, start: int = 0) -> Iterator[slice]:
    """Cut a column of sizes into slices of about `TASK_NBYTES`, only where `boundary` allows.

    Args:
        start: what the slices count from: the number of the column's first entry.
    """
    if not len(nbytes):
        return
    number = (np.cumsum(nbytes) - 1) // TASK_NBYTES
    if boundary is not None:
        starts = np.flatnonzero(boundary)
        number = np.repeat(number[starts], np.diff(np.r_[starts, len(nbytes)]))
    cuts = start + np.r_[0, np.flatnonzero(np.diff(number)) + 1, len(nbytes)]
    yield from (slice(int(begin), int(end)) for begin, end in itertools.pairwise(cuts))


def digest_places(
    places: Places, wanted: Int, tree: Tree, pool: ThreadPoolExecutor, advance: Callable[[int], None]
) -> NDArray[np.uint8]:
    """Read places of a tree and hash them: uint8 (X, 16), zero where a place is not wanted."""
    digests, tasks = start_digests(places, wanted, tree, pool, advance)
    tasks.wait()
    return digests


def start_digests(
    places: Places, wanted: Int, tree: Tree, pool: ThreadPoolExecutor, advance: Callable[[int], None]
) -> tuple[NDArray[np.uint8], Tasks]:
    """As `digest_places`; the digests are there when the tasks are done."""
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

    tasks = Tasks([pool.submit(digest, task) for task in cut_tasks(places.nbytes[wanted])])
    return digests.values, tasks


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
