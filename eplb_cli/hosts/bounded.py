"""No call to a board waits for ever: another thread makes it, and whoever asked waits with a deadline."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

from eplb_cli.hosts.board import BoardError

T = TypeVar("T")


class _Call:
    """A call that was asked for, and what came of it."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.call = call
        self.is_done = threading.Event()
        self.result: Any = None
        self.error: BaseException | None = None

    def make(self) -> None:
        try:
            self.result = self.call()
        except BaseException as error:  # noqa: BLE001 - it is raised again where the call was asked for
            self.error = error
        self.is_done.set()


def _make_calls(calls: SimpleQueue[_Call | None]) -> None:
    while call := calls.get():
        call.make()


class Caller:
    """A thread that makes one call after the other. It dies with the process, also in the middle of a call.

    Attributes:
        deadline_s: seconds that a call may take.
    """

    def __init__(self, deadline_s: float) -> None:
        self.deadline_s = deadline_s
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._is_silent = False
        threading.Thread(target=_make_calls, args=(self._calls,), name="eplb-board", daemon=True).start()

    def __call__(self, call: Callable[..., T], *args: object) -> T:
        """What `call(*args)` returns or raises. Raises BoardError after the deadline, and ever after."""
        if self._is_silent:
            raise BoardError("an earlier call was not answered")
        asked = _Call(lambda: call(*args))
        self._calls.put(asked)
        if not asked.is_done.wait(self.deadline_s):
            self._is_silent = True
            raise BoardError(f"no answer for {self.deadline_s:g} s")
        if asked.error is not None:
            raise asked.error
        result: T = asked.result
        return result

    def end(self) -> None:
        """Let the thread end after the calls that were asked for."""
        self._calls.put(None)
