"""A board: keys with bytes under them that all hosts see. What it has to do, not who says what."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from eplb_cli.errors import WorkerError

MAX_VALUE_NBYTES = 1 << 30
"""More bytes under one key are a mistake, or not one of ours that speaks."""


class BoardError(Exception):
    """The board did not answer, or not in its own words. A user sees what `Board.lost` makes of it."""


class SupersededError(BoardError):
    """Another run has begun on the board."""


class Board(Protocol):
    """Bytes under names, of which each is set by one host and read by many.

    Keys are words of letters, digits and `-`, with `/` between them. Values have at most `MAX_VALUE_NBYTES`
    bytes. A value appears whole. A host sees its own calls in order, and another's values in the order in
    which they were set.

    Raises, in each call:
        BoardError: it does not answer; no call waits for ever.
        EplbError: what the file system said.
    """

    def set(self, key: str, value: bytes) -> None:
        """Put a value there, in place of what is."""

    def get(self, key: str) -> bytes | None:
        """What is there now; does not wait."""

    def claim(self, key: str, value: bytes) -> bytes:
        """Put a small value there if nothing is, in one step; what is there now, the same for all."""

    def get_many(self, keys: Sequence[str]) -> list[bytes] | None:
        """What is there now under each key; None while one of them has nothing."""

    def remove(self, key: str) -> None:
        """Let nothing be there; it may be that nothing is."""

    def again(self) -> Board:
        """The same board, for another thread: its calls do not wait for those of this one."""

    def lost(self, first: str, why: str) -> WorkerError:
        """EP407 for a board that does not answer; `first` is how host 0 is called."""

    def close(self, *, all_left: bool = False) -> None:
        """No more calls. Never raises.

        Args:
            all_left: nobody reads it any more.
        """
