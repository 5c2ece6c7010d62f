"""What carries the chunks of live tensors from rank to rank.

To ranks far away nccl or gloo carries a message from a send buffer to a receive buffer. Into the receive
buffer of a rank nearby this rank writes itself: large rows are pushed from where they are by the copy
engines, small ones are put there by the kernel that gathers. Two counts of each rank order that, and no
host waits for another:

    pushed       chunks that are with all ranks nearby: these wait for it before they scatter one
    drained      chunks that have left its buffers: who writes into one waits for that, `turns` chunks later
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist

from eplb_cli.arrays import Int
from eplb_cli.errors import PlanError
from eplb_cli.exchange.loop import Pending
from eplb_cli.exchange.transport import Done, post
from eplb_cli.exchange.wire import Parcels, Schedule, of_chunk
from eplb_cli.live.connection import Connection
from eplb_cli.live.lanes import All, Lane
from eplb_cli.live.neighbours import Neighbours
from eplb_cli.live.plan import LivePlan
from eplb_cli.values import dataclass

PUSHED_NBYTES = 128 << 10
"""Rows of as many bytes are pushed by the copy engines, each of which is a command to them; smaller ones are
written by a kernel, which needs no command for each."""


class Link:
    """The way that the chunks of one plan take.

    Attributes:
        turns: buffers that take turns: chunk c uses those of c % turns.
        fills, copies, drains: lanes for what comes before, beside and after the exchange of a chunk.
        receive_at: (turns,) addresses of the receive buffers.
        put_at: (N,) the address at which each parcel of the plan's sends has to be.
        is_pushed: (N,) those that the link puts there itself; all others are the caller's.
    """

    def __init__(
        self, live: LivePlan, group: dist.ProcessGroup, connection: Connection, device: torch.device
    ) -> None:
        sends, receives = live.schedule.sends, live.schedule.receives
        neighbours = connection.neighbours
        if neighbours is None:
            self.turns = 2
            self.fills, self._sends, self.drains = (Lane(device) for _ in range(3))
            self.copies = self.fills
            receive = _buffers(receives.buffer_nbytes, self.turns, device)
        else:
            if receives.buffer_nbytes > neighbours.turn_nbytes:
                problem = f"a chunk has {receives.buffer_nbytes} bytes, and a buffer {neighbours.turn_nbytes}"
                raise PlanError("EP301", problem, "this is an error in eplb: please report it")
            self.turns = neighbours.num_turns
            self.fills, self._sends, self.drains, self.copies = neighbours.lanes
            receive = neighbours.buffers
        self.receive_at = np.array([buffer.data_ptr() for buffer in receive])
        self._left: list[Pending] = []
        turn = sends.chunk % self.turns
        is_near = np.zeros(group.size(), np.bool_)
        is_near[list(connection.near)] = True
        self.is_pushed = is_near[sends.peer] & (sends.nbytes >= PUSHED_NBYTES)
        self.put_at = np.zeros_like(turn)
        self._far, self._near = None, None
        if neighbours is not None:
            self._near = Near(neighbours, live.schedule.num_chunks)
            self.put_at = neighbours.base[sends.peer, turn] + live.landing
        if connection.has_far:
            far = [parcels.only(~is_near[parcels.peer]) for parcels in (sends, receives)]
            self._far = Far(live.schedule, far[0], far[1], receive, group)
            by_buffer = self._far.send_at[turn] + sends.position
            self.put_at = np.where(is_near[sends.peer], self.put_at, by_buffer)

    def start(self, pushes: Pushes) -> None:
        """Begin a run, after what is on the current stream.

        Args:
            pushes: what is pushed, as addresses.
        """
        self._left.clear()
        if self._near is not None:
            self._near.start(pushes)
        for lane in (self.fills, self._sends, self.drains, self.copies):
            lane.follow_current()

    def hold(self, chunk: int, drained: Sequence[Pending]) -> None:
        """Let the current lane wait until the receive buffers of a chunk are free, here and nearby.

        Args:
            drained: the chunks of this run that have left theirs.
        """
        if self._near is not None:
            self._near.hold(chunk)
        elif chunk >= self.turns:
            drained[chunk - self.turns].wait()

    def exchange(self, chunk: int, filled: Pending, after: Sequence[Pending]) -> Pending:
        """Move a chunk, all of which is either pushed or `filled`.

        Args:
            after: what else comes before it is received into its buffers from far away.
        """
        travelled: list[Pending] = []
        if (far := self._far) is not None and far.has_messages(chunk):
            travelled.append(self._sends.run(lambda: far.post(chunk), [filled, *after]))
        if self._near is not None:
            self._left.append(self._near.push(chunk, filled))
            travelled.append(self._near.arrival(chunk))
        return All(travelled)

    def left(self, chunk: int) -> Pending:
        """What is done when the rows that are pushed in a chunk have been read."""
        return self._left[chunk] if self._left else Done()

    def say_drained(self, chunk: int) -> None:
        """In the order of the current lane, say that the receive buffer of a chunk is free."""
        if self._near is not None:
            self._near.say_drained(chunk)


class Far:
    """Messages by way of buffers, for ranks whose memory this rank does not see.

    Attributes:
        send_at: (turns,) addresses of the send buffers.
    """

    def __init__(
        self,
        schedule: Schedule,
        sends: Parcels,
        receives: Parcels,
        receive: Sequence[torch.Tensor],
        group: dist.ProcessGroup,
    ) -> None:
        self._receive, self._group = receive, group
        self._send = _buffers(sends.buffer_nbytes, len(receive), receive[0].device)
        self.send_at = np.array([buffer.data_ptr() for buffer in self._send])
        self._messages = [
            (schedule.messages(sends, chunk), schedule.messages(receives, chunk))
            for chunk in range(schedule.num_chunks)
        ]

    def has_messages(self, chunk: int) -> bool:
        """Whether a chunk has any, to or from this rank."""
        sends, receives = self._messages[chunk]
        return bool(sends) or any(message.peer != self._group.rank() for message in receives)

    def post(self, chunk: int) -> Pending:
        """Start exchanging the messages of a chunk."""
        turn = chunk % len(self._send)
        return post(*self._messages[chunk], self._send[turn], self._receive[turn], self._group)


class Near:
    """Rows that are written into the memory of ranks nearby.

    Chunks are counted from run to run. With its last chunk a run counts up to a multiple of the turns, so
    that chunk c of any run uses the buffers of c % turns.
    """

    def __init__(self, neighbours: Neighbours, num_chunks: int) -> None:
        self._neighbours, self._num_chunks = neighbours, num_chunks
        self._others = [rank for rank in neighbours.ranks if rank != neighbours.me]
        self._first = 0
        self._pushed: list[Pending] = []

    def start(self, pushes: Pushes) -> None:
        """Begin a run, after what is on the current stream, with what needs no other lane."""
        self._pushes, self._first = pushes, self._neighbours.count
        self._neighbours.count = self._count_after(self._num_chunks - 1) if self._num_chunks else self._first
        self._pushed.clear()
        for lane in (self._neighbours.pushes, self._neighbours.tells):
            lane.follow_current()
        self._push_next()

    def hold(self, chunk: int) -> None:
        """Let the current lane wait until the buffers of a chunk are free, on all ranks."""
        free = self._first + chunk + 1 - self._neighbours.num_turns
        self._neighbours.await_drained(self._neighbours.ranks, free)

    def push(self, chunk: int, filled: Pending) -> Pending:
        """Say when a chunk is there, its large rows and the small ones; the next is on its way by then.

        Returns:
            When the large rows have been read.
        """
        self._push_next()
        pushed = self._pushed[chunk]
        self._neighbours.tells.run(
            lambda: self._neighbours.say_pushed(self._count_after(chunk)), [pushed, filled]
        )
        return pushed

    def _push_next(self) -> None:
        """Push the large rows of the next chunk."""
        chunk = len(self._pushed)
        if chunk == self._num_chunks:
            return
        columns = self._pushes.of_chunk(chunk)

        def push() -> None:
            self.hold(chunk)
            self._neighbours.push(*columns)

        self._pushed.append(self._neighbours.pushes.run(push, []) if len(columns[0]) else Done())

    def arrival(self, chunk: int) -> Pending:
        """What waits until a chunk is here from all ranks nearby."""
        return Arrival(self._neighbours, self._others, self._first + chunk + 1)

    def say_drained(self, chunk: int) -> None:
        """In the order of the current lane, say that the receive buffer of a chunk is free."""
        self._neighbours.say_drained(self._count_after(chunk))

    def _count_after(self, chunk: int) -> int:
        """What is said after a chunk."""
        turns, last = self._neighbours.num_turns, self._num_chunks - 1
        return self._first + (chunk + 1 if chunk < last else -(-self._num_chunks // turns) * turns)


class Arrival:
    """A chunk of others."""

    __slots__ = ("_count", "_neighbours", "_ranks")

    def __init__(self, neighbours: Neighbours, ranks: Sequence[int], count: int) -> None:
        self._neighbours, self._ranks, self._count = neighbours, ranks, count

    def wait(self) -> None:
        """Let the current lane wait until it is here."""
        self._neighbours.await_pushed(self._ranks, self._count)


@dataclass(frozen=True, eq=False)
class Pushes:
    """What the copy engines do: contiguous columns of shape (N,), by chunk."""

    chunk: Int
    destination: Int
    source: Int
    nbytes: Int

    def of_chunk(self, chunk: int) -> tuple[Int, Int, Int]:
        """Destinations, sources and sizes of a chunk."""
        part = of_chunk(self.chunk, chunk)
        return self.destination[part], self.source[part], self.nbytes[part]


def _buffers(nbytes: int, turns: int, device: torch.device) -> list[torch.Tensor]:
    return [torch.empty(nbytes, dtype=torch.uint8, device=device) for _ in range(turns)]
