"""Rows of live tensors as source and sink of the exchange.

The chunks, the messages and their order are those of `exchange`; only where bytes come from and go to
differs. On a CUDA device gather, exchange and scatter run on streams of their own, ordered by events;
nothing waits on the host between the first chunk and the last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist

from eplb_cli.arrays import Int
from eplb_cli.exchange.loop import Pending, run_exchange
from eplb_cli.exchange.transport import Done, post
from eplb_cli.exchange.wire import Parcels
from eplb_cli.live.copies import Copies, make_mover
from eplb_cli.live.plan import LivePlan
from eplb_cli.live.tensors import Layers

Chunk = TypeVar("Chunk", int, Int)


class Lane:
    """A CUDA stream on which steps follow each other, or on the CPU just the steps."""

    def __init__(self, stream: torch.cuda.Stream | None) -> None:
        self.stream = stream

    def run(self, step: Callable[[], Pending | None], after: Sequence[Pending]) -> Pending:
        """Run a step after others; on a device, order it after them without waiting here.

        On a device, what a step starts elsewhere is not waited for by the lane: its next step may start
        before that has ended. On the CPU it is waited for here, once: gloo knows no second time.
        """
        with torch.cuda.stream(self.stream) if self.stream is not None else nullcontext():
            for pending in after:
                pending.wait()
            started = step()
            if self.stream is None:
                if started is not None:
                    started.wait()
                return Done()
            return OnStream(self.stream.record_event(), started)

    def follow_current(self) -> None:
        """Order all further steps after what is on the current stream now."""
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream(self.stream.device))


@dataclass(frozen=True)
class OnStream:
    """Work on a stream, and what that has started elsewhere, waited for by whatever stream is current."""

    event: torch.cuda.Event
    started: Pending | None = None

    def wait(self) -> None:
        """Order the current stream after the work."""
        torch.cuda.current_stream().wait_event(self.event)
        if self.started is not None:
            self.started.wait()


class LiveRows:
    """Rows of live tensors, gathered into packed messages and scattered from them.

    Everything that the loop needs is made here: buffers, and the table of all copies on the device.
    Steps of the table: `levels` of direct copies before the first chunk; then for each chunk gather,
    `levels` of direct copies, scatter, and repeat.
    """

    def __init__(self, live: LivePlan, source: Layers, sink: Layers, group: dist.ProcessGroup) -> None:
        self._live, self._group = live, group
        self._tensors = source, sink  # the table has their addresses: they have to live as long as it does
        tensors = [tensor for layer in (*source, *sink) for tensor in layer]
        device = tensors[0].device if tensors else torch.device("cpu")
        schedule = live.schedule
        sizes = schedule.sends.buffer_nbytes, schedule.receives.buffer_nbytes
        self._send, self._receive = (
            [torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2)] for size in sizes
        )
        self._levels = int(live.direct.level.max(initial=-1)) + 1
        self._mover = make_mover(self._copies(source, sink), device)
        self._messages = [
            (schedule.messages(schedule.sends, chunk), schedule.messages(schedule.receives, chunk))
            for chunk in range(schedule.num_chunks)
        ]
        self._lanes = [Lane(_stream(device)) for _ in range(3)]
        self._drained: list[Pending] = []
        self._copied: list[Pending] = []

    def run(self) -> None:
        """Carry the plan out; on a device, whatever follows on the current stream comes after it."""
        self._drained.clear()
        self._copied.clear()
        for lane in self._lanes:
            lane.follow_current()
        before = self._lanes[0].run(lambda: self._steps(range(self._levels)), [])
        run_exchange(self._live.schedule.num_chunks, self, self, self)
        before.wait()

    def fill(self, chunk: int, after: Sequence[Pending]) -> Pending:
        """Gather a chunk, then copy directly what now can be. Own rows go into the receive buffer."""
        first = self._first_step(chunk)
        drained = self._drained[max(chunk - 2, 0) : max(chunk - 1, 0)]
        gathered = self._lanes[0].run(lambda: self._steps(range(first, first + 1)), [*after, *drained])
        direct = range(first + 1, first + 1 + self._levels)
        self._copied.append(self._lanes[0].run(lambda: self._steps(direct), []))
        return gathered

    def exchange(self, chunk: int, after: Sequence[Pending]) -> Pending:
        """Exchange a chunk."""
        send, receive = self._send[chunk % 2], self._receive[chunk % 2]
        return self._lanes[1].run(lambda: post(*self._messages[chunk], send, receive, self._group), after)

    def drain(self, chunk: int, after: Sequence[Pending]) -> Pending:
        """Scatter a chunk over rows that nothing reads any more, and repeat those needed more than once."""
        first = self._first_step(chunk) + 1 + self._levels
        steps = range(first, first + 2)
        drained = self._lanes[2].run(lambda: self._steps(steps), [*after, self._copied[chunk]])
        self._drained.append(drained)
        return drained

    def _steps(self, steps: range) -> None:
        for step in steps:
            self._mover.run(step)

    def _first_step(self, chunk: Chunk) -> Chunk:
        return self._levels + chunk * (self._levels + 3)

    def _copies(self, source: Layers, sink: Layers) -> Copies:
        """The table of all copies, as addresses."""
        live, levels = self._live, self._levels
        sends, own, receives, direct = live.schedule.sends, live.own, live.schedule.receives, live.direct
        width = max((len(layer) for layer in source), default=0)
        origin, target = _Addresses(source, width), _Addresses(sink, width)
        to_send, to_own, from_buffer = (
            _pair_address(buffers, parcels)
            for buffers, parcels in ((self._send, sends), (self._receive, own), (self._receive, receives))
        )
        chunk, cell, arrived, repeat = live.repeated
        whole = live.pieces.cell_nbytes[cell]
        drained = self._first_step(receives.chunk) + 1 + levels
        columns = [
            (self._first_step(sends.chunk), self._row(origin, sends, live.source_row), to_send, sends.nbytes),
            (self._first_step(own.chunk), self._row(origin, own, live.source_row), to_own, own.nbytes),
            (
                np.where(direct.chunk < 0, 0, self._first_step(direct.chunk) + 1) + direct.level,
                origin.of(live.pieces.cell[direct.piece], live.source_row[direct.piece]) + direct.start,
                target.of(live.pieces.cell[direct.piece], live.target_row[direct.piece]) + direct.start,
                direct.nbytes,
            ),
            (drained, from_buffer, self._row(target, receives, live.target_row), receives.nbytes),
            (self._first_step(chunk) + 2 + levels, target.of(cell, arrived), target.of(cell, repeat), whole),
        ]
        joined = (np.concatenate(column) for column in zip(*columns, strict=True))
        return Copies(*joined)

    def _row(self, addresses: _Addresses, parcels: Parcels, row: Int) -> Int:
        """(N,) where each parcel lies in the tensors."""
        units = self._live.units
        return addresses.of(units.cell[parcels.unit], row[parcels.piece]) + units.start[parcels.unit]


class _Addresses:
    """Where the rows of tensors are in memory, by cell."""

    def __init__(self, layers: Layers, width: int) -> None:
        self._base = np.zeros(len(layers) * width, np.int64)
        self._stride = np.zeros(len(layers) * width, np.int64)
        for layer, tensors in enumerate(layers):
            for number, tensor in enumerate(tensors):
                self._base[layer * width + number] = tensor.data_ptr()
                self._stride[layer * width + number] = tensor.stride(0) * tensor.element_size()

    def of(self, cell: Int, row: Int) -> Int:
        """The address of each row."""
        address: Int = self._base[cell] + self._stride[cell] * row
        return address


def _pair_address(buffers: list[torch.Tensor], parcels: Parcels) -> Int:
    """(N,) where each parcel lies in the buffer of its chunk."""
    base = np.array([buffer.data_ptr() for buffer in buffers])
    address: Int = base[parcels.chunk % 2] + parcels.position
    return address


def _stream(device: torch.device) -> torch.cuda.Stream | None:
    return torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
