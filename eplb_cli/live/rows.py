"""Rows of live tensors as source and sink of the exchange.

The chunks, the messages and their order are those of `exchange`; only where bytes come from and go to
differs. On a CUDA device gather, exchange and scatter run on streams of their own, ordered by events;
nothing waits on the host between the first chunk and the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist

from eplb_cli.arrays import Int, stable_order
from eplb_cli.exchange.loop import Pending, run_exchange
from eplb_cli.exchange.transport import Done
from eplb_cli.exchange.wire import Parcels
from eplb_cli.live.connection import Connection
from eplb_cli.live.copies import Copies, make_mover
from eplb_cli.live.link import Link, Pushes
from eplb_cli.live.plan import LivePlan
from eplb_cli.live.tensors import Layers

Chunk = TypeVar("Chunk", int, Int)


class LiveRows:
    """Rows of live tensors, gathered into packed messages and scattered from them.

    Everything that the loop needs is made here: buffers, and the table of all copies on the device.
    Steps of the table: `levels` of direct copies before the first chunk; then for each chunk gather,
    `levels` of direct copies, scatter, and repeat.

    Args:
        live: what this rank does.
        source, sink: the tensors that rows are read from, and written to.
        connection: how the ranks of the group reach each other.
    """

    def __init__(
        self, live: LivePlan, source: Layers, sink: Layers, group: dist.ProcessGroup, connection: Connection
    ) -> None:
        self._live = live
        self._tensors = source, sink  # the table has their addresses: they have to live as long as it does
        tensors = [tensor for layer in (*source, *sink) for tensor in layer]
        device = self.device = tensors[0].device if tensors else torch.device("cpu")
        self._link = Link(live, group, connection, device)
        self._levels = int(live.direct.level.max(initial=-1)) + 1
        copies, self._pushes = self._tables(source, sink)
        self._mover = make_mover(copies, device)
        self._is_busy = np.bincount(copies.step, minlength=self._first_step(live.schedule.num_chunks)) > 0
        self._filled: list[Pending] = []
        self._drained: list[Pending] = []
        self._last: list[Pending] = []

    def start(self) -> None:
        """Start moving, after what is on the current stream."""
        self._filled.clear()
        self._drained.clear()
        link = self._link
        link.start(self._pushes)
        before = link.copies.run(lambda: self._steps(range(self._levels)), [])
        self._last = [before, *run_exchange(self._live.schedule.num_chunks, self, self, self, link.turns)]

    def finish(self) -> None:
        """On a device, let the current stream wait for what was started."""
        for pending in self._last:
            pending.wait()

    def fill(self, chunk: int, after: Sequence[Pending]) -> Pending:
        """Gather a chunk. Own rows go into the receive buffer, which has to be drained before."""
        first = self._first_step(chunk)

        def gather() -> None:
            self._link.hold(chunk, self._drained)
            self._mover.run(first)

        self._filled.append(self._link.fills.run(gather, after) if self._is_busy[first] else Done())
        return self._filled[chunk]

    def exchange(self, chunk: int, after: Sequence[Pending]) -> Pending:
        """Exchange a chunk."""
        return self._link.exchange(chunk, self._filled[chunk], after)

    def drain(self, chunk: int, after: Sequence[Pending]) -> Pending:
        """Scatter a chunk over rows that nothing reads any more, and repeat those needed more than once.

        Rows are copied from place to place before, once all that leave the rank in the chunk have been read.
        """
        copied = self._first_step(chunk) + 1
        scattered = copied + self._levels
        before = self._link.copies.run(
            lambda: self._steps(range(copied, scattered)), [self._filled[chunk], self._link.left(chunk)]
        )

        def scatter() -> None:
            self._steps(range(scattered, scattered + 2), alone=chunk + 1 == self._live.schedule.num_chunks)
            self._link.say_drained(chunk)

        self._drained.append(self._link.drains.run(scatter, [*after, before]))
        return self._drained[chunk]

    def _steps(self, steps: range, *, alone: bool = False) -> None:
        for step in steps:
            self._mover.run(step, alone=alone)

    def _first_step(self, chunk: Chunk) -> Chunk:
        return self._levels + chunk * (self._levels + 3)

    def _tables(self, source: Layers, sink: Layers) -> tuple[Copies, Pushes]:
        """All copies of kernels, or of the host, and all of copy engines, as addresses."""
        live, levels, link = self._live, self._levels, self._link
        sends, own, receives, direct = live.schedule.sends, live.own, live.schedule.receives, live.direct
        width = max((len(layer) for layer in source), default=0)
        origin = _Addresses(source, width)
        target = origin if sink is source else _Addresses(sink, width)
        sent, is_filled = self._row(origin, sends, live.source_row), ~link.is_pushed
        chunk, cell, arrived, repeat = live.repeated
        whole = live.cell_nbytes[cell]
        scattered = self._first_step(receives.chunk) + 1 + levels
        repeated = self._first_step(chunk) + 2 + levels
        columns = [
            tuple(
                column[is_filled]
                for column in (self._first_step(sends.chunk), sent, link.put_at, sends.nbytes)
            ),
            (
                self._first_step(own.chunk),
                self._row(origin, own, live.source_row),
                self._received(own),
                own.nbytes,
            ),
            (
                np.where(direct.chunk < 0, 0, self._first_step(direct.chunk) + 1) + direct.level,
                origin.of(direct.cell, live.source_row[direct.piece]) + direct.start,
                target.of(direct.cell, live.target_row[direct.piece]) + direct.start,
                direct.nbytes,
            ),
            (
                scattered,
                self._received(receives),
                self._row(target, receives, live.target_row),
                receives.nbytes,
            ),
            (repeated, target.of(cell, arrived), target.of(cell, repeat), whole),
        ]
        joined = (np.concatenate(column) for column in zip(*columns, strict=True))
        # Every rank begins with another peer, so that no link has to take what all of them push.
        ranks, pushed = live.schedule.num_workers, np.flatnonzero(link.is_pushed)
        turn = (sends.peer[pushed] - live.schedule.worker) % ranks
        pushed = pushed[stable_order(sends.chunk[pushed] * ranks + turn, live.schedule.num_chunks * ranks)]
        by_engines = (column[pushed] for column in (sends.chunk, link.put_at, sent, sends.nbytes))
        return Copies(*joined), Pushes(*by_engines)

    def _received(self, parcels: Parcels) -> Int:
        """(N,) where each parcel lies in the receive buffer of its chunk."""
        address: Int = self._link.receive_at[parcels.chunk % self._link.turns] + parcels.position
        return address

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
