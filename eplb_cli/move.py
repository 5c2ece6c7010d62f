"""Moving the bytes: in this process, or in the workers of a torchrun job."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eplb_cli import files
from eplb_cli.job import Job, digest_path
from eplb_cli.launch import launch
from eplb_cli.manifest import DIGEST_NBYTES
from eplb_cli.placement_file import placement_to_json
from eplb_cli.prepare import Prepared
from eplb_cli.request import Planned
from eplb_cli.shards import Staging
from eplb_cli.transfer import TransferOptions, TransferResult, transfer

WORK_NBYTES = 1 << 20
"""Bytes of the files through which a launcher and its workers talk, besides digests."""

Digests = NDArray[np.uint8]
ProgressBar = Callable[[int, str], AbstractContextManager[Callable[[int], None]]]
"""Given a number of bytes and a description: a context that yields what shows the bytes done."""


@dataclass(frozen=True, eq=False)
class Moved:
    """What the workers did, together: digests by place, and each worker's own numbers."""

    old_digests: Digests
    new_digests: Digests
    seconds: dict[str, float]
    wire_nbytes: int
    peak_rss_nbytes: list[int]


def move(planned: Planned, stage: Staging, progress: ProgressBar) -> Moved:
    """Move the bytes with whichever backend was chosen."""
    request, prepared = planned.request, planned.prepared
    changes_ranks = prepared.plan.old.num_ranks != prepared.plan.new.num_ranks
    options = TransferOptions(
        planned.num_workers,
        request.buffer_nbytes,
        digests=request.digests or changes_ranks,
        verify=request.verify and request.digests,
        durable=request.durable,
    )
    passes = 2 if options.digests and options.verify else 1
    with progress(int(prepared.new_places.nbytes.sum()) * passes, planned.backend) as show:
        if planned.backend == "file":
            return _moved([_move_here(prepared, stage, options, show)])
        return _move_in_workers(planned, stage, options, show)


def _move_here(
    prepared: Prepared, stage: Staging, options: TransferOptions, show: Callable[[int], None]
) -> TransferResult:
    done = 0

    def advance(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        show(done)

    return transfer(prepared, stage.path, options, 0, None, advance)


def _move_in_workers(
    planned: Planned, stage: Staging, options: TransferOptions, show: Callable[[int], None]
) -> Moved:
    request, prepared = planned.request, planned.prepared
    num_places = len(prepared.old_places.rank) + len(prepared.new_places.rank)
    files.require_space(stage.work, num_places * DIGEST_NBYTES * planned.num_workers + WORK_NBYTES)
    job = Job(
        source=str(request.source.absolute()),
        staging=str(stage.path),
        old=placement_to_json(prepared.plan.old),
        new=placement_to_json(prepared.plan.new),
        layout=prepared.checkpoint.shards.layout.as_json(),
        senders=request.senders,
        ranks_per_node=request.ranks_per_node,
        backend=planned.backend,
        digest=prepared.digest,
        transfer=options,
        launcher_pid=os.getpid(),
    )
    outcomes = launch(job, request.timeout_s, show)
    results = []
    for worker, outcome in sorted(outcomes.items()):
        old_digests, new_digests = (
            np.load(digest_path(stage.work, side, worker), allow_pickle=False) for side in ("old", "new")
        )
        results.append(
            TransferResult(
                old_digests,
                new_digests,
                outcome.seconds,
                outcome.nbytes,
                outcome.wire_nbytes,
                outcome.peak_rss_nbytes,
            )
        )
    return _moved(results)


def _moved(results: list[TransferResult]) -> Moved:
    """Put the workers' results together: each digest comes from one worker and is zero in the others."""
    stages = results[0].seconds
    return Moved(
        np.bitwise_or.reduce([result.old_digests for result in results]),
        np.bitwise_or.reduce([result.new_digests for result in results]),
        {stage: max(result.seconds[stage] for result in results) for stage in stages},
        sum(result.wire_nbytes for result in results),
        [result.peak_rss_nbytes for result in results],
    )
