"""What a worker was busy with, on a clock that the test turns."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eplb_cli.transfer import meter
from eplb_cli.transfer.meter import Activity, Meter, Union, summarize


class Clock:
    """Stands for `time.perf_counter`."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s

    def turn(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def clock(monkeypatch):
    found = Clock()
    monkeypatch.setattr("eplb_cli.transfer.meter.time.perf_counter", found)
    return found


def test_stages_one_after_the_other(clock):
    """Seconds and bytes of each, and the pauses between them."""
    found = Meter()
    clock.turn(1)
    found.timed("read", 10, clock.turn, 2)
    found.timed("digest", 10, clock.turn, 3)
    clock.turn(4)
    found.timed("write", 7, clock.turn, 5)
    clock.turn(6)
    activity = found.finish([], 0)
    assert activity.clock_s == 21
    assert activity.seconds == {"read": 2, "digest": 3, "write": 5, "exchange": 0, "wait": 11}
    assert activity.nbytes == {"read": 10, "digest": 10, "write": 7, "exchange": 0}
    assert activity.exposed_s == 0


def test_threads_that_do_the_same_count_once(clock):
    """Two reads, one of which begins within the other, and a write beside them."""
    found = Meter()

    def inner() -> None:
        clock.turn(1)
        found.timed("read", 1, clock.turn, 2)
        found.timed("write", 1, clock.turn, 3)

    found.timed("read", 1, inner)
    activity = found.finish([], 0)
    assert (activity.seconds["read"], activity.seconds["write"], activity.seconds["wait"]) == (6, 3, 0)
    assert activity.clock_s == 6


def test_the_exchange_is_hidden_where_files_are_at_work(clock):
    """Of 100 to 112, files are at work from 102 to 106; bytes travel from 101 to 103 and from 105 to 110."""
    found = Meter()
    clock.turn(2)
    found.timed("read", 1, clock.turn, 4)
    clock.turn(6)
    activity = found.finish([(101.0, 103.0), (105.0, 110.0)], 50)
    assert activity.seconds["exchange"] == 7
    assert activity.exposed_s == 1 + 4
    assert activity.seconds["wait"] == 2 + 6 - 5
    assert activity.nbytes["exchange"] == 50


def test_a_call_that_fails_counts(clock):
    """Its error goes on, and the next call is counted as any other."""
    found = Meter()

    def fail() -> None:
        clock.turn(1)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        found.timed("read", 3, fail)
    clock.turn(1)
    assert found.finish([], 0).seconds["wait"] == 1


def test_threads_add_up(clock, monkeypatch):
    """Bytes are the sum over all threads, however often what they count is put together meanwhile."""
    monkeypatch.setattr(meter, "MOST_KEPT", 7)
    found = Meter()

    def work(nbytes: int) -> None:
        for _ in range(500):
            found.timed("read", nbytes, int)
            found.timed("write", 1, int)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    clock.turn(3)
    activity = found.finish([], 0)
    assert activity.nbytes == {"read": 500 * sum(range(8)), "digest": 0, "write": 4000, "exchange": 0}
    assert activity.seconds["wait"] == 3
    assert found.doing == 0
    assert found.finish([], 0) == activity


def test_what_is_going_on():
    """A bit for each stage that a thread is in, as another thread sees it."""
    found, entered, seen = Meter(), threading.Barrier(3), threading.Event()

    def stay() -> None:
        entered.wait()
        seen.wait()

    with ThreadPoolExecutor(2) as pool:
        for stage in ("digest", "write"):
            pool.submit(found.timed, stage, 1, stay)
        entered.wait()
        assert found.doing == 0b110
        seen.set()
    assert found.doing == 0


spans = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 12)), max_size=25)


@given(st.lists(spans, min_size=1, max_size=5), st.randoms())
def test_a_union_is_what_is_covered(parts, random):
    """Seconds and gaps, whatever order spans come in and wherever they are put together meanwhile."""
    every = sorted((begin, begin + length) for part in parts for begin, length in part)
    found, left = Union(0.0), list(every)
    while left:
        settled = random.randint(0, 75)
        now = [span for span in left if span[0] < settled or random.random() < 0.5]
        left = [span for span in left if span not in now]
        random.shuffle(now)
        settled = min([settled, *(begin for begin, _ in left)])
        found.add(np.array(now, np.float64).reshape(-1, 2), settled)
    covered = {second for begin, end in every for second in range(begin, end)}
    assert found.seconds == len(covered)
    free = [second for begin, end in found.gaps(80.0) for second in range(int(begin), int(end))]
    assert free == [second for second in range(80) if second not in covered]


def activity(clock_s, exposed_s=0.0, **seconds):
    every = {"read": 0.0, "digest": 0.0, "write": 0.0, "exchange": 0.0, "wait": 0.0, **seconds}
    return Activity(clock_s, every, dict.fromkeys(("read", "digest", "write", "exchange"), 5), exposed_s)


def test_workers_together():
    """The longest of each stage, all bytes, and the stage with the largest share of all clocks."""
    one = activity(10.0, 1.0, read=9.0, write=4.0, exchange=2.0)
    two = activity(10.0, 0.5, read=1.0, write=8.0, exchange=4.0)
    found = summarize([one, two])
    assert (found.seconds["read"], found.seconds["write"], found.nbytes["read"]) == (9, 8, 10)
    assert (found.bound_by, found.busy) == ("write", 12 / 20)
    assert found.exchange_hidden == 1 - 1.5 / 6


def test_without_an_exchange():
    """There is nothing to hide; and a run of no length is bound by nothing."""
    assert summarize([activity(0.0)]).exchange_hidden is None
    assert summarize([activity(0.0)]).busy == 0
