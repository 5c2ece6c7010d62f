"""What one worker does with its ranks: exchange, rows that stay, and reading back."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from eplb_cli import files
from eplb_cli.digests import DigestTable, default_threads
from eplb_cli.errors import CheckpointError
from eplb_cli.exchange import Schedule, Transport, Wire, plan_wire, run_exchange, schedule_for
from eplb_cli.pieces import Pieces
from eplb_cli.prepare import Prepared
from eplb_cli.prove import known_digests
from eplb_cli.rows import FileEnds, FileSink, FileSource, Tree, digest_places, worker_of
from eplb_cli.staying import StayingRows

CHUNKS_PER_BUFFER = 4
"""`--buffer-size` is two send and two receive buffers, each of which holds a chunk."""


class Link(Transport, Protocol):
    """A transport together with the buffers it sends from and receives into, two of each."""

    @property
    def send_buffers(self) -> Sequence[memoryview]:
        """What fill writes to."""

    @property
    def receive_buffers(self) -> Sequence[memoryview]:
        """What drain reads from."""


@dataclass(frozen=True)
class TransferOptions:
    """How the bytes are moved; the result does not depend on it.

    Attributes:
        digests: take digests of what is read. verify: read back what was written.
        durable: fsync. buffer_nbytes: all send and receive buffers of one worker.
    """

    num_workers: int
    buffer_nbytes: int
    digests: bool = True
    verify: bool = True
    durable: bool = True


@dataclass(frozen=True, eq=False)
class TransferResult:
    """What one worker did.

    Attributes:
        old_digests, new_digests: (X, 16) by place; zero for places of other workers.
        seconds, nbytes: per stage; "sync" is what the disk took after everything was read back.
        wire_nbytes: bytes sent to other workers.
    """

    old_digests: NDArray[np.uint8]
    new_digests: NDArray[np.uint8]
    seconds: dict[str, float]
    nbytes: dict[str, int]
    wire_nbytes: int
    peak_rss_nbytes: int


def plan_traffic(pieces: Pieces, options: TransferOptions) -> Wire:
    """The wire of a job: the pieces whose two ranks are on different workers, and that lead."""
    sender = worker_of(pieces.src_rank, options.num_workers)
    receiver = worker_of(pieces.dst_rank, options.num_workers)
    leads = pieces.leader == np.arange(len(pieces.leader))
    travels = np.flatnonzero((sender != receiver) & leads)
    return plan_wire(
        travels,
        pieces.cell[travels],
        sender[travels],
        receiver[travels],
        pieces.cell_nbytes,
        options.num_workers,
        max(options.buffer_nbytes // CHUNKS_PER_BUFFER, 1),
    )


def transfer(
    prepared: Prepared,
    staging: Path,
    options: TransferOptions,
    worker: int,
    connect: Callable[[Schedule], Link] | None,
    advance: Callable[[int], None],
) -> TransferResult:
    """Move everything that `worker` sends, receives or keeps, and read its ranks back.

    Args:
        connect: makes the link to the other workers; None where there are none.
        advance: called with the number of bytes written or read back.
    """
    seconds, started = {}, time.perf_counter()
    pieces, old, new = prepared.pieces, prepared.old_places, prepared.new_places
    wire = plan_traffic(pieces, options)
    schedule = schedule_for(wire, worker)
    source = Tree([file.path for file in prepared.checkpoint.shards.files], files.open_source)
    destination = Tree([staging / file.name for file in prepared.output.files], files.open_output)
    old_digests = DigestTable.empty(len(old.rank))
    threads = default_threads(options.num_workers)
    try:
        with ThreadPoolExecutor(threads) as pool, ThreadPoolExecutor(threads) as exchange_pool:
            digests = old_digests if options.digests else None
            known = known_digests(prepared.checkpoint) if options.digests else None
            ends = FileEnds(pieces, old, new, source, destination, pool, digests, advance, known)
            staying, only_digest = _staying(prepared, wire, options.num_workers, worker)
            staying_rows = StayingRows(ends, staying, only_digest)
            copies = staying_rows.start()
            if connect is not None:
                _exchange(replace_pool(ends, exchange_pool), wire, schedule, connect(schedule), staying)
            copies.wait()
            _refuse_changed(prepared, source)
            seconds["transfer"] = time.perf_counter() - started
            mine = (worker_of(new.rank, options.num_workers) == worker) & (new.nbytes > 0)
            mine[staying_rows.shared] = False
            new_digests = _settle(prepared, destination, options, worker, mine, pool, advance, seconds)
            _take_over(pieces, staying_rows.shared, old_digests.values, new_digests)
    finally:
        source.close()
        destination.close()
    wire_nbytes = int(schedule.sends.nbytes.sum())
    mine = worker_of(new.rank, options.num_workers) == worker
    nbytes = {"transfer": int(new.nbytes[mine].sum()), "verify": int(new.nbytes[mine].sum())}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return TransferResult(old_digests.values, new_digests, seconds, nbytes, wire_nbytes, peak)


def _settle(  # noqa: PLR0913, PLR0917 - one stage of transfer, with all that it works on
    prepared: Prepared,
    destination: Tree,
    options: TransferOptions,
    worker: int,
    wanted: NDArray[np.bool_],
    pool: ThreadPoolExecutor,
    advance: Callable[[int], None],
    seconds: dict[str, float],
) -> NDArray[np.uint8]:
    """Read places back while the disk takes them in; digests by place, zero for those not wanted."""
    new = prepared.new_places
    started = time.perf_counter()
    with ThreadPoolExecutor(1) as syncer:
        synced = syncer.submit(_sync, prepared, destination, options, worker)
        digests = DigestTable.empty(len(new.rank)).values
        if options.digests and options.verify:
            digests = digest_places(new, np.flatnonzero(wanted), destination, pool, advance)
        seconds["verify"] = time.perf_counter() - started
        synced.result()
        seconds["sync"] = time.perf_counter() - started - seconds["verify"]
    return digests


def _take_over(
    pieces: Pieces, shared: NDArray[np.int64], old_digests: NDArray[np.uint8], new_digests: NDArray[np.uint8]
) -> None:
    """What shares its blocks with SRC has the digest of SRC."""
    source = np.full(len(new_digests), -1)
    source[pieces.destination] = pieces.source
    new_digests[shared] = old_digests[source[shared]]


def replace_pool(ends: FileEnds, pool: ThreadPoolExecutor) -> FileEnds:
    """The same ends, working in another pool, so that the exchange never queues behind the rest."""
    return replace(ends, pool=pool)


def _exchange(ends: FileEnds, wire: Wire, schedule: Schedule, link: Link, staying: NDArray[np.bool_]) -> None:
    stays = np.zeros(len(ends.old.rank), bool)
    stays[ends.pieces.source[staying]] = True
    source = FileSource(ends, wire.units, schedule.sends, link.send_buffers, stays)
    sink = FileSink(ends, wire.units, schedule.receives, link.receive_buffers)
    run_exchange(schedule.num_chunks, source, link, sink)


def _staying(
    prepared: Prepared, wire: Wire, num_workers: int, worker: int
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Which pieces stay on this worker, and which of its old places are only to be digested."""
    pieces, old = prepared.pieces, prepared.old_places
    here = worker_of(pieces.src_rank, num_workers) == worker
    staying = here & (worker_of(pieces.dst_rank, num_workers) == worker)
    read = np.zeros(len(old.rank), bool)
    read[pieces.source[staying]] = True
    read[pieces.source[wire.piece[wire.sender == worker]]] = True
    mine = (worker_of(old.rank, num_workers) == worker) & (old.nbytes > 0)
    return staying, np.flatnonzero(mine & ~read)


def _refuse_changed(prepared: Prepared, source: Tree) -> None:
    """EP220 where a file of SRC is not the one whose header was read."""
    for number, descriptor in source.opened().items():
        file, status = prepared.checkpoint.shards.files[number], os.fstat(descriptor)
        if (status.st_size, status.st_mtime_ns) != (file.nbytes, file.mtime_ns):
            raise CheckpointError(
                "EP220", f"{file.path} changed while it was read", "let its writer finish first"
            )


def _sync(prepared: Prepared, destination: Tree, options: TransferOptions, worker: int) -> None:
    """Wait until the disk has the worker's files, if that is wanted."""
    for number, file in enumerate(prepared.output.files if options.durable else ()):
        if file.rank % options.num_workers == worker:
            files.sync(destination.descriptor(number), destination.paths[number])
