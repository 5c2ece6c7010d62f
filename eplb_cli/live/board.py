"""A board: shared memory that all ranks of a host, and their devices, read and write.

Each rank has a block on it, with two words that count its chunks, and its last words where it cannot go on.
A stream that waits for a word of another rank can be let go from the host, by a plain store: whoever waits is
never lost with the one that it waits for.
"""

from __future__ import annotations

import json
import mmap
import os
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from eplb_cli.errors import EplbError, error_of
from eplb_cli.exchange.agree import told_in

_BLOCK_NBYTES = 4096
_PUSHED, _DRAINED, _FAILED, _LEFT, _TEXT = 0, 64, 128, 192, 256
"""Where things are in a block. Words are in cache lines of their own."""

WORD = 1 << 32
"""Words count modulo this."""


class Board:
    """A board that is mapped here.

    Args:
        descriptor: of the shared memory; closed.
        num_ranks: how many ranks have a block.
    """

    def __init__(self, descriptor: int, num_ranks: int) -> None:
        self.nbytes = num_ranks * _BLOCK_NBYTES
        try:
            if os.fstat(descriptor).st_size != self.nbytes:
                raise OSError("it is no board of as many ranks")
            self._memory = mmap.mmap(descriptor, self.nbytes)
        finally:
            os.close(descriptor)
        self._blocks: NDArray[np.uint8] = np.frombuffer(self._memory, np.uint8).reshape(
            num_ranks, _BLOCK_NBYTES
        )
        self.address = self._blocks.ctypes.data

    @classmethod
    def of_process(cls, pid: int, descriptor: int, num_ranks: int) -> Board:
        """The board that another process, or this one, has open. Raises OSError."""
        return cls(os.open(f"/proc/{pid}/fd/{descriptor}", os.O_RDWR | os.O_CLOEXEC), num_ranks)

    @staticmethod
    def create(num_ranks: int) -> int:
        """A descriptor of memory for a board."""
        descriptor = os.memfd_create("eplb-board")
        os.ftruncate(descriptor, num_ranks * _BLOCK_NBYTES)
        return descriptor

    @staticmethod
    def place_of_pushed(rank: int) -> int:
        """Where the word is that says how many chunks a rank has sent, in bytes from the start."""
        return rank * _BLOCK_NBYTES + _PUSHED

    @staticmethod
    def place_of_drained(rank: int) -> int:
        """Where the word is that says how many chunks a rank has taken out of its buffers."""
        return rank * _BLOCK_NBYTES + _DRAINED

    def words(self) -> NDArray[np.uint32]:
        """(2, ranks) chunks pushed and chunks drained; a view."""
        words: NDArray[np.uint32] = self._blocks.view(np.uint32)[:, [_PUSHED // 4, _DRAINED // 4]].T
        return words

    def release(self, number: int) -> None:
        """Let go all that waits for a number up to this, and less than half of all numbers before it."""
        words = self._blocks.view(np.uint32)
        words[:, _PUSHED // 4] = words[:, _DRAINED // 4] = number % WORD

    def fail(self, rank: int, error: EplbError) -> None:
        """A rank cannot go on, and says why; what was said first stands."""
        block = self._blocks[rank]
        if not block[_FAILED]:
            text = told_in(error, _BLOCK_NBYTES - _TEXT - 1)
            block[_TEXT : _TEXT + len(text)] = np.frombuffer(text, np.uint8)
            block[_FAILED] = 1

    def leave(self, rank: int) -> None:
        """A rank has given up all memory of others."""
        self._blocks[rank, _LEFT] = 1

    def is_left(self) -> bool:
        """Whether all ranks have."""
        return bool(self._blocks[:, _LEFT].all())

    def failure(self) -> EplbError | None:
        """What the first of the ranks that cannot go on has said."""
        failed = np.flatnonzero(self._blocks[:, _FAILED])
        if not len(failed):
            return None
        text = bytes(self._blocks[failed[0], _TEXT:]).rstrip(b"\0")
        with suppress(ValueError, TypeError):
            return error_of(*json.loads(text))
        return error_of("EP401", f"the {failed[0] + 1}. rank of this host failed")
