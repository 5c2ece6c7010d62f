"""How a step tells of its bytes, and of what has become of the output, whatever shows them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from contextvars import ContextVar

ProgressBar = Callable[[int, str], AbstractContextManager[Callable[[int], None]]]
"""Given a number of bytes and a description: a context that yields what shows the bytes done."""

TELL_S = 0.1
"""Seconds between two calls of what shows the bytes done."""

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB")

NOTHING_WRITTEN = "nothing was written"
REMOVED = "what was written is removed"

command: ContextVar[list[str]] = ContextVar("command", default=[])  # noqa: B039 - nobody changes it
"""The words of the command line, without `eplb`; none where a program calls."""

unsaid: ContextVar[list[str]] = ContextVar("unsaid", default=[])  # noqa: B039 - as above
"""Options of the command that its words do not have, because a variable or a file says them: as words."""

come_of_it: ContextVar[str] = ContextVar("come_of_it", default=NOTHING_WRITTEN)
"""What is true of the output by now, in words: set by whoever writes it, for whoever ends the command."""


before_bytes: ContextVar[str] = ContextVar("before_bytes", default="")
"""What is going on while no byte is done yet, in words: set by whoever waits, for whoever shows bytes."""

is_quiet: ContextVar[bool] = ContextVar("is_quiet", default=False)
"""Whether nobody wants to hear of anything but the result and errors (`-q`)."""

details: ContextVar[Callable[[str, str], None] | None] = ContextVar("details", default=None)
"""What shows `tell` to whoever wants to know how a result came about (`-v`)."""


def tell(kind: str, words: str) -> None:
    """Say what was decided, or which stage has ended: shown with `-v`, and lost without.

    Args:
        kind: a word that all of its kind begin with, as "layout" or "stage".
    """
    if show := details.get():
        show(kind, words)


@contextlib.contextmanager
def silent(nbytes: int, description: str) -> Iterator[Callable[[int], None]]:
    """A bar that shows nothing."""
    del nbytes, description
    yield lambda _: None


class Count:
    """A sum that any thread adds to without waiting for another, and one thread at a time looks at."""

    def __init__(self) -> None:
        self._total = 0
        self._added: list[int] = []
        self.add = self._added.append
        """Adds a number; one step of the interpreter, which no thread can be in the middle of."""

    @property
    def total(self) -> int:
        """The sum of all that was added."""
        num = len(self._added)  # more may come meanwhile, behind these
        self._total += sum(self._added[:num])
        del self._added[:num]
        return self._total


@contextlib.contextmanager
def telling(show: Callable[[int], None]) -> Iterator[Callable[[int], None]]:
    """For a block, what takes bytes done since its last call, from any thread.

    Their sum is shown now and then, and at the end, whatever ends the block. What `show` raises meanwhile is
    raised by the next call.
    """
    count, ended, failed = Count(), threading.Event(), list[Exception]()

    def tell() -> None:
        try:
            while not ended.wait(TELL_S):
                show(count.total)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is not lost
            failed.append(error)

    def advance(nbytes: int) -> None:
        if failed:
            raise failed[0]
        count.add(nbytes)

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield advance
    finally:
        ended.set()
        thread.join()
        if not failed:
            show(count.total)
    advance(0)


def bytes_in_words(nbytes: float) -> str:
    """Decimal, three significant digits, at most 7 characters: `999 B`, `1.23 kB`, `21.9 GB`."""
    value, exponent = float(nbytes), 0
    while value >= 999.5 and exponent < len(_UNITS) - 1:  # noqa: PLR2004, 999.5 would round to 1000
        value, exponent = value / 1000, exponent + 1
    digits = f"{value:#.3g}".rstrip(".") if exponent else f"{value:.0f}"
    return f"{digits} {_UNITS[exponent]}"
