"""Moving the bytes: in this process, or in the workers of a torchrun job."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise

import numpy as np

from eplb_cli import files
from eplb_cli.arrays import Digests
from eplb_cli.digests import DIGEST_NBYTES
from eplb_cli.errors import WorkerError
from eplb_cli.machine import available_memory_nbytes, default_buffer_nbytes, default_threads
from eplb_cli.output.journal import LAUNCHER, Known, write_written
from eplb_cli.output.staging import Staging
from eplb_cli.placements.own_format import placement_to_json
from eplb_cli.progress import ProgressBar, accumulate
from eplb_cli.run.job import Job, Outcome, leave_digests, shared_memory, take_digests
from eplb_cli.run.launch import launch
from eplb_cli.run.preparing import Planned
from eplb_cli.transfer.meter import Summary, summarize
from eplb_cli.transfer.traffic import TransferOptions, largest_chunk_nbytes
from eplb_cli.transfer.transfer import SPANS, TransferResult, transfer_here
from eplb_cli.values import dataclass

WORK_NBYTES = 1 << 20
"""Bytes of the files through which a launcher and its workers talk, besides digests."""


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
            advance = accumulate(show)
            results = [transfer_here(planned.prepared, stage, options, advance, known)]
        else:
            results = _move_in_workers(planned, stage, options, known, show)
    return _together(results, options, began)


def _options(planned: Planned) -> TransferOptions:
    """The options of the transfer, found from the machine and the rows where they are left open."""
    request, prepared, workers = planned.request, planned.prepared, planned.num_workers
    needed = largest_chunk_nbytes(prepared.pieces, workers)
    return TransferOptions(
        workers,
        request.buffer_nbytes or default_buffer_nbytes(needed, workers),
        request.threads or default_threads(workers),
        digests=request.digests,
        verify=request.verify and request.digests,
        durable=request.durable,
        # Forgetting costs 0.2 s a GB, so it is done only where the system would have to do it anyway.
        keep_cache=prepared.checkpoint.shards.nbytes + prepared.output.own_nbytes < available_memory_nbytes(),
    )


def _move_in_workers(
    planned: Planned, stage: Staging, options: TransferOptions, known: Known, show: Callable[[int], None]
) -> list[TransferResult]:
    request, prepared = planned.request, planned.prepared
    num_places = len(prepared.old_places.rank) + len(prepared.new_places.rank)
    num_tables = planned.num_workers + 1
    files.require_space(stage.work, num_places * DIGEST_NBYTES * num_tables + WORK_NBYTES)
    if options.digests:
        leave_digests(stage.work, "old", LAUNCHER, known.digests)
    with shared_memory(planned.num_workers) as progress:
        job = _job(planned, stage, options, progress)
        outcomes = launch(job, request.timeout_s, show)
    return [_result(stage, outcome) for _, outcome in sorted(outcomes.items())]


def _job(planned: Planned, stage: Staging, options: TransferOptions, progress: str) -> Job:
    request, prepared = planned.request, planned.prepared
    return Job(
        source=str(request.source.absolute()),
        staging=str(stage.path),
        old=placement_to_json(prepared.plan.old),
        new=placement_to_json(prepared.plan.new),
        layout=prepared.checkpoint.shards.layout.as_json(),
        senders=prepared.plan.senders,
        ranks_per_node=prepared.plan.ranks_per_node,
        rank_scalars=planned.rank_scalars,
        shared=sorted(planned.alike.keys),
        backend=planned.backend,
        digest=prepared.digest,
        transfer=options,
        progress=progress,
    )


def _result(stage: Staging, outcome: Outcome) -> TransferResult:
    """What a worker has left, in its outcome and beside it."""
    if outcome.activity is None:
        raise WorkerError("EP401", f"worker {outcome.worker} has left no result")
    return TransferResult(
        take_digests(stage.work, "old", outcome.worker),
        take_digests(stage.work, "new", outcome.worker),
        outcome.ended,
        outcome.activity,
        outcome.wire_nbytes,
        outcome.peak_rss_nbytes,
        outcome.peak_anonymous_nbytes,
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
