"""How a step tells of its bytes, and of what has become of the output, whatever shows them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from contextvars import ContextVar

ProgressBar = Callable[[int, str], AbstractContextManager[Callable[[int], None]]]
"""Given a number of bytes and a description: a context that yields what shows the bytes done."""

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB")

NOTHING_WRITTEN = "nothing was written"
REMOVED = "what was written is removed"

command: ContextVar[list[str]] = ContextVar("command", default=[])  # noqa: B039 - nobody changes it
"""The words of the command line, without `eplb`; none where a program calls."""

come_of_it: ContextVar[str] = ContextVar("come_of_it", default=NOTHING_WRITTEN)
"""What is true of the output by now, in words: set by whoever writes it, for whoever ends the command."""


before_bytes: ContextVar[str] = ContextVar("before_bytes", default="")
"""What is going on while no byte is done yet, in words: set by whoever waits, for whoever shows bytes."""


@contextlib.contextmanager
def silent(nbytes: int, description: str) -> Iterator[Callable[[int], None]]:
    """A bar that shows nothing."""
    del nbytes, description
    yield lambda _: None


def accumulate(show: Callable[[int], None]) -> Callable[[int], None]:
    """Turns bytes done since the last call, from any thread, into the sum that `show` takes."""
    done_nbytes, lock = 0, threading.Lock()

    def advance(nbytes: int) -> None:
        nonlocal done_nbytes
        with lock:
            done_nbytes += nbytes
            now_nbytes = done_nbytes
        show(now_nbytes)

    return advance


def bytes_in_words(nbytes: float) -> str:
    """Decimal, three significant digits, at most 7 characters: `999 B`, `1.23 kB`, `21.9 GB`."""
    value, exponent = float(nbytes), 0
    while value >= 999.5 and exponent < len(_UNITS) - 1:  # noqa: PLR2004, 999.5 would round to 1000
        value, exponent = value / 1000, exponent + 1
    digits = f"{value:#.3g}".rstrip(".") if exponent else f"{value:.0f}"
    return f"{digits} {_UNITS[exponent]}"
