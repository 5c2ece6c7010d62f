"""What travels when: units, chunks and messages.

A unit is (layer, tensor, byte stripe): the same byte columns of all rows. A chunk is a run of whole
units with all their pieces, so no byte is read in one chunk and written in another. A message is the
part of a chunk that belongs to one pair of workers. All of it is derived from the table of moves, by
every worker alike: this sequence is the wire protocol.

    chunk      0        1        2        3
    fill       ██       ██       ██       ██
    transport     ██       ██       ██       ██
    drain            ██       ██       ██       ██
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from eplb_cli.arrays import Int
from eplb_cli.exchange.units import Units, part_room, plan_units


@dataclass(frozen=True, eq=False)
class Wire:
    """The pieces that travel, columns of shape (M,) by cell and table order, and the units they travel in.

    Attributes:
        piece: the caller's number of each piece.
        cell: the cell of each piece, ascending.
        sender, receiver: workers; the same where a message goes to oneself.
    """

    piece: Int
    cell: Int
    sender: Int
    receiver: Int
    num_workers: int
    units: Units


def plan_wire(  # noqa: PLR0913 - the columns, and three numbers
    piece: Int,
    cell: Int,
    sender: Int,
    receiver: Int,
    cell_nbytes: Int,
    num_workers: int,
    chunk_nbytes: int,
    *,
    ramp: bool = False,
) -> Wire:
    """Cut the pieces into units and chunks.

    Args:
        piece, cell, sender, receiver: (M,) what travels, by cell and table order.
        cell_nbytes: (C,) bytes of a row of each cell.
        chunk_nbytes: what a worker may at most fill, and at most drain, in a chunk.
        ramp: the first chunks grow and the last ones shrink.
    """
    load = _rows_per_worker(cell, sender, receiver, len(cell_nbytes), num_workers)
    units = plan_units(load, cell_nbytes, num_workers, chunk_nbytes, ramp=ramp)
    return Wire(piece, cell, sender, receiver, num_workers, units)


def _rows_per_worker(cell: Int, sender: Int, receiver: Int, num_cells: int, num_workers: int) -> Int:
    """(C, 2 W) rows that each worker fills, then rows that each worker drains, per cell."""
    shape = (num_cells, num_workers)
    filled, drained = (
        np.bincount(cell * num_workers + worker, minlength=num_cells * num_workers).reshape(shape)
        for worker in (sender, receiver)
    )
    return np.concatenate([filled, drained], axis=1)


@dataclass(frozen=True, eq=False)
class Parcels:
    """What one worker fills, or drains: columns of shape (N,), by (chunk, peer, unit, table order).

    Attributes:
        chunk, peer: the message each parcel belongs to.
        unit: index into `Units`.
        piece: the caller's number of the piece.
        position: bytes from the start of the worker's buffer for the chunk.
        nbytes: bytes of the parcel.
    """

    chunk: Int
    peer: Int
    unit: Int
    piece: Int
    position: Int
    nbytes: Int

    def of_chunk(self, chunk: int) -> slice:
        """The parcels of a chunk."""
        return of_chunk(self.chunk, chunk)

    def only(self, chosen: NDArray[np.bool_]) -> Parcels:
        """Some of the parcels, where they are."""
        columns = (self.chunk, self.peer, self.unit, self.piece, self.position, self.nbytes)
        return Parcels(*(column[chosen] for column in columns))

    @cached_property
    def buffer_nbytes(self) -> int:
        """The largest number of bytes in one chunk."""
        return int((self.position + self.nbytes).max(initial=0))


def of_chunk(column: Int, chunk: int) -> slice:
    """Where a chunk is in a column of chunks, which ascends."""
    return slice(*np.searchsorted(column, [chunk, chunk + 1]).tolist())


class Message(NamedTuple):
    """A run of bytes of a chunk's buffer that goes to, or comes from, one peer."""

    peer: int
    position: int
    nbytes: int


@dataclass(frozen=True, eq=False)
class Schedule:
    """One worker's view of the wire."""

    worker: int
    num_workers: int
    num_chunks: int
    sends: Parcels
    receives: Parcels

    def messages(self, parcels: Parcels, chunk: int) -> list[Message]:
        """The messages of a chunk, ascending by peer."""
        part = parcels.of_chunk(chunk)
        peer, position, nbytes = parcels.peer[part], parcels.position[part], parcels.nbytes[part]
        starts = np.flatnonzero(np.diff(peer, prepend=-1))
        lasts = np.r_[starts[1:], len(peer)] - 1 if len(starts) else starts
        return [
            Message(
                int(peer[start]), int(position[start]), int(position[last] + nbytes[last] - position[start])
            )
            for start, last in zip(starts, lasts, strict=True)
        ]


def schedule_for(wire: Wire, worker: int) -> Schedule:
    """What `worker` fills and drains.

    A message to oneself is among the receives only: it is filled straight into the receive buffer.
    """
    return Schedule(
        worker,
        wire.num_workers,
        wire.units.num_chunks,
        _parcels(wire, (wire.sender == worker) & (wire.receiver != worker), wire.receiver),
        _parcels(wire, wire.receiver == worker, wire.sender),
    )


def _parcels(wire: Wire, mine: NDArray[np.bool_], peer: Int) -> Parcels:
    """All (unit, piece) pairs of the chosen pieces, with their places in the buffers."""
    chosen = np.flatnonzero(mine)
    unit, which = pair_by_cell(wire.units.cell, wire.cell[chosen])
    chunk, peers = wire.units.chunk[unit], peer[chosen][which]
    order = np.lexsort((peers, chunk))
    unit, which, chunk, peers = unit[order], which[order], chunk[order], peers[order]
    nbytes = wire.units.nbytes[unit]
    position = _positions(chunk, peers, unit, nbytes)
    return Parcels(chunk, peers, unit, wire.piece[chosen][which], position, nbytes)


def _positions(chunk: Int, peer: Int, unit: Int, nbytes: Int) -> Int:
    """(N,) where each parcel lies in its chunk's buffer: back to back, each (peer, unit) part aligned."""
    if not len(chunk):
        return nbytes
    starts = np.flatnonzero(np.r_[True, (np.diff(unit) != 0) | (np.diff(peer) != 0) | (np.diff(chunk) != 0)])
    part = np.cumsum(np.isin(np.arange(len(chunk)), starts)) - 1
    room = part_room(np.add.reduceat(nbytes, starts))
    before = np.cumsum(room) - room
    chunk_start = before[part[np.searchsorted(chunk, chunk)]]
    within = np.cumsum(nbytes) - nbytes
    position: Int = before[part] - chunk_start + within - within[starts][part]
    return position


def pair_by_cell(unit_cell: Int, piece_cell: Int) -> tuple[Int, Int]:
    """All pairs of a unit and a piece of the same cell, by unit; both columns ascend."""
    begin = np.searchsorted(piece_cell, unit_cell, "left")
    count = np.searchsorted(piece_cell, unit_cell, "right") - begin
    unit = np.repeat(np.arange(len(unit_cell)), count)
    first = np.repeat(np.cumsum(count) - count, count)
    return unit, np.arange(len(unit)) - first + np.repeat(begin, count)
