"""Units, chunks, messages, and the loop that moves them, on pieces in memory."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eplb_cli.exchange import units
from eplb_cli.exchange.landing import landing
from eplb_cli.exchange.loop import Pending, run_exchange
from eplb_cli.exchange.units import FIRST_OF_RAMP, NO_RAMP, STRIPE_ALIGNMENT, Ramp
from eplb_cli.exchange.wire import Parcels, Schedule, Wire, plan_wire, schedule_for
from tests.support.loopback import Later, Loopback, LoopbackError
from tests.support.weights import stream


class Job(NamedTuple):
    """Pieces (cell, sender, receiver) in the order of the wire, and the sizes of their cells."""

    num_workers: int
    pieces: list[tuple[int, int, int]]
    cell_nbytes: list[int]
    chunk_nbytes: int
    ramp: Ramp = NO_RAMP

    def wire(self) -> Wire:
        cell, sender, receiver = np.array(self.pieces, np.int64).reshape(-1, 3).T
        # The caller's numbers need not be positions.
        numbers = np.arange(len(self.pieces)) * 3 + 5
        sizes = np.array(self.cell_nbytes, np.int64)[:, None]
        return plan_wire(
            numbers, cell, sender, receiver, sizes, self.num_workers, self.chunk_nbytes, ramp=self.ramp
        )

    def nbytes(self, number: int) -> int:
        """Bytes of the piece with the caller's number `number`."""
        return self.cell_nbytes[self.pieces[(number - 5) // 3][0]]


@st.composite
def jobs(draw: st.DrawFn, max_row: int = 30, *, to_oneself: bool = True) -> Job:
    num_workers = draw(st.integers(1, 6))
    cell_nbytes = draw(st.lists(st.integers(0, max_row), min_size=1, max_size=3))
    worker = st.integers(0, num_workers - 1)
    piece = st.tuples(st.integers(0, len(cell_nbytes) - 1), worker, worker)
    pieces = [
        (cell, sender, receiver)
        for cell, sender, receiver in sorted(draw(st.lists(piece, max_size=25)), key=lambda piece: piece[0])
        if to_oneself or sender != receiver
    ]
    chunk = st.integers(1, 40) | st.sampled_from([100, 300, 10 * max_row, 1 << 20])
    ramp = draw(st.builds(Ramp, st.booleans(), st.booleans()))
    return Job(num_workers, pieces, cell_nbytes, draw(chunk), ramp)


Where = tuple[int, int, int, int]
"""Unit, piece, position inside the message and bytes of a parcel."""


def all_parcels(parcels: Parcels) -> list[tuple[int, int, int, int, int, int]]:
    """(chunk, peer, unit, piece, position, nbytes) of each parcel, in its order."""
    columns = (parcels.chunk, parcels.peer, parcels.unit, parcels.piece, parcels.position, parcels.nbytes)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def by_chunk(parcels: Parcels) -> dict[int, list[tuple[int, int, int, int, int, int]]]:
    """The parcels of each chunk; none where there are none."""
    found = defaultdict(list)
    for parcel in all_parcels(parcels):
        found[parcel[0]].append(parcel)
    return found


@given(jobs() | jobs(5000))
def test_units_cover_the_rows_that_travel_once(job):
    """The stripes of a cell tile its row in order; a cell without a piece, or without bytes, has none."""
    units = job.wire().units
    stripes = defaultdict(list)
    for cell, start, nbytes in zip(
        units.cell.tolist(), units.start.tolist(), units.nbytes.tolist(), strict=True
    ):
        stripes[cell].append((start, nbytes))
    assert sorted(stripes) == sorted({cell for cell, _, _ in job.pieces if job.cell_nbytes[cell]})
    assert sorted(units.cell.tolist()) == units.cell.tolist()
    for cell, tiles in stripes.items():
        ends = [start + nbytes for start, nbytes in tiles]
        assert [start for start, _ in tiles] == [0, *ends[:-1]]
        assert ends[-1] == job.cell_nbytes[cell]
        assert all(nbytes > 0 for _, nbytes in tiles)
        if max(nbytes for _, nbytes in tiles) > STRIPE_ALIGNMENT:
            assert all(start % STRIPE_ALIGNMENT == 0 for start, _ in tiles)


@given(jobs() | jobs(5000))
def test_chunks_are_runs_of_whole_units(job):
    """Chunks count up from 0; a unit, with all its pieces, is in one of them."""
    units = job.wire().units
    assert np.isin(np.diff(units.chunk), (0, 1)).all()
    assert units.num_chunks == len(set(units.chunk.tolist()))
    assert units.chunk[:1].tolist() in ([], [0])


@given(jobs() | jobs(5000))
def test_no_worker_fills_or_drains_more_than_a_chunk(job):
    """But for a single unit of width 1, which cannot be cut: so `--buffer-size` bounds memory."""
    wire = job.wire()
    units = wire.units
    widths = defaultdict(list)
    for chunk, nbytes in zip(units.chunk.tolist(), units.nbytes.tolist(), strict=True):
        widths[chunk].append(nbytes)
    for worker in range(job.num_workers):
        schedule = schedule_for(wire, worker)
        for parcels in (schedule.sends, schedule.receives):
            for chunk, _, _, _, position, nbytes in all_parcels(parcels):
                assert position + nbytes <= job.chunk_nbytes or widths[chunk] == [1]
                assert position + nbytes <= parcels.buffer_nbytes


def filled(job: Job) -> np.ndarray:
    """(chunks, 2 W) bytes that each worker fills, then bytes that each drains."""
    wire = job.wire()
    sizes = np.zeros((wire.units.num_chunks, 2, job.num_workers), np.int64)
    for worker in range(job.num_workers):
        schedule = schedule_for(wire, worker)
        for side, parcels in enumerate((schedule.sends, schedule.receives)):
            np.maximum.at(sizes[:, side, worker], parcels.chunk, parcels.position + parcels.nbytes)
    return sizes.reshape(len(sizes), 2 * job.num_workers)


def test_a_ramp_doubles_and_halves(monkeypatch):
    """An eighth of a chunk at first and at last, a quarter and a half beside them, whole ones between."""
    monkeypatch.setattr(units, "FIRST_OF_RAMP", 8)
    pieces = [(cell, worker, 1 - worker) for cell in range(6) for worker in (0, 1) for _ in range(4)]
    row = 7 << 17  # times four rows it is seven eighths of a chunk
    job = Job(2, pieces, [row] * 6, (4 << 20) + 500, Ramp(up=True, down=True))
    assert eighths(job) == [1, 2, 4, 7, 7, 7, 7, 4, 2, 1]
    assert eighths(job._replace(ramp=Ramp(up=True))) == [1, 2, 4, 7, 7, 7, 7, 7]
    assert eighths(job._replace(ramp=Ramp(down=True)))[-4:] == [7, 4, 2, 1]


def eighths(job: Job) -> list[float]:
    """What each chunk holds of eighths of a chunk, which is the same on both sides of both workers."""
    sizes = filled(job) / (1 << 19)
    assert (sizes == sizes[:, :1]).all()
    return [float(size) for size in sizes[:, 0]]


@given(jobs(5000))
def test_the_ends_of_a_ramp_are_small(job):
    """As far as stripes of `STRIPE_ALIGNMENT` go."""
    sizes = filled(job._replace(ramp=Ramp(up=True, down=True)))
    most_rows = len(job.pieces)
    room = job.chunk_nbytes // FIRST_OF_RAMP + most_rows * (STRIPE_ALIGNMENT + 16)
    if len(sizes):
        assert max(sizes[0].max(), sizes[-1].max()) <= room


@given(jobs())
def test_both_sides_of_a_message_agree(job):
    """For each pair of workers and chunk: the same units and pieces, in one order, at the same places."""
    wire = job.wire()
    schedules = [schedule_for(wire, worker) for worker in range(job.num_workers)]
    sent: dict[tuple[int, int, int], list[Where]] = defaultdict(list)
    received: dict[tuple[int, int, int], list[Where]] = defaultdict(list)
    for me, schedule in enumerate(schedules):
        for (side, parcels), to_me in zip(
            ((sent, schedule.sends), (received, schedule.receives)), (False, True), strict=True
        ):
            starts = {
                (chunk, message.peer): message.position
                for chunk in range(schedule.num_chunks)
                for message in schedule.messages(parcels, chunk)
            }
            for chunk, peer, unit, piece, position, nbytes in all_parcels(parcels):
                pair = (peer, me) if to_me else (me, peer)
                side[(chunk, *pair)].append((unit, piece, position - starts[chunk, peer], nbytes))
    across = {key: parcels for key, parcels in received.items() if key[1] != key[2]}
    assert {key: parcels for key, parcels in sent.items() if key[1] != key[2]} == across
    assert len({schedule.num_chunks for schedule in schedules}) == 1


@given(jobs() | jobs(5000))
def test_a_sender_knows_where_its_parcels_land(job):
    """From the wire alone: the places that each receiver's own schedule gives them."""
    wire = job.wire()
    schedules = [schedule_for(wire, worker) for worker in range(job.num_workers)]
    places = [
        {(unit, piece): position for _, _, unit, piece, position, _ in all_parcels(schedule.receives)}
        for schedule in schedules
    ]
    for schedule in schedules:
        sends = schedule.sends
        expected = [
            places[peer][unit, piece]
            for peer, unit, piece in zip(
                sends.peer.tolist(), sends.unit.tolist(), sends.piece.tolist(), strict=True
            )
        ]
        assert landing(wire, schedule).tolist() == expected


@given(jobs())
def test_every_byte_of_every_piece_arrives_once(job):
    """Each receiver has one parcel for every unit of a piece's cell."""
    wire = job.wire()
    units_of = defaultdict(list)
    for number, cell in enumerate(wire.units.cell.tolist()):
        units_of[cell].append(number)
    for worker in range(job.num_workers):
        found = Counter(
            (piece, unit) for _, _, unit, piece, _, _ in all_parcels(schedule_for(wire, worker).receives)
        )
        expected = Counter(
            (number * 3 + 5, unit)
            for number, (cell, _, receiver) in enumerate(job.pieces)
            if receiver == worker
            for unit in units_of[cell]
        )
        assert found == expected


@given(jobs())
def test_messages_are_the_chunk_without_overlap(job):
    """Ascending by peer, each a run of the buffer that holds exactly the parcels of that peer."""
    wire = job.wire()
    for worker in range(job.num_workers):
        schedule = schedule_for(wire, worker)
        for parcels in (schedule.sends, schedule.receives):
            for chunk in range(schedule.num_chunks):
                messages = schedule.messages(parcels, chunk)
                peers = [message.peer for message in messages]
                assert peers == sorted(set(peers))
                ends = [message.position + message.nbytes for message in messages]
                assert all(end <= after.position for end, after in zip(ends, messages[1:], strict=False))
                runs = defaultdict(list)
                for at, peer, _, _, position, nbytes in all_parcels(parcels):
                    if at == chunk:
                        runs[peer].append((position, position + nbytes))
                assert sorted(runs) == peers
                for message, end in zip(messages, ends, strict=True):
                    begins, run_ends = zip(*sorted(runs[message.peer]), strict=True)
                    assert (begins[0], run_ends[-1]) == (message.position, end)
                    assert all(one <= two for one, two in zip(run_ends, begins[1:], strict=False))


class Lazy(NamedTuple):
    """Which steps are done only when somebody waits for them."""

    fill: bool
    exchange: bool
    drain: bool


class Memory:
    """Pieces in memory as source and sink, without any order but what the loop asks for.

    A message to oneself is filled into the receive buffer, once that is drained, as live tensors do.
    """

    def __init__(self, job: Job, wire: Wire, schedule: Schedule, loopback: Loopback, lazy: Lazy) -> None:
        self.arrived: dict[int, bytearray] = {}
        self.link = loopback.link(schedule)
        self._job, self._units, self._me, self._lazy = job, wire.units, schedule.worker, lazy
        self._sends, self._receives = (by_chunk(side) for side in (schedule.sends, schedule.receives))
        self._drained: list[Pending] = []

    def fill(self, chunk: int, after: Sequence[Pending]) -> Pending:
        has_own = any(peer == self._me for _, peer, *_ in self._receives[chunk])
        earlier = self._drained[chunk - 2 : chunk - 1] if has_own and chunk >= 2 else []
        return _started(Later(lambda: self._fill(chunk), [*after, *earlier]), lazy=self._lazy.fill)

    def drain(self, chunk: int, after: Sequence[Pending]) -> Pending:
        self._drained.append(_started(Later(lambda: self._drain(chunk), after), lazy=self._lazy.drain))
        return self._drained[-1]

    def _fill(self, chunk: int) -> None:
        for _, _, unit, piece, position, nbytes in self._sends[chunk]:
            self._copy(piece, unit, self.link.send_buffers[chunk % 2], position, nbytes)
        for _, peer, unit, piece, position, nbytes in self._receives[chunk]:
            if peer == self._me:
                self._copy(piece, unit, self.link.receive_buffers[chunk % 2], position, nbytes)

    def _copy(self, piece: int, unit: int, buffer: memoryview, position: int, nbytes: int) -> None:
        start = int(self._units.start[unit])
        row = stream(str(piece), self._job.nbytes(piece))
        buffer[position : position + nbytes] = row[start : start + nbytes]

    def _drain(self, chunk: int) -> None:
        buffer = self.link.receive_buffers[chunk % 2]
        for _, _, unit, piece, position, nbytes in self._receives[chunk]:
            start = int(self._units.start[unit])
            row = self.arrived.setdefault(piece, bytearray(self._job.nbytes(piece)))
            row[start : start + nbytes] = buffer[position : position + nbytes]
        buffer[:] = b"\xdd" * len(buffer)


def _started(later: Later, *, lazy: bool) -> Pending:
    if not lazy:
        later.wait()
    return later


def exchanged(job: Job, lazy: Lazy) -> list[dict[int, bytearray]]:
    """What arrives at each worker."""
    wire = job.wire()
    loopback = Loopback(job.num_workers, lazy=lazy.exchange)

    def work(worker: int) -> dict[int, bytearray]:
        memory = Memory(job, wire, schedule_for(wire, worker), loopback, lazy)
        for drained in run_exchange(wire.units.num_chunks, memory, memory.link, memory):
            drained.wait()
        return memory.arrived

    return loopback.run(work)


@settings(max_examples=1200)
@given(jobs(20), st.builds(Lazy, st.booleans(), st.booleans(), st.booleans()))
def test_pieces_arrive_whole(job, lazy):
    """Whatever the chunks, and whether a step is done at once or only when somebody waits for it."""
    arrived = exchanged(job, lazy)
    for worker, rows in enumerate(arrived):
        assert rows == {
            number * 3 + 5: stream(str(number * 3 + 5), job.cell_nbytes[cell])
            for number, (cell, _, receiver) in enumerate(job.pieces)
            if receiver == worker and job.cell_nbytes[cell]
        }


class TestLoopback:
    """The transport of these tests raises on whatever does not match."""

    JOB = Job(3, [(0, 0, 1), (0, 1, 2), (0, 2, 0)], [10], 40)

    def run(self, tamper) -> None:
        wire = self.JOB.wire()
        loopback = Loopback(3)

        def work(worker: int) -> None:
            schedule = tamper(worker, schedule_for(wire, worker))
            if schedule is not None:
                link = loopback.link(schedule)
                for chunk in range(schedule.num_chunks):
                    link.exchange(chunk, ())

        loopback.run(work)

    def test_what_matches_passes(self):
        """Otherwise the other tests would prove nothing."""
        self.run(lambda _, schedule: schedule)

    @pytest.mark.parametrize("side", ["sends", "receives"])
    def test_one_sided_transfers_are_refused(self, side):
        """A send that nobody receives, and a receive that nobody sends."""
        nothing = schedule_for(Job(3, [], [10], 40).wire(), 1)

        def tamper(worker, schedule):
            parts = {"sends": schedule.sends, "receives": schedule.receives}
            if worker == 1:
                parts[side] = getattr(nothing, side)
            return Schedule(worker, 3, schedule.num_chunks, **parts)

        with pytest.raises(LoopbackError, match="sent"):
            self.run(tamper)

    def test_wrong_sizes_are_refused(self):
        """One byte fewer on one side."""
        short = Job(3, self.JOB.pieces, [9], 40).wire()
        with pytest.raises(LoopbackError, match="sent"):
            self.run(lambda worker, schedule: schedule_for(short, 1) if worker == 1 else schedule)

    def test_missing_and_ended_workers_are_noticed(self):
        """A worker with fewer chunks, and one that does nothing, do not make the others wait for ever."""
        longer = Job(3, self.JOB.pieces, [10], 1).wire()
        for worker, other in ((1, schedule_for(longer, 1)), (2, None)):
            with pytest.raises(LoopbackError):
                self.run(lambda me, schedule, w=worker, o=other: o if me == w else schedule)
