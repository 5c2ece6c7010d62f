"""Messages between workers through torch.distributed: gloo from host memory, nccl from the device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from eplb_cli.errors import PlanError
from eplb_cli.exchange import Message, Pending, Schedule

MAX_OFFSETS_PER_ROUND = 64
"""Peers posted at once. With a send and a receive each, a batch has at most 128 operations; batches
of more than about 256 have hung."""


def agree(digest: str, group: dist.ProcessGroup, device: torch.device) -> None:
    """Compare a digest over all workers; also the collective that NCCL wants before any batch.

    Raises:
        PlanError: EP302, a worker has another one.
    """
    mine = torch.frombuffer(bytearray.fromhex(digest), dtype=torch.uint8).to(device)
    gathered = [torch.empty_like(mine) for _ in range(group.size())]
    dist.all_gather(gathered, mine, group=group)
    for worker, other in enumerate(gathered):
        if not torch.equal(other, mine):
            raise PlanError(
                "EP302",
                f"workers {group.rank()} and {worker} see different plans or shards",
                "do all workers see the same SRC?",
            )


def rounds(worker: int, num_workers: int) -> Iterator[list[tuple[int, int]]]:
    """Rounds of (peer to send to, peer to receive from), by distance, the same on both sides."""
    for begin in range(0, num_workers, MAX_OFFSETS_PER_ROUND):
        offsets = range(begin, min(begin + MAX_OFFSETS_PER_ROUND, num_workers))
        yield [((worker + offset) % num_workers, (worker - offset) % num_workers) for offset in offsets]


def post(
    sends: Sequence[Message],
    receives: Sequence[Message],
    send_buffer: torch.Tensor,
    receive_buffer: torch.Tensor,
    group: dist.ProcessGroup,
) -> None:
    """Exchange the messages of a chunk; those to oneself are the caller's.

    On return the bytes are there (gloo), or will be before what follows on the current stream (nccl).
    """
    outgoing = {message.peer: message for message in sends}
    incoming = {message.peer: message for message in receives}
    me = group.rank()
    for pairs in rounds(me, group.size()):
        operations = []
        for to, origin in pairs:
            if to != me and (message := outgoing.get(to)):
                view = send_buffer.narrow(0, message.position, message.nbytes)
                operations.append(dist.P2POp(dist.isend, view, dist.get_global_rank(group, to), group))
            if origin != me and (message := incoming.get(origin)):
                view = receive_buffer.narrow(0, message.position, message.nbytes)
                operations.append(dist.P2POp(dist.irecv, view, dist.get_global_rank(group, origin), group))
        for work in dist.batch_isend_irecv(operations) if operations else []:
            work.wait()


class Done:
    """Nothing to wait for."""

    def wait(self) -> None:
        """Return at once."""


class HostLink:
    """Buffers in host memory, exchanged by gloo."""

    def __init__(self, schedule: Schedule, group: dist.ProcessGroup) -> None:
        self._schedule, self._group = schedule, group
        self._send = _pair(schedule.sends.buffer_nbytes)
        self._receive = _pair(schedule.receives.buffer_nbytes)
        self.send_buffers = [host_view(buffer) for buffer in self._send]
        self.receive_buffers = [host_view(buffer) for buffer in self._receive]

    def exchange(self, chunk: int, after: Sequence[Pending]) -> Pending:
        """Send and receive a chunk."""
        for pending in after:
            pending.wait()
        schedule = self._schedule
        sends, receives = (
            schedule.messages(schedule.sends, chunk),
            schedule.messages(schedule.receives, chunk),
        )
        post(sends, receives, self._send[chunk % 2], self._receive[chunk % 2], self._group)
        return Done()


@dataclass(frozen=True)
class OnDevice:
    """Work on a stream, waited for on the host."""

    event: torch.cuda.Event

    def wait(self) -> None:
        """Wait until the event has happened."""
        self.event.synchronize()


class DeviceLink:
    """Pinned buffers, copied to and from the device beside the exchange by nccl."""

    def __init__(self, schedule: Schedule, group: dist.ProcessGroup, device: torch.device) -> None:
        self._schedule, self._group = schedule, group
        sizes = schedule.sends.buffer_nbytes, schedule.receives.buffer_nbytes
        self._host_send, self._host_receive = (_pair(size, pin_memory=True) for size in sizes)
        self._send, self._receive = (_pair(size, device=device) for size in sizes)
        self.send_buffers = [host_view(buffer) for buffer in self._host_send]
        self.receive_buffers = [host_view(buffer) for buffer in self._host_receive]
        self._upload, self._travel, self._download = (_stream(device) for _ in range(3))
        self._travelled: list[torch.cuda.Event] = []
        self._downloaded: list[torch.cuda.Event] = []

    def exchange(self, chunk: int, after: Sequence[Pending]) -> Pending:
        """Start uploading, exchanging and downloading a chunk."""
        for pending in after:
            pending.wait()
        turn = chunk % 2
        sends = self._schedule.messages(self._schedule.sends, chunk)
        receives = self._schedule.messages(self._schedule.receives, chunk)
        with torch.cuda.stream(self._upload):
            if chunk > 1:
                self._upload.wait_event(self._travelled[chunk - 2])
            _copy(self._send[turn], self._host_send[turn], sends)
        self._travel.wait_stream(self._upload)
        with torch.cuda.stream(self._travel):
            if chunk > 1:
                self._travel.wait_event(self._downloaded[chunk - 2])
            post(sends, receives, self._send[turn], self._receive[turn], self._group)
            self._travelled.append(self._travel.record_event())
        self._download.wait_event(self._travelled[chunk])
        with torch.cuda.stream(self._download):
            _copy(self._host_receive[turn], self._receive[turn], receives)
            self._downloaded.append(self._download.record_event())
        return OnDevice(self._downloaded[chunk])


def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def host_view(buffer: torch.Tensor) -> memoryview:
    """The bytes of a tensor in host memory."""
    array: Any = buffer.numpy()
    return memoryview(array)


def _pair(nbytes: int, **options: object) -> list[torch.Tensor]:
    return [torch.empty(nbytes, dtype=torch.uint8, **options) for _ in range(2)]  # type: ignore[call-overload]


def _copy(target: torch.Tensor, origin: torch.Tensor, messages: Sequence[Message]) -> None:
    nbytes = sum(message.nbytes for message in messages)
    target[:nbytes].copy_(origin[:nbytes], non_blocking=True)
