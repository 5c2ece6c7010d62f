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
from numpy.typing import NDArray

from eplb_cli.errors import CheckpointError
from eplb_cli.exchange import (
    Parcels,
    Pending,
    Schedule,
    Units,
    pair_by_cell,
    plan_wire,
    run_exchange,
    schedule_for,
)
from eplb_cli.mover import Copies, make_mover
from eplb_cli.pieces import Pieces, row_pieces
from eplb_cli.plan import LOCAL, REMOTE, ReshardPlan
from eplb_cli.transport import Done, post

Int = NDArray[np.int64]
Layers = Sequence[Sequence[torch.Tensor]]
Chunk = TypeVar("Chunk", int, Int)

CHUNKS_PER_BUFFER = 4

MAX_LEVELS = 3
"""Steps of direct copies in a chunk. Each is a kernel of its own, and three of them reach six in seven of
the rows that stay on their rank; the rest goes through a buffer."""


def check_rows(layers: Layers, num_rows: int) -> CheckpointError | None:
    """What is wrong with live tensors of (num_rows, ...) rows each, None if nothing is."""
    for layer, tensors in enumerate(layers):
        for number, tensor in enumerate(tensors):
            where = f"layer {layer}, tensor {number} {list(tensor.shape)}"
            if tensor.dim() == 0 or tensor.shape[0] != num_rows:
                return CheckpointError(
                    "EP208",
                    f"{where}: dim 0 is not the {num_rows} rows of its rank",
                    "pass expert tensors only",
                )
            if num_rows and tensor.numel() and not _has_rows(tensor):
                return CheckpointError(
                    "EP221",
                    f"{where} with strides {list(tensor.stride())}: its rows overlap or are not contiguous",
                    "pass a contiguous tensor; a scale that all experts share is no expert tensor",
                )
    return None


def _has_rows(tensor: torch.Tensor) -> bool:
    row = tensor[0]
    return row.is_contiguous() and (tensor.shape[0] == 1 or tensor.stride(0) >= row.numel())


def row_nbytes(layers: Layers) -> Int:
    """(L, K) bytes of a row of each tensor; 0 where a layer has fewer tensors than another."""
    sizes = [[_nbytes_of_row(tensor) for tensor in tensors] for tensors in layers]
    width = max((len(row) for row in sizes), default=0)
    return np.array([row + [0] * (width - len(row)) for row in sizes], np.int64).reshape(len(sizes), width)


def _nbytes_of_row(tensor: torch.Tensor) -> int:
    return tensor.numel() // max(tensor.shape[0], 1) * tensor.element_size()


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


@dataclass(frozen=True, eq=False)
class LivePlan:
    """What one rank does with live tensors: parcels of the exchange, and rows copied on the rank.

    Attributes:
        direct: parcels that go from row to row without a buffer; their chunk is -1 where the cell
            does not travel at all, and their peer is the level at which they are safe.
        repeated: rows of the rank that repeat one that arrived: (chunk, cell, from row, to row).
        source_row, target_row: (N,) per piece.
    """

    schedule: Schedule
    units: Units
    pieces: Pieces
    own: Parcels
    direct: Direct
    repeated: Int
    source_row: Int
    target_row: Int


@dataclass(frozen=True, eq=False)
class Direct:
    """Copies from row to row of one cell, columns of shape (N,); chunk -1 comes before all chunks."""

    chunk: Int
    level: Int
    piece: Int
    start: Int
    nbytes: Int


def plan_live(
    plan: ReshardPlan, sizes: Int, rank: int, buffer_nbytes: int, *, in_place: bool = True
) -> LivePlan:
    """Cut a plan of live rows into chunks, and take the view of `rank`.

    Args:
        sizes: (L, K) bytes of a row.
        buffer_nbytes: all send and receive buffers of a rank.
        in_place: rows are overwritten where they are, and rows that repeat a received one are filled;
            otherwise the target is another set of tensors, which gets no repeated rows.
    """
    pieces = row_pieces(plan, sizes)
    source_row = plan.old.row_of_slot[pieces.source % plan.old.num_slots]
    target_row = plan.new.row_of_slot[pieces.destination % plan.new.num_slots]
    leads = pieces.leader == np.arange(len(pieces.leader))
    kind = plan.moves.kind[pieces.move]
    level = local_levels(plan, in_place=in_place)[pieces.move]
    travels = np.flatnonzero((kind == REMOTE) | ((kind == LOCAL) & (level < 0)))
    wire = plan_wire(
        travels,
        pieces.cell[travels],
        pieces.src_rank[travels],
        pieces.dst_rank[travels],
        pieces.cell_nbytes,
        plan.num_ranks,
        buffer_nbytes // CHUNKS_PER_BUFFER,
    )
    schedule = schedule_for(wire, rank)
    mine = pieces.dst_rank == rank
    return LivePlan(
        schedule,
        wire.units,
        pieces,
        schedule.receives.only(schedule.receives.peer == rank),
        _direct(wire.units, pieces, np.flatnonzero((kind == LOCAL) & (level >= 0) & mine), level),
        _repeated(wire.units, pieces, np.flatnonzero(~leads & mine), target_row)
        if in_place
        else np.zeros((4, 0), np.int64),
        source_row,
        target_row,
    )


def local_levels(plan: ReshardPlan, *, in_place: bool) -> Int:
    """(N,) when a LOCAL move can be made from row to row; -1 where it has to go through a buffer.

    A row may be overwritten once no other local move reads it: level 0 are moves to rows that none
    reads, level 1 those that level 0 has made free, and so on, up to `MAX_LEVELS`. Where only cycles are
    left, one move of each goes through a buffer, which frees the others. Rows that travel, to another
    rank or through a buffer, have been gathered before level 0.
    """
    moves = plan.moves
    local = np.flatnonzero(moves.kind == LOCAL)
    levels = np.full(len(moves), -1)
    if not in_place:
        levels[local] = 0
        return levels
    base = moves.layer[local] * plan.old.num_slots
    source, target = base + moves.src_slot[local], base + moves.dst_slot[local]
    readers = np.bincount(source, minlength=plan.old.physical_to_logical.size)
    group = moves.layer[local] * plan.num_ranks + plan.dst_rank[local]
    waiting = np.arange(len(local))
    level = 0
    while len(waiting) and level < MAX_LEVELS:
        ready = readers[target[waiting]] == 0
        if ready.any():
            levels[local[waiting[ready]]] = level
            level += 1
        else:
            ready[np.unique(group[waiting], return_index=True)[1]] = True
        np.subtract.at(readers, source[waiting[ready]], 1)
        waiting = waiting[~ready]
    return levels


def _direct(units: Units, pieces: Pieces, chosen: Int, level: Int) -> Direct:
    """Direct copies by unit, and as whole rows where a cell has no units."""
    cell = pieces.cell[chosen]
    unit, which = pair_by_cell(units.cell, cell)
    alone = chosen[~np.isin(cell, units.cell)]
    piece = np.r_[alone, chosen[which]]
    return Direct(
        np.r_[np.full(len(alone), -1), units.chunk[unit]],
        level[piece],
        piece,
        np.r_[np.zeros(len(alone), np.int64), units.start[unit]],
        np.r_[pieces.nbytes[alone], units.nbytes[unit]],
    )


def _repeated(units: Units, pieces: Pieces, followers: Int, target_row: Int) -> Int:
    """(4, N) chunk that completes the cell, cell, row that arrived, row that repeats it."""
    cell = pieces.cell[followers]
    last_unit = np.searchsorted(units.cell, cell, "right") - 1
    return np.stack(
        [units.chunk[last_unit], cell, target_row[pieces.leader[followers]], target_row[followers]]
    )


class LiveRows:
    """Rows of live tensors, gathered into packed messages and scattered from them.

    Everything that the loop needs is made here: buffers, and the table of all copies on the device.
    Steps of the table: `levels` of direct copies before the first chunk; then for each chunk gather,
    `levels` of direct copies, scatter, and repeat.
    """

    def __init__(self, live: LivePlan, source: Layers, sink: Layers, group: dist.ProcessGroup) -> None:
        self._live, self._group, self._keep = live, group, (source, sink)
        tensors = [tensor for layer in (*source, *sink) for tensor in layer]
        self.device = tensors[0].device if tensors else torch.device("cpu")
        schedule = live.schedule
        sizes = schedule.sends.buffer_nbytes, schedule.receives.buffer_nbytes
        self._send, self._receive = (
            [torch.empty(size, dtype=torch.uint8, device=self.device) for _ in range(2)] for size in sizes
        )
        self._levels = int(live.direct.level.max(initial=-1)) + 1
        self._mover = make_mover(self._copies(source, sink), self.device)
        self._messages = [
            (schedule.messages(schedule.sends, chunk), schedule.messages(schedule.receives, chunk))
            for chunk in range(schedule.num_chunks)
        ]
        self._lanes = [Lane(_stream(self.device)) for _ in range(3)]
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
