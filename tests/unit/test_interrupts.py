"""What counts as a second interruption, and what as none."""

from __future__ import annotations

import signal
import time

import pytest

from eplb_cli import interrupts
from eplb_cli.interrupts import Interrupts, handled

S = 10**9


@pytest.fixture
def clock(monkeypatch):
    """Seconds that a test says."""
    now = [1.0]
    monkeypatch.setattr(time, "monotonic_ns", lambda: int(now[0] * S))
    monkeypatch.setattr(time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    return now


@pytest.mark.parametrize(
    ("later_s", "is_repeated"),
    [([], False), ([0.0], False), ([0.09], False), ([0.2], True), ([0.05, 0.9], True), ([1.1], False)],
)
def test_a_second_one(clock, later_s, is_repeated):
    """What comes at once is the same one, and what comes after the second is too late."""
    found = Interrupts()
    found.count()
    for seconds in later_s:
        clock[0] = 1.0 + seconds
        found.count()
    assert found.is_repeated() is is_repeated


def test_nobody_waits_where_nothing_came(clock):
    """The second is waited out after a first one only."""
    found = Interrupts()
    assert not found.is_repeated()
    assert clock == [1.0]
    found.count()
    assert not found.is_repeated()
    assert 2.0 < clock[0] < 2.1


def test_one_of_two_processes_counts(clock):
    """The other hears each signal too, perhaps late, and takes it for no second one."""
    judge, command, cells = Interrupts(), Interrupts(), memoryview(bytearray(16)).cast("q")
    for one in (judge, command):
        one.share(cells)
    command.leave_counting()
    command.count()
    clock[0] = 1.3
    judge.count()
    command.count()
    assert list(cells) == [S, 0]
    clock[0] = 1.6
    judge.count()
    assert command.is_repeated()


def test_nohup():
    """What ignores SIGHUP for a command is not undone."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert handled() == [signal.SIGINT, signal.SIGTERM]
    finally:
        signal.signal(signal.SIGHUP, before)
    assert handled() == list(interrupts.SIGNALS)
