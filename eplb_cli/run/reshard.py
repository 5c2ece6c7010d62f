"""The main flow: plan, move, prove, publish."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile

from eplb_cli.checkpoint.recorded import require_as_in_manifest
from eplb_cli.output.commit import carry_files, destination_digests, fill_unlinked, write_manifest
from eplb_cli.output.prove import Proof, prove
from eplb_cli.output.shard_files import require_made
from eplb_cli.output.staging import staging
from eplb_cli.progress import ProgressBar, silent
from eplb_cli.report.report import Report, RunReport
from eplb_cli.run.clock import Clock
from eplb_cli.run.move import Moved, move
from eplb_cli.run.preparing import Planned, plan_request
from eplb_cli.run.request import AnyRequest
from eplb_cli.transfer.resume import known_before, taken_over, written_before


def reshard(request: AnyRequest, progress: ProgressBar = silent, *, full: bool = False) -> Report:
    """Rearrange shards for another placement, and prove it.

    The result appears whole, once every row has been read back and compared, or not at all. Where OLD and
    NEW are the same there is nothing to do, and no result, unless the request says `copy`.

    Args:
        request: what is wanted.
        progress: what shows the bytes done: given their number and a description, a context that yields a
            function, which is told how many are done.
        full: list traffic by rank however many ranks there are.

    Returns:
        What was moved, in bytes and rows, and in `run` how long it took and what was proved; `run` is None
        where there was `nothing_to_do`.

    Raises:
        EplbError: whatever went wrong, of any family; there is no DST then, and SRC is as it was.

    Examples:
        >>> request = eplb_cli.Request(
        ...     Path("src"), Path("resharded"), new="new.json", old="old.json", backend="file"
        ... )
        >>> report = eplb_cli.reshard(request)
        >>> report.totals.remote_rows, report.run.rows_proved
        (25, 60)
    """
    planned = plan_request(request, progress, full=full)
    if planned.report.nothing_to_do:
        return planned.report
    clock = Clock(planned.seconds)
    prepared = planned.prepared
    shards = prepared.checkpoint.shards
    with staging(
        request.destination, durable=request.durable, resume=request.resume, keep=request.keep
    ) as stage:
        told = written_before(prepared, stage.path, was_proved=stage.was_proved)
        stage.create(prepared)
        carried = carry_files(shards.to_carry(), stage)
        clock.lap("create")
        known = known_before(prepared, stage, told, planned.alike.digests, progress)
        if stage.resumes:
            clock.lap("resume")
        moved = move(planned, stage, known, progress)
        fill_unlinked(stage)
        require_made(stage.path, prepared.output)
        clock.lap("move")
        proof = _check(planned, moved)
        clock.lap("prove")
        write_manifest(
            prepared,
            stage,
            destination_digests(prepared, moved.old_digests) if request.digests else None,
            carried,
            verified=proof is not None,
            served=prepared.served,
        )
    clock.lap("commit")
    notes = taken_over(prepared, stage, known)
    return _run_report(planned, moved, proof, stage.unlinked, clock.seconds, notes)


def _check(planned: Planned, moved: Moved) -> Proof | None:
    """Everything that the digests can prove; None without them."""
    request, prepared = planned.request, planned.prepared
    if not request.digests:
        return None
    require_as_in_manifest(prepared.checkpoint, moved.old_digests)
    if not request.verify:
        return None
    return prove(prepared, moved.old_digests, moved.new_digests)


def _run_report(
    planned: Planned,
    moved: Moved,
    proof: Proof | None,
    unlinked: Sequence[int],
    seconds: dict[str, float],
    notes: list[str],
) -> Report:
    request, prepared = planned.request, planned.prepared
    rows_total = sum(
        getattr(planned.report.totals, f"{kind}_rows")
        for kind in ("unchanged", "local", "remote", "duplicate")
    )
    linked = [
        file.nbytes
        for number, file in enumerate(prepared.output.files)
        if file.same_as is not None and number not in unlinked
    ]
    before = dict(takewhile(lambda step: step[0] != "move", seconds.items()))
    passes = int(prepared.new_places.nbytes.sum())
    run = RunReport(
        backend=planned.backend,
        num_workers=planned.num_workers,
        wire_bytes=moved.wire_nbytes,
        seconds={
            **moved.activity.seconds,
            **before,
            **moved.seconds,
            "finish": seconds["move"] - sum(moved.seconds.values()),
            **seconds,
            "total": sum(seconds.values()),
        },
        stage_bytes={
            **{stage: passes for stage in ("transfer", "verify") if moved.seconds[stage]},
            **moved.activity.nbytes,
        },
        bound_by=moved.activity.bound_by,
        busy=moved.activity.busy,
        exchange_hidden=moved.activity.exchange_hidden,
        buffer_bytes=moved.options.buffer_nbytes,
        threads=moved.options.threads,
        peak_rss_bytes=moved.peak_rss_nbytes,
        peak_anonymous_bytes=moved.peak_anonymous_nbytes,
        linked_bytes=sum(linked),
        verified=proof is not None,
        output=str(request.destination),
        rows_proved=0 if proof is None else proof.rows_proved,
        rows_total=rows_total,
        notes=notes,
        serving=list(prepared.served.serving.notes),
        misread=list(prepared.served.serving.misread),
    )
    proved = [] if proof is None else proof.warnings
    warnings = [*planned.report.warnings, *proved, *prepared.served.serving.misread]
    return replace(planned.report, warnings=warnings, run=run)
