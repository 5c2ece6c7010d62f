"""What a worker is busy with: seconds and bytes of each stage, and how much of the exchange was hidden.

A stage's seconds are those in which at least one thread was in it, so that none of them is more than the
time on the clock, and several of them together are. The share of the clock is how busy the stage was; the
busiest one is what bound the run.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from eplb_cli.exchange.loop import Span
from eplb_cli.values import dataclass

T = TypeVar("T")
FileStage = Literal["read", "digest", "write"]
FILE_STAGES: tuple[FileStage, ...] = get_args(FileStage)
STAGES = (*FILE_STAGES, "exchange")

MOST_KEPT = 4096
"""Calls of one thread and stage that are kept apart, before they are put together."""

_PAUSE_S = 0.001
"""Pauses between two calls on files that are shorter than this are not remembered."""


@dataclass(frozen=True)
class Activity:
    """What one worker did from the first byte read to the last one on the disk.

    Attributes:
        clock_s: how long that took.
        seconds: of each of `STAGES`, and "wait", in which nothing went on.
        nbytes: of each of `STAGES`.
        exposed_s: seconds of the exchange in which no file was read, written or hashed.
    """

    clock_s: float
    seconds: Mapping[str, float]
    nbytes: Mapping[str, int]
    exposed_s: float


class _Counted:
    """What one thread has done and was not asked for yet; only the thread itself adds to it.

    Attributes:
        calls: by stage, (begin, end, bytes) of every call that has come back.
        since: by stage, when the call began that the thread is in; None where it is in none.
    """

    def __init__(self) -> None:
        self.calls: dict[str, list[tuple[float, float, int]]] = {stage: [] for stage in FILE_STAGES}
        self.since: dict[str, float | None] = dict.fromkeys(FILE_STAGES)


class _Here(threading.local):
    """The counts of the thread that looks, and nobody else's."""

    def __init__(self, everyone: list[_Counted]) -> None:
        counted = _Counted()
        everyone.append(counted)
        self.calls, self.since = counted.calls, counted.since


class Meter:
    """Counts the calls of all threads of a worker: each for itself, put together when that is asked for."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._threads: list[_Counted] = []
        self._here = _Here(self._threads)
        self._putting_together = threading.Lock()
        self._busy = {stage: Union(self._started) for stage in FILE_STAGES}
        self._any = Union(self._started)
        self._nbytes = dict.fromkeys(STAGES, 0)

    def timed(self, stage: FileStage, nbytes: int, call: Callable[..., T], *args: Any) -> T:  # noqa: ANN401 - whatever the call takes
        """Make a call that is part of a stage."""
        calls, since = self._here.calls[stage], self._here.since
        outer, began = since[stage], time.perf_counter()
        if outer is None:
            since[stage] = began
        try:
            return call(*args)
        finally:
            calls.append((began, time.perf_counter(), nbytes))
            since[stage] = outer
            if len(calls) > MOST_KEPT and self._putting_together.acquire(blocking=False):
                self._put_together()

    @property
    def doing(self) -> int:
        """What is going on now: a bit for each of `STAGES`."""
        return sum(
            1 << bit
            for bit, stage in enumerate(FILE_STAGES)
            if any(counted.since[stage] is not None for counted in list(self._threads))
        )

    def _put_together(self) -> None:
        """Take what all threads have counted. Whoever calls this has the lock, which is released."""
        try:
            everyone = list(self._threads)
            # Read first: a call that is not in `calls` below began after this.
            settled = min(
                [since for counted in everyone for since in counted.since.values() if since is not None],
                default=time.perf_counter(),
            )
            spans = {stage: self._take(stage, everyone) for stage in FILE_STAGES}
            for stage, taken in spans.items():
                self._busy[stage].add(taken, settled)
            self._any.add(np.concatenate(list(spans.values())), settled)
        finally:
            self._putting_together.release()

    def _take(self, stage: str, everyone: Sequence[_Counted]) -> NDArray[np.float64]:
        """Take the calls of a stage, and count their bytes: (begin, end) of each, (N, 2)."""
        taken: list[tuple[float, float, int]] = []
        for counted in everyone:
            calls = counted.calls[stage]
            num = len(calls)  # more may come meanwhile, behind these
            taken += calls[:num]
            del calls[:num]
        self._nbytes[stage] += sum(nbytes for _, _, nbytes in taken)
        return np.array(taken, np.float64).reshape(-1, 3)[:, :2]

    def finish(self, exchange: Sequence[Span], exchange_nbytes: int) -> Activity:
        """All that was counted, with the times at which bytes travelled, ascending and apart."""
        now = time.perf_counter()
        self._putting_together.acquire()
        self._put_together()
        quiet = self._any.gaps(now)
        exposed = _overlap(quiet, exchange)
        wait = sum(end - begin for begin, end in quiet) - exposed
        busy: dict[str, float] = {stage: union.seconds for stage, union in self._busy.items()}
        seconds = {**busy, "exchange": sum(end - begin for begin, end in exchange), "wait": wait}
        nbytes = {**self._nbytes, "exchange": exchange_nbytes}
        return Activity(now - self._started, seconds, nbytes, exposed)


class Union:
    """The time that at least one of many spans covers; spans come in any order, and late.

    Only those are kept that a later one may still join.
    """

    def __init__(self, started: float) -> None:
        self._seconds = 0.0
        self._end = started
        self._gaps: list[Span] = []
        self._open: NDArray[np.float64] = np.zeros((0, 2))

    def add(self, spans: NDArray[np.float64], settled: float) -> None:
        """Add spans (N, 2); all that come later begin at `settled` or after it."""
        joined = _joined(np.concatenate([self._open, spans]), self._end)
        num_final = int(np.searchsorted(joined[:, 1], settled))
        final, self._open = joined[:num_final], joined[num_final:]
        if num_final:
            self._seconds += float((final[:, 1] - final[:, 0]).sum())
            self._gaps += _gaps(final, self._end)
            self._end = float(final[-1, 1])

    @property
    def seconds(self) -> float:
        """How long it is."""
        return self._seconds + float((self._open[:, 1] - self._open[:, 0]).sum())

    def gaps(self, until: float) -> list[Span]:
        """The time outside of it, from its start on; but for short gaps before the last."""
        end = float(self._open[-1, 1]) if len(self._open) else self._end
        return [*self._gaps, *_gaps(self._open, self._end), (end, until)]


def _joined(spans: NDArray[np.float64], begin: float) -> NDArray[np.float64]:
    """Spans (N, 2) from `begin` on as the fewest that cover the same, ascending."""
    if not len(spans):
        return spans
    spans = np.maximum(spans[np.argsort(spans[:, 0])], begin)
    reach = np.maximum.accumulate(spans[:, 1])
    first = np.flatnonzero(np.r_[True, spans[1:, 0] > reach[:-1]])
    return np.stack([spans[first, 0], reach[np.r_[first[1:], len(spans)] - 1]], axis=1)


def _gaps(spans: NDArray[np.float64], begin: float) -> list[Span]:
    """The gaps before ascending spans, from `begin` on, that are worth remembering."""
    ends = np.r_[begin, spans[:-1, 1]]
    is_long = spans[:, 0] - ends[: len(spans)] > _PAUSE_S
    return [
        (a, b) for a, b in zip(ends[: len(spans)][is_long].tolist(), spans[is_long, 0].tolist(), strict=True)
    ]


def _overlap(left: Sequence[Span], right: Sequence[Span]) -> float:
    """Seconds that are in a span of either side; both ascend."""
    total, i, j = 0.0, 0, 0
    while i < len(left) and j < len(right):
        begin, end = max(left[i][0], right[j][0]), min(left[i][1], right[j][1])
        total += max(end - begin, 0.0)
        if left[i][1] < right[j][1]:
            i += 1
        else:
            j += 1
    return total


@dataclass(frozen=True)
class Summary:
    """The activities of all workers together.

    Attributes:
        seconds: per stage, of the worker that took longest.
        bound_by, busy: the stage that was busiest, and its share of the clock, 0 to 1.
        exchange_hidden: share of the exchange beside which files were at work; None without an exchange.
    """

    seconds: Mapping[str, float]
    nbytes: Mapping[str, int]
    bound_by: str
    busy: float
    exchange_hidden: float | None


def summarize(activities: Sequence[Activity]) -> Summary:
    """Put the workers' activities together."""
    clock = sum(activity.clock_s for activity in activities)
    share = {
        stage: sum(activity.seconds[stage] for activity in activities) / clock if clock else 0.0
        for stage in STAGES
    }
    bound_by = max(STAGES, key=lambda stage: share[stage])
    exchange = sum(activity.seconds["exchange"] for activity in activities)
    exposed = sum(activity.exposed_s for activity in activities)
    return Summary(
        {stage: max(a.seconds[stage] for a in activities) for stage in (*STAGES, "wait")},
        {stage: sum(a.nbytes[stage] for a in activities) for stage in STAGES},
        bound_by,
        share[bound_by],
        1 - exposed / exchange if exchange else None,
    )
