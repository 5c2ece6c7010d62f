"""Ranks of one host that write into each other's memory.

Each rank has a receive buffer that all ranks of its host have mapped, and they share a board with the words
that order them. Both belong to the group and are kept, since making them takes longer than most
rearrangements; `disconnect` gives them back, and so does the end of the group.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch

from eplb_cli.arrays import Int
from eplb_cli.errors import EplbError, WorkerError, error_of
from eplb_cli.live.board import WORD, Board
from eplb_cli.live.driver import Driver, DriverError
from eplb_cli.live.lanes import Lane, stream_here
from eplb_cli.live.watch import Watch

PUSH_TURNS = 4
"""Receive buffers of a rank that sends nothing by way of a buffer: as many as send and receive buffers are
together where nccl carries the messages."""


_ALIGNMENT = 512
"""Of a buffer, so that rows lie in it as they do in tensors: for words as wide."""


class Neighbours:
    """The ranks of this rank's host, this one included, as a rank of the group sees them.

    Attributes:
        ranks: their numbers in the group, ascending.
        num_turns: receive buffers of each.
        turn_nbytes: bytes of one of them.
        buffers: this rank's.
        base: (size of the group, turns) the address of each buffer in this process, 0 for ranks elsewhere.
        lanes: for what comes before, with, after and beside a chunk.
        pushes: the lane on which rows are pushed.
        tells: the lane on which others are told so.
        count: what is reached by the chunks started since the group was connected; the same on all ranks.
    """

    def __init__(
        self,
        ranks: Sequence[int],
        group_size: int,
        me: int,
        num_turns: int,
        turn_nbytes: int,
        device: torch.device,
    ) -> None:
        self.ranks, self.me, self.device = ranks, me, device
        self.num_turns = num_turns
        self.turn_nbytes = turn_nbytes = -(-turn_nbytes // _ALIGNMENT) * _ALIGNMENT
        self.count = 0
        self.is_closed = False
        self.lanes = [Lane(device) for _ in range(4)]
        self.pushes, self.tells = Lane(device), Lane(device)
        self.base = np.zeros((group_size, num_turns), np.int64)
        self._driver = Driver()
        self._mapped: list[int] = []
        self._board: Board | None = None
        self._offered, self._seen_at = -1, 0
        self._watch: Watch | None = None
        self._own = _allocated(self._driver, num_turns * turn_nbytes)
        self._take(me, self._own)
        whole = torch.as_tensor(_Raw(self._own, num_turns * turn_nbytes), device=device)
        self.buffers = [whole.narrow(0, turn * turn_nbytes, turn_nbytes) for turn in range(num_turns)]

    def _take(self, rank: int, address: int) -> None:
        self.base[rank] = address + np.arange(self.num_turns) * self.turn_nbytes

    # making and giving back

    def introduction(self) -> dict[str, Any]:
        """What the others need to map this rank's memory; the first of them has the board."""
        if self.me == self.ranks[0]:
            self._offered = Board.create(len(self.ranks))
        return {"handle": self._driver.export(self._own).hex(), "board": self._offered}

    def meet(self, said: Sequence[dict[str, Any]]) -> None:
        """Map the memory of the others, as they have introduced themselves; in the order of `ranks`.

        Raises:
            DriverError, OSError: it cannot be mapped.
        """
        board = Board.of_process(said[0]["pid"], said[0]["board"], len(self.ranks))
        self._seen_at = self._driver.register(board.address, board.nbytes)
        self._board = board
        for rank, other in zip(self.ranks, said, strict=True):
            if rank != self.me:
                self._mapped.append(self._driver.map(bytes.fromhex(other["handle"])))
                self._take(rank, self._mapped[-1])
        others = {place: said[place]["pid"] for place, rank in enumerate(self.ranks) if rank != self.me}
        self._watch = Watch(board, self.ranks, others)

    def met(self) -> None:
        """All have tried: nobody opens the board any more."""
        if self._offered >= 0:
            os.close(self._offered)

    def close(self) -> None:
        """Give up the memory of others, once nothing on the device uses it."""
        self.is_closed = True
        if self._watch is not None:
            self._watch.stop()
        with torch.cuda.device(self.device):
            for address in self._mapped:
                self._driver.close(address)
            if self._board is not None:
                self._driver.unregister(self._board.address)
                self._board.leave(self.ranks.index(self.me))

    @property
    def is_closed_by_all(self) -> bool:
        """Whether no rank has memory of another mapped any more."""
        return self._board is None or self._board.is_left()

    def free(self) -> None:
        """Give back the memory of this rank, once nobody else has it mapped."""
        self.buffers.clear()
        with torch.cuda.device(self.device):
            self._driver.free(self._own)

    # what a lane does

    def push(self, destination: Int, source: Int, nbytes: Int) -> None:
        """Copy with the copy engines, in the order of the current stream."""
        self._driver.copy(self._current(), destination, source, nbytes)

    def await_pushed(self, ranks: Sequence[int], count: int) -> None:
        """Hold the current stream until ranks have pushed so many chunks."""
        self._await(Board.place_of_pushed, ranks, count)

    def await_drained(self, ranks: Sequence[int], count: int) -> None:
        """Hold the current stream until ranks have taken so many chunks out of their buffers."""
        self._await(Board.place_of_drained, ranks, count)

    def say_pushed(self, count: int) -> None:
        """In the order of the current stream, tell the others that so many chunks are with them."""
        self._say(Board.place_of_pushed, count)

    def say_drained(self, count: int) -> None:
        """In the order of the current stream, tell the others that the buffers of so many chunks are free."""
        self._say(Board.place_of_drained, count)

    def _await(self, place: Callable[[int], int], ranks: Sequence[int], count: int) -> None:
        if count > 0:
            stream = self._current()
            for rank in ranks:
                address = self._seen_at + place(self.ranks.index(rank))
                self._driver.wait_word(stream, address, count % WORD)

    def _say(self, place: Callable[[int], int], count: int) -> None:
        address = self._seen_at + place(self.ranks.index(self.me))
        self._driver.write_word(self._current(), address, count % WORD)

    def _current(self) -> int:
        stream: int = stream_here(self.device).cuda_stream
        return stream

    # a run as a whole

    @property
    def is_broken(self) -> bool:
        """Whether a run has failed since the group was connected."""
        return self._board is None or self._board.failure() is not None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Watch over what is started inside, and return when the device has done it.

        Raises:
            EplbError: this rank or another could not go on; raised by all of them, and what they moved is
                then undefined.
        """
        board, watch = self._board, self._watch
        if board is None or watch is None:
            raise WorkerError("EP401", "the ranks of this host have not met")
        with watch.active(lambda: self.count):
            try:
                yield
                self._settle()
            except BaseException as failure:
                board.fail(self.ranks.index(self.me), _as_error(failure, self.me))
                self._settle()
                raise
        if error := board.failure():
            raise error

    def _settle(self) -> None:
        """Wait for all lanes, whose waiting for others the watch ends."""
        for lane in (*self.lanes, self.pushes, self.tells):
            if lane.stream is not None:
                lane.stream.synchronize()


class _Raw:
    """Memory of the device for torch, which does not own it."""

    def __init__(self, address: int, nbytes: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (nbytes,),
            "typestr": "|u1",
            "data": (address, False),
            "version": 3,
        }


def _allocated(driver: Driver, nbytes: int) -> int:
    """Memory, of which torch gives back what it does not use where that is needed."""
    with suppress(DriverError):
        return driver.allocate(nbytes)
    torch.cuda.empty_cache()
    return driver.allocate(nbytes)


def _as_error(failure: BaseException, rank: int) -> EplbError:
    if isinstance(failure, EplbError):
        return error_of(failure.code, f"rank {rank}: {failure.message}", failure.hint)
    return WorkerError("EP401", f"rank {rank}: {type(failure).__name__}: {failure}")
