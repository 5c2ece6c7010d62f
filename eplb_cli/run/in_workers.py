"""Moving the bytes in the workers of a torchrun job: what they are told, and what they leave."""

from __future__ import annotations

from collections.abc import Callable

from eplb_cli import files
from eplb_cli.digests import DIGEST_NBYTES
from eplb_cli.errors import WorkerError
from eplb_cli.output.journal import LAUNCHER, Known
from eplb_cli.output.staging import Staging
from eplb_cli.placements.own_format import placement_to_json
from eplb_cli.run.job import POOL, Job, Outcome, leave_digests, shared_memory, take_digests
from eplb_cli.run.launch import launch
from eplb_cli.run.preparing import Planned
from eplb_cli.transfer.traffic import TransferOptions
from eplb_cli.transfer.transfer import TransferResult

WORK_NBYTES = 1 << 20
"""Bytes of the files through which a launcher and its workers talk, besides digests."""


def move_in_workers(
    planned: Planned, stage: Staging, options: TransferOptions, known: Known, show: Callable[[int], None]
) -> list[TransferResult]:
    """What each worker did, in their order. Raises EplbError where one failed, and OutputError."""
    request, prepared = planned.request, planned.prepared
    num_places = len(prepared.old_places.rank) + len(prepared.new_places.rank)
    workers = planned.workers
    num_tables = len(workers) + 1
    files.require_space(stage.work, num_places * DIGEST_NBYTES * num_tables + WORK_NBYTES)
    if options.digests:
        leave_digests(stage.own, "old", LAUNCHER, known.digests)
    pooled = prepared.checkpoint.shards.pool
    if pooled is not None:
        files.write_file(stage.own / POOL, pooled.to_bytes(), durable=False)
    with shared_memory(len(workers)) as progress:
        job = _job(planned, stage, options, progress)
        outcomes = launch(job, request.timeout_s, show, planned.crew)
    return [_result(stage, outcome) for _, outcome in sorted(outcomes.items())]


def _job(planned: Planned, stage: Staging, options: TransferOptions, progress: str) -> Job:
    request, prepared = planned.request, planned.prepared
    shards = prepared.checkpoint.shards
    return Job(
        source=str(request.source.absolute()),
        staging=str(stage.path),
        old=placement_to_json(prepared.plan.old),
        new=placement_to_json(prepared.plan.new),
        layout=shards.layout.as_json(),
        senders=prepared.plan.senders,
        ranks_per_node=prepared.plan.ranks_per_node,
        nodes=prepared.plan.uneven_nodes,
        hosting=prepared.hosting,
        rank_scalars=planned.rank_scalars,
        shared=sorted(planned.alike.keys),
        backend=planned.backend,
        digest=prepared.digest,
        transfer=options,
        progress=progress,
        first_worker=planned.workers.start,
        num_local=len(planned.workers),
        own=str(stage.own.relative_to(stage.path)),
        endpoint=planned.crew.endpoint,
        run=stage.run,
        lost=list(shards.lost),
        missing_from=None if shards.missing_from is None else str(shards.missing_from.absolute()),
    )


def _result(stage: Staging, outcome: Outcome) -> TransferResult:
    """What a worker has left, in its outcome and beside it."""
    if outcome.activity is None:
        raise WorkerError("EP401", f"worker {outcome.worker} has left no result")
    return TransferResult(
        take_digests(stage.own, "old", outcome.worker),
        take_digests(stage.own, "new", outcome.worker),
        outcome.ended,
        outcome.activity,
        outcome.wire_nbytes,
        outcome.peak_rss_nbytes,
        outcome.peak_anonymous_nbytes,
    )
