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

from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from eplb_cli.arrays import Int, begins, ranges, runs, stable_order
from eplb_cli.exchange.units import NO_RAMP, Ramp, Units, part_room, plan_units
from eplb_cli.values import dataclass


@dataclass(frozen=True, eq=False)
class Wire:
    """The pieces that travel, columns of shape (M,) by group and table order, and the units they travel in.

    Attributes:
        piece: the caller's number of each piece.
        group: the group of each piece, ascending; it has K cells, in all of which the piece has a row.
        sender, receiver: workers; the same where a message goes to oneself.
        unit_group: (U,) the group of each unit.
    """

    piece: Int
    group: Int
    sender: Int
    receiver: Int
    num_workers: int
    units: Units
    unit_group: Int


def plan_wire(  # noqa: PLR0913 - the columns, and three numbers
    piece: Int,
    group: Int,
    sender: Int,
    receiver: Int,
    cell_nbytes: Int,
    num_workers: int,
    chunk_nbytes: int,
    *,
    ramp: Ramp = NO_RAMP,
) -> Wire:
    """Cut the pieces into units and chunks.

    Args:
        piece, group, sender, receiver: (M,) what travels, by group and table order.
        cell_nbytes: (G, K) bytes of a row of each cell. The first cell of group g has number g * K.
        chunk_nbytes: what a worker may at most fill, and at most drain, in a chunk.
        ramp: where chunks are smaller.
    """
    num_groups, cells_per_group = cell_nbytes.shape
    load = _rows_per_worker(group, sender, receiver, num_groups, num_workers)
    of_cell = np.repeat(load, cells_per_group, axis=0)
    units = plan_units(of_cell, cell_nbytes.ravel(), num_workers, chunk_nbytes, ramp)
    unit_group = units.cell // max(cells_per_group, 1)
    return Wire(piece, group, sender, receiver, num_workers, units, unit_group)


def _rows_per_worker(group: Int, sender: Int, receiver: Int, num_groups: int, num_workers: int) -> Int:
    """(G, 2 W) rows of a cell that each worker fills, then rows that each worker drains, per group."""
    shape = (num_groups, num_workers)
    filled, drained = (
        np.bincount(group * num_workers + worker, minlength=num_groups * num_workers).reshape(shape)
        for worker in (sender, receiver)
    )
    return np.concatenate([filled, drained], axis=1)


class Message(NamedTuple):
    """A run of bytes of a chunk's buffer that goes to, or comes from, one peer."""

    peer: int
    position: int
    nbytes: int


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

    def only(self, wanted: NDArray[np.bool_]) -> Parcels:
        """Some of the parcels, where they are."""
        chosen = np.flatnonzero(wanted)  # six columns by places take half as long as by marks
        columns = (self.chunk, self.peer, self.unit, self.piece, self.position, self.nbytes)
        return Parcels(*(column[chosen] for column in columns))

    @cached_property
    def messages(self) -> dict[int, list[Message]]:
        """The messages of each chunk that has some, ascending by peer."""
        first, count = runs(begins(self.chunk) | begins(self.peer))
        last = first + count - 1
        size = self.position[last] + self.nbytes[last] - self.position[first]
        found: dict[int, list[Message]] = {}
        columns = (self.chunk[first], self.peer[first], self.position[first], size)
        for chunk, *message in zip(*(column.tolist() for column in columns), strict=True):
            found.setdefault(chunk, []).append(Message(*message))
        return found

    @cached_property
    def buffer_nbytes(self) -> int:
        """The largest number of bytes in one chunk."""
        return int((self.position + self.nbytes).max(initial=0))


def of_chunk(column: Int, chunk: int) -> slice:
    """Where a chunk is in a column of chunks, which ascends."""
    return slice(*np.searchsorted(column, [chunk, chunk + 1]).tolist())


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
        return parcels.messages.get(chunk, [])


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
    """All (unit, piece) pairs of the chosen pieces, with their places in the buffers.

    Neighbours of one group and peer stay neighbours in every unit: so it is these runs that are put in
    order, and only then taken apart.
    """
    chosen = np.flatnonzero(mine)
    group, peers = wire.group[chosen], peer[chosen]
    begin, count = runs(begins(group) | begins(peers))
    unit, run = pair_by_group(wire.unit_group, group[begin])
    message = wire.units.chunk[unit] * wire.num_workers + peers[begin[run]]
    order = stable_order(message, wire.units.num_chunks * wire.num_workers)
    unit, run, message = unit[order], run[order], message[order]
    begin, count, nbytes = begin[run], count[run], wire.units.nbytes[unit]
    chunk = message // wire.num_workers
    position = _positions(chunk, begins(message) | begins(unit), count * nbytes)
    which = ranges(begin, begin + count)
    columns = (chunk, message % wire.num_workers, unit, position - begin * nbytes, nbytes)
    chunk, peers, unit, position, nbytes = (np.repeat(column, count) for column in columns)
    return Parcels(chunk, peers, unit, wire.piece[chosen[which]], position + which * nbytes, nbytes)


def _positions(chunk: Int, begins_part: NDArray[np.bool_], nbytes: Int) -> Int:
    """(N,) where each run lies in its chunk's buffer: back to back, each (peer, unit) part aligned."""
    first, count = runs(begins_part)
    part_nbytes = np.add.reduceat(nbytes, first)
    room = nbytes.copy()
    room[first + count - 1] += part_room(part_nbytes) - part_nbytes
    before = np.cumsum(room) - room
    position: Int = before - before[np.searchsorted(chunk, chunk)]
    return position


def pair_by_group(unit_group: Int, piece_group: Int) -> tuple[Int, Int]:
    """All pairs of a unit and a piece of the same group, by unit; pieces are by group."""
    begin = np.searchsorted(piece_group, unit_group, "left")
    end = np.searchsorted(piece_group, unit_group, "right")
    return np.repeat(np.arange(len(unit_group)), end - begin), ranges(begin, end)
