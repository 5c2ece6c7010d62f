"""Watching over a run: nobody waits for a rank that has ended, failed, or does nothing any more."""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np

from eplb_cli.errors import EplbError, WorkerError
from eplb_cli.live.board import WORD, Board

TICK_S = 0.02
RELEASE_S = 0.0001
PATIENCE_S = 600.0
"""How long a run may make no progress at all: as long as nccl waits where nothing else is said."""


_LOOK = "look at its log; weights that were being moved are undefined"


class Watch:
    """A thread that looks at the board while there is a run, and lets streams go that wait in vain.

    Args:
        ranks: the numbers of the ranks on the board in their group.
        pids: their processes, by place on the board.
    """

    def __init__(self, board: Board, ranks: Sequence[int], pids: Mapping[int, int]) -> None:
        self._board, self._ranks = board, ranks
        self._ended = select.poll()
        self._place_of = {}
        for place, pid in pids.items():
            descriptor = os.pidfd_open(pid)
            self._place_of[descriptor] = place
            self._ended.register(descriptor, select.POLLIN)
        self._wanted, self._stopped = threading.Event(), threading.Event()
        self._target: Callable[[], int] = int
        self._thread = threading.Thread(target=self._look, name="eplb-watch", daemon=True)
        self._thread.start()

    @contextmanager
    def active(self, target: Callable[[], int]) -> Iterator[None]:
        """Watch while the block runs.

        Args:
            target: says how many chunks have been started.
        """
        self._target = target
        self._wanted.set()
        try:
            yield
        finally:
            self._wanted.clear()

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        self._wanted.set()
        self._thread.join()
        for descriptor in self._place_of:
            os.close(descriptor)

    def _look(self) -> None:
        while self._wanted.wait() and not self._stopped.is_set():
            seen, since = b"", time.monotonic()
            while self._wanted.is_set() and not self._stopped.wait(TICK_S):
                words = self._board.words().tobytes()
                if words != seen:
                    seen, since = words, time.monotonic()
                if error := self._trouble(time.monotonic() - since):
                    place, told = error
                    self._board.fail(place, told)
                if self._board.failure():
                    self._let_go()

    def _let_go(self) -> None:
        """Release all waits until the run has ended here.

        Again and again: each step that was let go writes the count that it would have reached.
        """
        while self._wanted.is_set() and not self._stopped.is_set():
            self._board.release((self._target() + WORD // 4) % WORD)
            time.sleep(RELEASE_S)

    def _trouble(self, idle_s: float) -> tuple[int, EplbError] | None:
        """Which place on the board is why nobody can go on, and what is to be said of it."""
        behind = ((self._target() - self._board.words().astype(np.int64)) % WORD).max(axis=0)
        for descriptor, _ in self._ended.poll(0):
            place = self._place_of[descriptor]
            if behind[place]:  # one that has done its part may leave before others have done theirs
                return place, WorkerError("EP402", f"rank {self._ranks[place]}: its process ended", _LOOK)
        if idle_s > PATIENCE_S:
            place = int(behind.argmax())
            said = f"rank {self._ranks[place]}: nothing moved for {PATIENCE_S:.0f} s"
            return place, WorkerError("EP403", said, _LOOK)
        return None
