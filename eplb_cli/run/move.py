"""Moving the bytes: in this process, or in the workers of a torchrun job."""

from __future__ import annotations

import time
from itertools import pairwise

import numpy as np

from eplb_cli.arrays import Digests
from eplb_cli.machine import available_memory_nbytes, default_buffer_nbytes, reading_threads, writing_threads
from eplb_cli.output.journal import Known, write_written
from eplb_cli.output.staging import Staging
from eplb_cli.progress import ProgressBar, telling
from eplb_cli.run.preparing import Planned
from eplb_cli.transfer.meter import Summary, summarize
from eplb_cli.transfer.traffic import TransferOptions, largest_chunk_nbytes
from eplb_cli.transfer.transfer import SPANS, TransferResult, transfer_here
from eplb_cli.values import dataclass


@dataclass(frozen=True, eq=False)
class Moved:
    """What the workers did, together: digests by place, and each worker's own numbers.

    Attributes:
        seconds: of each of `SPANS`, from the first worker that is in it until the last one has left it, so
            that they follow each other and add up.
    """

    old_digests: Digests
    new_digests: Digests
    options: TransferOptions
    seconds: dict[str, float]
    activity: Summary
    wire_nbytes: int
    peak_rss_nbytes: list[int]
    peak_anonymous_nbytes: list[int]


def move(planned: Planned, stage: Staging, known: Known, progress: ProgressBar) -> Moved:
    """Move the bytes with whichever backend was chosen."""
    began, options = time.perf_counter(), _options(planned)
    pieces, new = planned.prepared.pieces, planned.prepared.new_places
    total_nbytes = int(pieces.nbytes[~known.written[pieces.destination]].sum())
    if options.digests or stage.resumes:
        write_written(stage.work, known.written, planned.prepared.digest)
    if options.digests and options.verify:
        total_nbytes += int(new.nbytes[~known.written].sum())
    with progress(total_nbytes, planned.backend) as show:
        if planned.backend == "file":
            with telling(show) as advance:
                results = [transfer_here(planned.prepared, stage, options, advance, known)]
        else:
            from eplb_cli.run.in_workers import move_in_workers

            results = move_in_workers(planned, stage, options, known, show)
    return _together(results, options, began)


def _options(planned: Planned) -> TransferOptions:
    """The options of the transfer, found from the machine and the rows where they are left open."""
    request, prepared, workers = planned.request, planned.prepared, planned.num_workers
    needed = largest_chunk_nbytes(prepared.pieces, workers)
    return TransferOptions(
        workers,
        request.buffer_nbytes or default_buffer_nbytes(needed, workers),
        request.threads or writing_threads(workers, prepared.output.num_own),
        request.threads or reading_threads(workers),
        digests=request.digests,
        verify=request.verify and request.digests,
        durable=request.durable,
        # Forgetting costs 0.2 s a GB, so it is done only where the system would have to do it anyway.
        keep_cache=prepared.checkpoint.shards.nbytes + prepared.output.own_nbytes < available_memory_nbytes(),
    )


def _together(results: list[TransferResult], options: TransferOptions, began: float) -> Moved:
    """Put the workers' results together: each digest is the same in all that have it, else zero."""
    ended = [began, *(max(result.ended[stage] for result in results) for stage in SPANS)]
    return Moved(
        np.bitwise_or.reduce([result.old_digests for result in results]),
        np.bitwise_or.reduce([result.new_digests for result in results]),
        options,
        {stage: after - before for stage, (before, after) in zip(SPANS, pairwise(ended), strict=True)},
        summarize([result.activity for result in results]),
        sum(result.wire_nbytes for result in results),
        [result.peak_rss_nbytes for result in results],
        [result.peak_anonymous_nbytes for result in results],
    )
