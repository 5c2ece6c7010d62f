"""Who was not heard from, and who has failed first: seen by a thread, so nobody waits for one that is gone.

Every host counts up a beat on the board. Host 0 looks whether the others' move, the others whether that of
host 0 does, and all look at what the first that failed has left. No clocks of two machines are compared: a
beat moves or does not, in the time of whoever looks, and of that only the time in which it did look.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from eplb_cli.errors import EplbError, WorkerError
from eplb_cli.hosts.board import Board, BoardError
from eplb_cli.hosts.failure import Failure, failure_from, failure_in

LOST_S = 30.0
"""Seconds without a beat, or without an answer of the board, after which a host is lost."""
PERIOD_S = 0.5
"""Seconds between beats; an error is known to all hosts after about as long."""
FAILURE = "failure"

_LEAST_BEATS = 5
_MAX_DIGITS = 30


def lost_after(timeout_s: float) -> float:
    """Seconds after which a host is lost, where a run has `timeout_s`: before it seems to stand still."""
    return min(LOST_S, timeout_s / 2)


def beat_of(node: int) -> str:
    """The key of a host's beat."""
    return f"beat/{node}"


def bye_of(node: int) -> str:
    """The key under which a host that is done, or that knows of a failure, says so."""
    return f"bye/{node}"


class Watch:
    """The thread, from `__init__` to `end`.

    Args:
        board: one that no other thread uses.
        others: the hosts whose beats this one looks at.
        name_of: how a host is called.
        lost_s: seconds after which a host is lost.

    Attributes:
        lost: the hosts that this one has found to be lost.
    """

    def __init__(
        self, board: Board, node: int, others: list[int], name_of: Callable[[int], str], lost_s: float
    ) -> None:
        self._board = board
        self._node = node
        self._name_of = name_of
        self._lost_s = lost_s
        self._period_s = min(PERIOD_S, lost_s / _LEAST_BEATS)
        self._beats = dict.fromkeys(others, b"")
        self._silent_s = dict.fromkeys(others, 0.0)
        self._failure: Failure | None = None
        self._progress_of = dict.fromkeys(others, 0)
        self.progress = 0
        self.moved_at = 0.0
        self.lost: set[int] = set()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="eplb-watch", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise the error of the first host that failed or was lost, as far as it is known here."""
        if self._failure is not None:
            raise self._failure.error()

    @property
    def has_failed(self) -> bool:
        """Whether `check` raises."""
        return self._failure is not None

    def end(self) -> None:
        """Let the thread end; what the board does not answer is not waited for."""
        self._is_over.set()
        self._thread.join(self._period_s)

    def _run(self) -> None:
        count, looked_at = 0, time.monotonic()
        while not self._is_over.is_set() and self._failure is None:
            try:
                told = self.progress + (sum(self._progress_of.values()) if self._node == 0 else 0)
                self._board.set(beat_of(self._node), b"%d %d" % (count, told))
                now = time.monotonic()
                self._look(min(now - looked_at, 2 * self._period_s))
                looked_at, count = now, count + 1
            except BoardError as error:
                self._failure = failure_from(self._board.lost(self._name_of(0), str(error)))
            except EplbError as error:
                self._failure = failure_from(error)
            else:
                self._is_over.wait(self._period_s)
        self._board.close()

    def _look(self, elapsed_s: float) -> None:
        """What has come in the last `elapsed_s`."""
        found = self._board.get(FAILURE)
        if found is None and (lost := self._first_lost(elapsed_s)) is not None:
            self.lost.add(lost)
            problem = f"{self._name_of(lost)} was not heard from for {self._lost_s:g} s"
            found = self._board.claim(FAILURE, failure_from(WorkerError("EP407", problem)).to_words())
        if found is not None:
            self._failure = failure_in(found)
            self._board.set(bye_of(self._node), b"")

    def _see_progress(self, node: int, beat: bytes) -> None:
        """The work that a beat tells of; host 0 tells of that of all."""
        word = beat.partition(b" ")[2]
        progress = int(word) if word.isdigit() and len(word) < _MAX_DIGITS else 0
        if progress != self._progress_of[node]:
            self._progress_of[node], self.moved_at = progress, time.monotonic()

    def _first_lost(self, elapsed_s: float) -> int | None:
        """A host whose beat stands still, without a goodbye; None also while some have no beat yet."""
        beats = self._board.get_many([beat_of(node) for node in self._beats])
        for node, beat in zip(self._beats, beats or (), strict=False):
            has_moved = beat != self._beats[node]
            self._beats[node] = beat
            self._see_progress(node, beat)
            self._silent_s[node] = 0.0 if has_moved else self._silent_s[node] + elapsed_s
            if self._silent_s[node] > self._lost_s and self._board.get(bye_of(node)) is None:
                return node
        return None
