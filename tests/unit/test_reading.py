"""Places of a tree, read by threads: each once, in order, small neighbours together, lanes in turn."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from eplb_cli import files
from eplb_cli.checkpoint.places import Places
from eplb_cli.transfer.reading import Wanted, block_nbytes, digest_places, in_order, start_reading
from eplb_cli.transfer.threads import Threads, cut_in_turn
from eplb_cli.transfer.trees import Tree
from tests.support.runs import wait_until

CONTENT = bytes(np.random.default_rng(3).integers(0, 256, 5000, np.uint8))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A file of 5,000 bytes."""
    found = tmp_path_factory.mktemp("reading") / "a"
    found.write_bytes(CONTENT)
    return found


def places_of(extents):
    """Places (offset, bytes) of the one file."""
    offset, nbytes = (np.array(column, np.int64) for column in zip(*extents, strict=True))
    zero = np.zeros(len(offset), np.int64)
    return Places(zero, zero, offset, nbytes)


def read(path, places, size):
    """What every place was given, by its number, and the (offset, bytes) of all reads in one thread."""
    given_to: dict[int, list[tuple[int, bytes]]] = {}
    reads = []

    class Noted(Tree):
        def read(self, number, view, offset):
            reads.append((offset, len(view)))
            super().read(number, view, offset)

    order = in_order(places, np.arange(len(places.nbytes)))

    def take(index, begin, view):
        given_to.setdefault(int(order[index]), []).append((begin, bytes(view)))

    with Noted([path]) as tree, Threads(1) as pool:
        start_reading(Wanted(places, order, size), tree, pool.share, take).wait()
    return given_to, reads


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 90)), min_size=1, max_size=40),
    st.sampled_from([1, 16, 50, 1000]),
)
def test_every_byte_of_every_place(path, steps, size):
    """Whatever gaps and sizes there are: all of a place, in order, from its first byte on."""
    extents, end = [], 0
    for gap, nbytes in steps:
        extents.append((end + gap, nbytes))
        end += gap + nbytes
    given_to, reads = read(path, places_of(extents), size)
    for number, (offset, nbytes) in enumerate(extents):
        parts = given_to.get(number, [])
        assert b"".join(part for _, part in parts) == CONTENT[offset : offset + nbytes]
        assert [begin for begin, _ in parts] == np.cumsum([0, *(len(part) for _, part in parts)])[
            :-1
        ].tolist()
    assert max(nbytes for _, nbytes in [*reads, (0, 0)]) <= size
    assert sum(nbytes for _, nbytes in reads) == sum(nbytes for _, nbytes in extents)


def test_the_more_threads_the_larger_a_block():
    """They share one lock."""
    assert [block_nbytes(threads) >> 20 for threads in (1, 2, 4, 8, 16, 64)] == [2, 2, 2, 4, 8, 8]


def test_neighbours_are_one_read(path):
    """As many as a block holds; a gap, a place of no bytes and a large place begin another."""
    extents = [(0, 30), (30, 30), (60, 30), (90, 30), (130, 20), (150, 0), (150, 20), (170, 250), (420, 10)]
    _, reads = read(path, places_of(extents), 100)
    assert reads == [(0, 90), (90, 30), (130, 20), (150, 20), (170, 100), (270, 100), (370, 50), (420, 10)]


def test_a_place_ends_its_own_boundary(path):
    """Where a thread may not take over, tasks are not cut."""
    sizes = np.full(9, 10 << 20)
    boundary = np.array([1, 0, 0, 1, 0, 0, 1, 0, 0], np.bool_)
    tasks = cut_in_turn(sizes, np.zeros(9, np.int64), boundary)
    assert [(task.start, task.stop) for task in tasks] == [(0, 3), (3, 6), (6, 9)]


def test_lanes_take_turns():
    """Each in its own order, the longer one more often, and no task is of two."""
    lane = np.repeat([0, 1, 3], [4, 2, 1])
    tasks = cut_in_turn(np.full(7, 16 << 20), lane)
    assert [task.start for task in tasks] == [0, 4, 1, 6, 2, 5, 3]
    assert all(task.stop == task.start + 1 for task in tasks)
    assert cut_in_turn(np.zeros(0, np.int64), np.zeros(0, np.int64)) == []


def test_digests_are_those_of_the_bytes(path):
    """And what is done is told once for each place, as all of its bytes."""
    extents = [(0, 1), (1, 3000), (3001, 0), (3001, 1999)]
    told: list[int] = []
    with Tree([path]) as tree, Threads(3) as pool:
        found = digest_places(places_of(extents), np.array([3, 1, 2, 0]), tree, pool, told.append)
    expected = [xxhash.xxh3_128_digest(CONTENT[offset : offset + nbytes]) for offset, nbytes in extents]
    expected[2] = bytes(16)
    assert [digest.tobytes() for digest in found] == expected
    assert sorted(told) == [1, 1999, 3000]


def test_the_first_error_ends_all():
    """No other slice is begun, and the error is raised."""
    begun: list[int] = []

    def work(task: slice) -> None:
        begun.append(task.start)
        if task.start == 1:
            raise ValueError("no")

    with Threads(1) as pool:
        tasks = pool.share(work, [slice(number, number + 1) for number in range(5)])
        with pytest.raises(ValueError, match="no"):
            tasks.wait()
    assert begun == [0, 1]


def test_an_interruption_while_threads_start(monkeypatch):
    """Nothing is begun: the pool would not wait for it."""
    begun: list[int] = []
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt), Threads(2) as pool:
        pool.share(lambda task: begun.append(task.start), [slice(0, 1), slice(1, 2)])
    monkeypatch.undo()
    for thread in threading.enumerate():
        if thread.name.startswith("ThreadPoolExecutor") and thread is not threading.current_thread():
            thread.join(5)
    assert begun == []


def test_a_stopped_pool_stops_at_the_next_block(path):
    """Where its block fails while a thread is at work, that reads no further block."""
    read_some = threading.Event()
    taken: list[int] = []

    def fail() -> None:
        with Tree([path]) as tree, Threads(1) as pool:

            def take(index, begin, view):
                taken.append(begin)
                read_some.set()
                wait_until(lambda: pool._stopped)

            start_reading(Wanted(places_of([(0, 5000)]), np.arange(1), 1000), tree, pool.share, take)
            read_some.wait()
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert taken == [0]


def test_calls_are_counted_once_each(path):
    """What was begun has come back, whatever threads made the calls."""
    before = tuple(files.calls.counts)
    with Tree([path]) as tree, Threads(4) as pool:
        digest_places(
            places_of([(n * 10, 10) for n in range(500)]), np.arange(500), tree, pool, list[int]().append
        )
    after = tuple(files.calls.counts)
    assert after[0] - before[0] == after[1] - before[1] > 0
