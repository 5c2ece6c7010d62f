"""What a worker is busy with: seconds and bytes of each stage, and how much of the exchange was hidden.

A stage's seconds are those in which at least one thread was in it, so that none of them is more than the
time on the clock, and several of them together are. The share of the clock is how busy the stage was; the
busiest one is what bound the run.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

from eplb_cli.exchange.loop import Span
from eplb_cli.values import dataclass

T = TypeVar("T")
FileStage = Literal["read", "digest", "write"]
STAGES = ("read", "digest", "write", "exchange")

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


class Meter:
    """Counts the calls of all threads of a worker.

    Args:
        watch: called with what is going on whenever that changes: a bit for each of `STAGES`.
    """

    def __init__(self, watch: Callable[[int], None] = lambda _: None) -> None:
        self._watch = watch
        self._lock = threading.Lock()
        self._started = self._quiet_since = time.perf_counter()
        self._active = dict.fromkeys(STAGES, 0)
        self._since = dict.fromkeys(STAGES, 0.0)
        self._seconds = dict.fromkeys(STAGES, 0.0)
        self._nbytes = dict.fromkeys(STAGES, 0)
        self._quiet: list[Span] = []

    def timed(self, stage: FileStage, nbytes: int, call: Callable[..., T], *args: Any) -> T:  # noqa: ANN401 - whatever the call takes
        """Make a call that is part of a stage."""
        self._enter(stage)
        try:
            return call(*args)
        finally:
            self._leave(stage, nbytes)

    def _enter(self, stage: FileStage) -> None:
        with self._lock:
            now = time.perf_counter()
            if not any(self._active.values()) and now - self._quiet_since > _PAUSE_S:
                self._quiet.append((self._quiet_since, now))
            if not self._active[stage]:
                self._since[stage] = now
            self._active[stage] += 1
            self._watch(self._mask)

    def _leave(self, stage: FileStage, nbytes: int) -> None:
        with self._lock:
            now = time.perf_counter()
            self._active[stage] -= 1
            self._nbytes[stage] += nbytes
            if not self._active[stage]:
                self._seconds[stage] += now - self._since[stage]
            if not any(self._active.values()):
                self._quiet_since = now
            self._watch(self._mask)

    @property
    def _mask(self) -> int:
        return sum(1 << bit for bit, stage in enumerate(STAGES) if self._active[stage])

    def finish(self, exchange: Sequence[Span], exchange_nbytes: int) -> Activity:
        """All that was counted, with the times at which bytes travelled, ascending and apart."""
        now = time.perf_counter()
        quiet = [*self._quiet, (self._quiet_since, now)]
        exposed = _overlap(quiet, exchange)
        wait = sum(end - begin for begin, end in quiet) - exposed
        seconds = {**self._seconds, "exchange": sum(end - begin for begin, end in exchange), "wait": wait}
        nbytes = {**self._nbytes, "exchange": exchange_nbytes}
        return Activity(now - self._started, seconds, nbytes, exposed)


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
