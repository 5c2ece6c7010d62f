"""Several hosts: what each says lies on the board until all have read it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from eplb_cli.errors import EplbError, WorkerError
from eplb_cli.hosts.board import Board, BoardError
from eplb_cli.hosts.failure import failure_of
from eplb_cli.hosts.goodbye import say_goodbye
from eplb_cli.hosts.hosts import Hosts
from eplb_cli.hosts.watch import FAILURE, Watch

FIRST_POLL_S = 0.001
LAST_POLL_S = 0.05
_MAX_LABEL = 200


class Together(Hosts):
    """`Hosts` over a board, after all of them have joined."""

    def __init__(self, node: int, names: tuple[str, ...], board: Board, watch: Watch) -> None:
        super().__init__(node, names)
        self._board = board
        self._watch = watch
        self._num_gathers = 0
        self._has_failed = False

    def gather(self, said: bytes, label: str = "") -> list[bytes]:
        """As `Hosts.gather`.

        The n-th call of each host is one collective. Whoever has all of the n-th knows that all have read the
        one before it, and takes what it had said there away.
        """
        number = self._num_gathers
        self._num_gathers += 1
        heading = label.encode()[:_MAX_LABEL]
        self.check()
        with self._or_lost():
            self._board.set(self._key(number, self.node), bytes([len(heading)]) + heading + said)
            told = self._wait_for([self._key(number, node) for node in range(self.count)])
            if number:
                self._board.remove(self._key(number - 1, self.node))
        begin = 1 + len(heading)
        for node, theirs in enumerate(told):
            if theirs[:begin] != bytes([len(heading)]) + heading:
                there = theirs[1 : 1 + sum(theirs[:1])].decode(errors="replace")
                problem = f"{self.name_of(node)} is at {there!r}, {self.name_of(self.node)} at {label!r}"
                raise WorkerError("EP401", problem, "this is a bug in eplb, please report it")
        return [theirs[begin:] for theirs in told]

    def tell_progress(self, progress: int) -> None:
        """As `Hosts.tell_progress`; the next beat says it."""
        self._watch.progress = progress

    def moved_at(self) -> float:
        """As `Hosts.moved_at`."""
        return self._watch.moved_at

    def check(self) -> None:
        """As `Hosts.check`: the watch has seen it, and nothing is asked here."""
        self._watch.check()

    def fail(self, error: BaseException) -> None:
        """As `Hosts.fail`; of several hosts that fail the first that is on the board counts."""
        if self._has_failed:
            return
        self._has_failed = True
        with contextlib.suppress(BoardError, EplbError):
            self._board.claim(FAILURE, failure_of(error, self.name_of(self.node)).to_words())

    def leave(self, timeout_s: float) -> None:
        """Say goodbye, and wait for the others' as `say_goodbye` has it. Never raises."""
        say_goodbye(self._board, self._watch, self.node, range(1, self.count), timeout_s)

    @staticmethod
    def _key(number: int, node: int) -> str:
        return f"gather/{number}/{node}"

    def _wait_for(self, keys: list[str]) -> list[bytes]:
        poll_s = FIRST_POLL_S
        while (told := self._board.get_many(keys)) is None:
            self.check()
            time.sleep(poll_s)
            poll_s = min(2 * poll_s, LAST_POLL_S)
        return told

    @contextlib.contextmanager
    def _or_lost(self) -> Iterator[None]:
        """EP407 for a board that does not answer; what the watch knows of it comes first."""
        try:
            yield
        except BoardError as error:
            self.check()
            raise self._board.lost(self.name_of(0), str(error)) from error
