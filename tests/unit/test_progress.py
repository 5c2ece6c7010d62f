"""Bytes that are done: added by any thread, shown now and then."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from eplb_cli import progress
from eplb_cli.progress import Count, telling
from tests.support.runs import wait_until


def test_a_count_is_the_sum_over_all_threads():
    """Whoever looks meanwhile loses nothing."""
    count = Count()

    def work(number: int) -> int:
        for _ in range(2000):
            count.add(number)
        return number

    with ThreadPoolExecutor(6) as pool:
        done = pool.map(work, range(6))
        seen = [count.total for _ in range(50)]
        assert sum(done) == 15
    assert seen == sorted(seen)
    assert count.total == 2000 * 15


def test_the_sum_is_shown_at_the_end():
    """All of it, and an error of the block changes nothing in that."""
    shown: list[int] = []
    with telling(shown.append) as advance:
        advance(3)
        advance(4)
    assert shown[-1] == 7

    def fail() -> None:
        with telling(shown.append) as advance:
            advance(5)
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert shown[-1] == 5


def test_it_is_shown_meanwhile(monkeypatch):
    """Without anybody asking for it."""
    monkeypatch.setattr(progress, "TELL_S", 0.001)
    shown: list[int] = []
    with telling(shown.append) as advance:
        advance(2)
        wait_until(lambda: 2 in shown)


def test_what_the_shower_raises_ends_the_work(monkeypatch):
    """The next call raises it, or the end of the block."""
    monkeypatch.setattr(progress, "TELL_S", 0.001)

    def show(nbytes: int) -> None:
        if nbytes:
            raise BrokenPipeError

    def go_on() -> None:
        with telling(show) as advance:
            while True:
                advance(1)

    with pytest.raises(BrokenPipeError):
        go_on()
    with pytest.raises(BrokenPipeError), telling(show) as advance:
        advance(1)
