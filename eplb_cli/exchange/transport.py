"""Messages between workers through torch.distributed: gloo from host memory, nccl from the device."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist

from eplb_cli.exchange.loop import Pending, Span
from eplb_cli.exchange.wire import Message, Schedule
from eplb_cli.values import dataclass

MAX_OFFSETS_PER_ROUND = 64
"""Peers posted at once. With a send and a receive each, a batch has at most 128 operations; batches
of more than about 256 have hung."""


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
) -> Posted:
    """Start exchanging the messages of a chunk, after what is on the current stream (nccl).

    A message to oneself is the caller's.
    """
    works: list[dist.Work] = []
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
        works += dist.batch_isend_irecv(operations) if operations else []
    return Posted(works)


@dataclass(frozen=True)
class Posted:
    """Messages on their way."""

    works: Sequence[dist.Work]

    def wait(self) -> None:
        """Wait for all of them (gloo), or order the current stream after them (nccl)."""
        for work in self.works:
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
        self._spans: list[Span] = []

    def exchange(self, chunk: int, after: Sequence[Pending]) -> Pending:
        """Send and receive a chunk."""
        for pending in after:
            pending.wait()
        schedule = self._schedule
        sends, receives = (
            schedule.messages(schedule.sends, chunk),
            schedule.messages(schedule.receives, chunk),
        )
        began = time.perf_counter()
        post(sends, receives, self._send[chunk % 2], self._receive[chunk % 2], self._group).wait()
        self._spans.append((began, time.perf_counter()))
        return Done()

    def spans(self) -> list[Span]:
        """When messages travelled."""
        return self._spans


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
        self._origin = self._travel.record_event(_timing_event())
        self._origin.synchronize()
        self._origin_s = time.perf_counter()
        self._begins: list[torch.cuda.Event] = []
        self._ends: list[torch.cuda.Event] = []
        self._travelled: list[Posted] = []
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
                self._travelled[chunk - 2].wait()
            _copy(self._send[turn], self._host_send[turn], sends)
        self._travel.wait_stream(self._upload)
        with torch.cuda.stream(self._travel):
            if chunk > 1:
                self._travel.wait_event(self._downloaded[chunk - 2])
            self._begins.append(self._travel.record_event(_timing_event()))
            self._travelled.append(post(sends, receives, self._send[turn], self._receive[turn], self._group))
        with torch.cuda.stream(self._download):
            self._travelled[chunk].wait()
            self._ends.append(self._download.record_event(_timing_event()))
            _copy(self._host_receive[turn], self._receive[turn], receives)
            self._downloaded.append(self._download.record_event())
        return OnDevice(self._downloaded[chunk])

    def spans(self) -> list[Span]:
        """When messages travelled, one chunk after the other; waits for the last."""
        spans, last = [], self._origin_s
        for begin, end in zip(self._begins, self._ends, strict=True):
            end.synchronize()
            times = (self._origin_s + self._origin.elapsed_time(event) / 1e3 for event in (begin, end))
            began, last = (max(one, last) for one in times)
            spans.append((began, last))
        return spans


def _timing_event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


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
