"""The main flow: plan, move, prove, publish."""

from __future__ import annotations

from dataclasses import replace
from itertools import takewhile

from eplb_cli.checkpoint.recorded import require_as_in_manifest
from eplb_cli.output.commit import carry_files, destination_digests, fill_unlinked, write_manifest
from eplb_cli.output.prove import Proof, prove
from eplb_cli.output.shard_files import require_made
from eplb_cli.output.staging import Staging, staging
from eplb_cli.progress import ProgressBar, silent
from eplb_cli.report.report import Report, RunReport
from eplb_cli.run.clock import Clock
from eplb_cli.run.crew import Crew
from eplb_cli.run.meeting import meeting
from eplb_cli.run.move import Moved, move
from eplb_cli.run.preparing import Planned, plan_request
from eplb_cli.run.request import AnyRequest, require_usable
from eplb_cli.transfer.resume import known_before, taken_over, written_before


def reshard(request: AnyRequest, progress: ProgressBar = silent, *, full: bool = False) -> Report:
    """Rearrange shards for another placement, and prove it.

    The result appears whole, once every row has been read back and compared, or not at all. Where OLD and
    NEW are the same there is nothing to do, and no result, unless the request says `copy`. Where several
    hosts take part, each calls this with a request of its own, and all get the same report.

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
    require_usable(request)
    with meeting(request) as met:
        return _reshard(request, progress, met, full=full)


def _reshard(request: AnyRequest, progress: ProgressBar, crew: Crew, *, full: bool) -> Report:
    hosts = crew.hosts
    if hosts.count > 1:
        # What only several hosts need is not imported for one.
        from eplb_cli.run.finishing import agreed_before, finish

        if agreed := agreed_before(request, progress, crew, full=full):
            finish(request, hosts, progress)
            return replace(agreed.report, is_finished=True)
    planned = plan_request(request, progress, full=full, crew=crew)
    if planned.report.nothing_to_do:
        return planned.report
    outputs = [said.decode() for said in hosts.gather(str(request.destination.absolute()).encode(), "DST")]
    clock = Clock(planned.seconds)
    prepared = planned.prepared
    shards = prepared.checkpoint.shards
    with staging(
        request.destination,
        durable=request.durable,
        resume=request.resume,
        keep=request.keep,
        hosts=hosts,
    ) as stage:
        here, ranks = prepared.is_on(hosts.node), [file.rank for file in prepared.output.files]
        held = stage.holds(prepared.hosting.node_of_new[ranks])
        told = written_before(prepared, stage.path, was_proved=stage.was_proved, hosts=hosts, staged=held)
        stage.create(prepared)
        carried = carry_files(shards.to_carry(), stage) if stage.is_held else {}
        clock.lap("create")
        known = known_before(prepared, stage, told, planned.alike.digests, progress, hosts, here)
        if stage.resumes:
            clock.lap("resume")
        moved = move(planned, stage, known, progress)
        fill_unlinked(stage)
        require_made(stage.path, prepared.output, stage.numbers)
        clock.lap("move")
        proof = _check(planned, moved)
        clock.lap("prove")
        if stage.is_held:
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
    report = _run_report(planned, moved, proof, stage, clock.seconds, notes)
    if hosts.count == 1:
        return report
    from eplb_cli.run.host_reports import with_hosts

    return with_hosts(report, prepared, hosts, known, outputs)


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
    stage: Staging,
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
        if file.same_as is not None and number not in stage.unlinked
    ]
    before = dict(takewhile(lambda step: step[0] != "move", seconds.items()))
    passes = int(prepared.new_places.nbytes.sum())
    run = RunReport(
        backend=planned.backend,
        num_workers=prepared.hosting.num_workers,
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
