"""How much is read of a file from elsewhere: the one budget that all readers keep to.

A reader names the bytes that its kind of file may have. All else follows from them, and from the bytes that
this one file does have::

    bytes     looked at before anything is read
    values    one for 16 of the bytes that are allowed: numbers, words, lists, objects
    depth     MAX_DEPTH lists and objects in each other
    memory    what is built takes at most MEMORY_FACTOR times the file's own bytes; where they are few,
              MEMORY_FACTOR times SMALL_NBYTES
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from eplb_cli.errors import EplbError

MAX_FILE_NBYTES = 64 << 20
"""Of placements, loads, and whatever names no other number."""

MAX_TOML_NBYTES = 1 << 14
"""Of layouts and models: a few lines, and the time that TOML takes grows faster than its text."""

MAX_DEPTH = 32
MEMORY_FACTOR = 12
SMALL_NBYTES = 8 << 20
MOST_MEMORY_NBYTES = 1 << 30

LIST_NBYTES = 72
OBJECT_NBYTES = 160
KEY_NBYTES = 100
WORD_NBYTES = 56
"""What Python takes for one, without its content. Numbers take what their digits do, a few times."""

_NBYTES_PER_VALUE = 16
_FEW_VALUES = 1 << 16

Fault = Callable[[str], EplbError]
"""The error of a reader's own kind, with its file in it, for a reason."""


class NotReadableError(Exception):
    """A file is not what it should be, or more of it than is read; `line` counts from 1."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.line = line


@dataclass
class Allowance:
    """What may still be built of one file. Every take that goes beyond it raises NotReadableError."""

    values: int
    memory_nbytes: int
    max_values: int

    @classmethod
    def of(cls, file_nbytes: int, limit: int = MAX_FILE_NBYTES) -> Allowance:
        """All that a file of so many bytes has, of a kind that may have `limit`."""
        values = max(limit // _NBYTES_PER_VALUE, _FEW_VALUES)
        memory = min(MEMORY_FACTOR * max(file_nbytes, SMALL_NBYTES), MOST_MEMORY_NBYTES)
        return cls(values, memory, values)

    def take_values(self, count: int, line: int | None = None) -> None:
        """Read so many more values."""
        self.values -= count
        if self.values < 0:
            raise NotReadableError(f"more than {self.max_values:,} values are not read", line)

    def take_memory(self, nbytes: int, line: int | None = None) -> None:
        """Build so much more."""
        self.memory_nbytes -= nbytes
        if self.memory_nbytes < 0:
            raise NotReadableError("it has too many lists, objects or words for its size", line)


@contextlib.contextmanager
def refused(fault: Fault) -> Iterator[None]:
    """Turn a NotReadableError of the block into the reader's own error."""
    try:
        yield
    except NotReadableError as error:
        place = "" if error.line is None else f"line {error.line}: "
        raise fault(place + error.message) from error
