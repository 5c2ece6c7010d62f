"""Work that threads share: cut into tasks, begun by whoever is free, ended for all where one fails."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from eplb_cli.arrays import Int
from eplb_cli.values import dataclass

TASK_NBYTES = 16 << 20
"""Bytes of one task: large enough to hide its cost, small enough to balance."""


class _StoppedError(Exception):
    """In a thread whose work nobody wants any more."""


class _ThisThread(threading.local):
    """What a thread knows of the pool that it is in."""

    stopped: list[bool] = []  # noqa: RUF012 - of threads that are in none, and never changed
    """Has something in it once the pool has been stopped."""


_this_thread = _ThisThread()


class Threads(ThreadPoolExecutor):
    """A pool whose work ends where its `with` block fails: what is queued is dropped, the rest stops soon.

    An interruption has not the time that gigabytes take.
    """

    def __init__(self, count: int) -> None:
        self.count, self._stopped = count, list[bool]()
        super().__init__(count, initializer=self._begin)

    def _begin(self) -> None:
        _this_thread.stopped = self._stopped

    def share(self, call: Callable[[slice], None], tasks: Iterable[slice]) -> Tasks:
        """Call `call` with every slice, in their order, in as many threads as there are.

        The first error ends it: no other slice is begun. None is before all threads are there, since the pool
        does not wait in the end for one in whose start an interruption came.
        """
        todo = list(tasks)
        left, begun, failed = iter(todo), threading.Event(), threading.Event()

        def work() -> None:
            begun.wait()
            for task in left:
                if failed.is_set():
                    return
                try:
                    call(task)
                except BaseException:
                    failed.set()
                    raise

        try:
            return Tasks([self.submit(work) for _ in range(min(self.count, len(todo)))])
        except BaseException:
            failed.set()
            raise
        finally:
            begun.set()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._stopped.append(True)
        self.shutdown(wait=True, cancel_futures=kind is not None)


def go_on() -> None:
    """End the work of this thread where its pool has been stopped."""
    if _this_thread.stopped:
        raise _StoppedError


@dataclass(frozen=True)
class Tasks:
    """Work given to a thread pool; waiting raises an error of it."""

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


def cut_in_turn(nbytes: Int, lane: Int, boundary: NDArray[np.bool_] | None = None) -> list[slice]:
    """Cut a column as `cut_tasks` does, and none of the slices across two lanes; lanes take turns.

    Every lane keeps its order, and all of them are done at about the same time.

    Args:
        lane: the lane of each entry, from 0 on; those of one lane follow each other.
    """
    starts = np.flatnonzero(np.diff(lane, prepend=-1))
    turns = []
    for begin, end in itertools.pairwise([*starts.tolist(), len(lane)]):
        part = slice(begin, end)
        tasks = list(cut_tasks(nbytes[part], None if boundary is None else boundary[part], start=begin))
        turns += [((number + 0.5) / len(tasks), task) for number, task in enumerate(tasks)]
    return [task for _, task in sorted(turns, key=lambda turn: turn[0])]
