"""What one worker does with its ranks: exchange, rows that stay, and reading back."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from eplb_cli.digests import DIGEST_NBYTES
from eplb_cli.exchange.loop import Span, Transport, run_exchange
from eplb_cli.exchange.wire import Schedule, schedule_for
from eplb_cli.machine import PeakMemory
from eplb_cli.output.journal import Journal, Known, WrittenLog
from eplb_cli.output.prepared import Prepared
from eplb_cli.output.staging import Staging
from eplb_cli.transfer.digest_table import DigestTable
from eplb_cli.transfer.file_ends import FileEnds, FileSink, FileSource
from eplb_cli.transfer.meter import Activity, Meter
from eplb_cli.transfer.reading import digest_places
from eplb_cli.transfer.staying import StayingRows
from eplb_cli.transfer.threads import Threads
from eplb_cli.transfer.traffic import TransferOptions, plan_traffic
from eplb_cli.transfer.trees import Tree, source_tree
from eplb_cli.values import dataclass


class Link(Transport, Protocol):
    """A transport together with the buffers it sends from and receives into, two of each."""

    @property
    def send_buffers(self) -> Sequence[memoryview]:
        """What fill writes to."""

    @property
    def receive_buffers(self) -> Sequence[memoryview]:
        """What drain reads from."""

    def spans(self) -> list[Span]:
        """When bytes travelled; ascending, and apart."""


SPANS = ("start", "transfer", "verify", "sync")
"""What a worker does, one after the other; "sync" is what the disk takes once all is read back."""


@dataclass(frozen=True, eq=False)
class TransferResult:
    """What one worker did.

    Attributes:
        old_digests, new_digests: (X, 16) by place; zero for places of other workers.
        ended: when each of `SPANS` ended, by `perf_counter`, which all processes of a machine share.
        wire_nbytes: bytes sent to other workers.
        peak_rss_nbytes, peak_anonymous_nbytes: with and without the pages of files.
    """

    old_digests: NDArray[np.uint8]
    new_digests: NDArray[np.uint8]
    ended: dict[str, float]
    activity: Activity
    wire_nbytes: int
    peak_rss_nbytes: int
    peak_anonymous_nbytes: int


def transfer(  # noqa: PLR0913, PLR0917 - what is left to whoever moves the bytes comes last
    prepared: Prepared,
    staging: Path,
    options: TransferOptions,
    worker: int,
    connect: Callable[[Schedule], Link] | None,
    advance: Callable[[int], None],
    known: Known | None = None,
    log: WrittenLog | None = None,
    meter: Meter | None = None,
) -> TransferResult:
    """Move everything that `worker` sends, receives or keeps, and read its ranks back.

    Args:
        connect: makes the link to the other workers; None where there are none.
        advance: called with the number of bytes written or read back.
        known: what need not be done again. log: where to tell what is done. meter: what counts it all.
    """
    share = _Share(prepared, staging, options, worker, advance, known, meter or Meter())
    with PeakMemory().watched() as memory, share.destination:
        with share.source:
            share.move(connect, log or WrittenLog(prepared.new_places.nbytes))
        share.settle()
    return TransferResult(
        share.old_digests.values,
        share.new_digests,
        share.ended,
        share.activity,
        share.wire_nbytes,
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        memory.nbytes,
    )


def transfer_here(
    prepared: Prepared,
    stage: Staging,
    options: TransferOptions,
    advance: Callable[[int], None],
    known: Known,
    worker: int = 0,
) -> TransferResult:
    """Move everything that `worker` has to do with, in this process, as one for which nothing travels.

    Without digests nobody could trust a journal, and there is none.
    """
    if not options.digests:
        return transfer(prepared, stage.path, options, worker, None, advance, known)
    with closing(Journal(stage.work, str(worker), prepared.digest)) as journal:
        log = WrittenLog(prepared.new_places.nbytes, journal)
        return transfer(prepared, stage.path, options, worker, None, advance, known, log)


class _Share:
    """One worker's share of a job: what is known of it, and what has become of it."""

    def __init__(
        self,
        prepared: Prepared,
        staging: Path,
        options: TransferOptions,
        worker: int,
        advance: Callable[[int], None],
        known: Known | None,
        meter: Meter,
    ) -> None:
        self._prepared, self._options, self._worker, self._advance = prepared, options, worker, advance
        self._hosting = prepared.hosting
        pieces, old, new = prepared.pieces, prepared.old_places, prepared.new_places
        known = known or Known.nothing(len(old.rank), len(new.rank))
        self._meter = meter
        shards, outputs, keep = prepared.checkpoint.shards.files, prepared.output.files, options.keep_cache
        self.source = source_tree(shards, self._meter, keep=keep)
        names = [staging / file.name for file in outputs]
        self.destination = Tree(names, meter=self._meter, keep=keep)
        self._done = known.written[pieces.destination]
        self._wire = plan_traffic(pieces, self._hosting, options.buffer_nbytes, self._done)
        self._shared = np.zeros(0, np.int64)
        self._spans: list[Span] = []
        self.old_digests = DigestTable(known.digests.copy(), self._meter)
        self.new_digests = np.zeros((len(new.rank), DIGEST_NBYTES), np.uint8)
        self.wire_nbytes = 0
        self.ended: dict[str, float] = {}

    @property
    def activity(self) -> Activity:
        """What the worker was busy with until now."""
        return self._meter.finish(self._spans, self.wire_nbytes)

    def move(self, connect: Callable[[Schedule], Link] | None, log: WrittenLog) -> None:
        """Put every row and every other tensor of the worker's new ranks where it belongs."""
        self.ended["start"], threads = time.perf_counter(), self._options.threads
        with log.kept(self._flush), Threads(threads) as pool, Threads(threads) as exchange_pool:
            ends = self._ends(pool, log)
            staying, only_digest = self._staying()
            rows = StayingRows(ends, staying, only_digest)
            copies = rows.start()
            if connect is not None:
                # In a pool of its own, the exchange never queues behind the rest.
                self._exchange(replace(ends, pool=exchange_pool), connect, staying)
            copies.wait()
        self._shared = rows.shared
        self.ended["transfer"] = time.perf_counter()

    def _ends(self, pool: Threads, log: WrittenLog) -> FileEnds:
        prepared, digests = self._prepared, self._options.digests
        return FileEnds(
            prepared.pieces,
            prepared.old_places,
            prepared.new_places,
            self.source,
            self.destination,
            pool,
            self.old_digests if digests else None,
            self._advance,
            log.wrote,
            prepared.checkpoint.known_digests if digests else None,
        )

    def _exchange(
        self, ends: FileEnds, connect: Callable[[Schedule], Link], staying: NDArray[np.bool_]
    ) -> None:
        schedule = schedule_for(self._wire, self._worker)
        link = connect(schedule)
        stays = np.zeros(len(ends.old.rank), bool)
        stays[ends.pieces.source[staying]] = True
        source = FileSource(ends, self._wire.units, schedule.sends, link.send_buffers, stays)
        sink = FileSink(ends, self._wire.units, schedule.receives, link.receive_buffers)
        for drained in run_exchange(schedule.num_chunks, source, link, sink):
            drained.wait()
        self._spans = link.spans()
        self.wire_nbytes = int(schedule.sends.nbytes.sum())

    def _staying(self) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Which pieces stay on this worker, and what of its old ranks is only to be digested.

        That is rows, and other tensors that new ranks do not have from their old rank.
        """
        pieces, old = self._prepared.pieces, self._prepared.old_places
        sender, receiver = self._hosting.ends(pieces.src_rank, pieces.dst_rank)
        staying = (sender == self._worker) & (receiver == self._worker) & ~self._done
        read = np.asarray(self.old_digests.values.any(axis=1))
        read[pieces.source[~self._done]] = True  # by their senders
        checkpoint = self._prepared.checkpoint
        wanted = np.arange(len(old.rank)) < checkpoint.extents.file.size
        wanted[checkpoint.settled_places] = True
        mine = self._hosting.of_old[old.rank] == self._worker
        return staying, np.flatnonzero(mine & (old.nbytes > 0) & wanted & ~read)

    def _writes(self, rank: NDArray[np.int64] | int) -> NDArray[np.bool_]:
        """Whether new ranks are written by this worker."""
        return np.asarray(self._hosting.of_new[rank] == self._worker, np.bool_)

    def settle(self) -> None:
        """Read everything back, unless it shares its blocks with SRC, while the disk takes it in."""
        options, new = self._options, self._prepared.new_places
        with Threads(options.readers) as pool, Threads(1) as syncer:
            synced = syncer.submit(self._sync)
            if options.digests and options.verify:
                pieces = self._prepared.pieces
                wanted = self._writes(new.rank) & (new.nbytes > 0)
                proved = np.r_[self._shared, pieces.destination[self._done]]
                wanted[proved] = False
                places = np.flatnonzero(wanted)
                self.new_digests = digest_places(new, places, self.destination, pool, self._advance)
                self._take_over(proved[self._writes(new.rank[proved])])
            self.ended["verify"] = time.perf_counter()
            synced.result()
        self.ended["sync"] = time.perf_counter()
        for number in self.destination.opened():
            self.destination.forget(number, 0, 0)

    def _take_over(self, places: NDArray[np.int64]) -> None:
        """What shares its blocks with SRC, or was proved before, has the digest of its source."""
        pieces = self._prepared.pieces
        source = np.full(len(self.new_digests), -1)
        source[pieces.destination] = pieces.source
        self.new_digests[places] = self.old_digests.values[source[places]]

    def _sync(self) -> None:
        """Wait until the disk has the worker's files, if that is wanted."""
        for number, file in enumerate(self._prepared.output.files if self._options.durable else ()):
            if file.same_as is None and self._writes(file.rank):
                self.destination.sync(number)

    def _flush(self) -> None:
        """Wait until the disk has what was written so far, if that is wanted."""
        for number in self.destination.opened() if self._options.durable else ():
            self.destination.sync(number)
