"""SIGINT, SIGTERM and SIGHUP: the first ends a command, which keeps what is done; a second one removes that.

One signal may come several times: a terminal and `timeout` send it to every process of a group, and a judge
passes it on (`run/judge`). So there is one who counts, and what comes at once counts as one.
"""

from __future__ import annotations

import signal
import time
from collections.abc import MutableSequence

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SAME_S = 0.1
"""Seconds within which a signal is the same one."""
SECOND_S = 1.0
"""Seconds within which a second one removes what is done."""


class Interrupts:
    """What has come: when the first one did, in monotonic nanoseconds, and whether a second has."""

    def __init__(self) -> None:
        self.cells: MutableSequence[int] | memoryview[int] = [0, 0]
        self._first_ns = 0
        self._is_counting = True

    def begin(self) -> None:
        """Forget what came to an earlier command of this process."""
        self.cells[0] = self.cells[1] = self._first_ns = 0

    def share(self, cells: memoryview[int]) -> None:
        """Keep it in memory that another process sees."""
        self.cells = cells

    def leave_counting(self) -> None:
        """Leave it to the other process to say what is a second one."""
        self._is_counting = False

    def count(self) -> None:
        """A signal has come to this process."""
        now_ns = time.monotonic_ns()
        self.cells[0] = self.cells[0] or now_ns
        if not self._first_ns:
            self._first_ns = now_ns
        elif self._is_counting and SAME_S * 1e9 < now_ns - self._first_ns <= SECOND_S * 1e9:
            self.cells[1] = 1

    def is_repeated(self) -> bool:
        """Whether a second one has come in its time, which this waits for; False where none came at all."""
        while self.cells[0] and not self.cells[1]:
            if time.monotonic_ns() - self.cells[0] > SECOND_S * 1e9:
                return False
            time.sleep(SAME_S / 10)
        return bool(self.cells[1])


interrupts = Interrupts()
"""Those of this command."""


def handled() -> list[signal.Signals]:
    """The signals that end this process: all but SIGHUP where `nohup` has asked for that."""
    return [
        number
        for number in SIGNALS
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN
    ]
