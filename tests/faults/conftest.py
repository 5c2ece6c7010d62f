"""How many cases were tried, said at the end of a run; and an end for what would never end."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable

import pytest

from tests.cli.conftest import _plain_terminal, case, eplb

__all__ = ["_plain_terminal", "case", "eplb"]

HANG_S = 120
"""A case that takes so long never ends: every one takes well below a second."""


@pytest.fixture
def watchdog():
    """Call it before each case, or a few: one that hangs becomes an error that shows where."""

    def bark(number, frame):
        raise TimeoutError(f"a case has not ended for {HANG_S} s")

    before = signal.signal(signal.SIGALRM, bark)
    yield lambda: signal.alarm(HANG_S)
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def count(record_property) -> Callable[[str, int], None]:
    """Add to the number of cases of a kind."""
    return lambda kind, number: record_property("cases", (kind, number))


def pytest_terminal_summary(terminalreporter):
    """One line for each kind of case."""
    counts: Counter[str] = Counter()
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        counts.update({value[0]: value[1] for name, value in report.user_properties if name == "cases"})
    for kind, number in sorted(counts.items()):
        terminalreporter.write_line(f"cases: {number:,} {kind}")
