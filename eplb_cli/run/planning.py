"""Two placements and perhaps sizes in, a plan and its report out."""

from __future__ import annotations

import os
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from eplb_cli.errors import UsageError
from eplb_cli.inputs.old_and_new import read_pair
from eplb_cli.inputs.options import NO_OPTIONS, PlacementOptions, expert_size
from eplb_cli.plan.choice import RankScalars, Relabel, Senders
from eplb_cli.plan.moves import ReshardPlan
from eplb_cli.plan.plan import plan_reshard
from eplb_cli.progress import ProgressBar, silent
from eplb_cli.report.report import Report
from eplb_cli.report.sizes import Rates
from eplb_cli.report.tally import plan_report
from eplb_cli.values import dataclass

if TYPE_CHECKING:
    from eplb_cli.inputs.given import Given
    from eplb_cli.inputs.load import GivenLoad
    from eplb_cli.output.prepared import Prepared
    from eplb_cli.placements.findings import Finding
    from eplb_cli.placements.placement import Placement


@dataclass(frozen=True, eq=False)
class Answer:
    """A plan and the report on it.

    Attributes:
        plan: the placements, and the table of moves between them.
        report: what that comes to, per rank and in all.
        prepared: the shards, and the files that a run would write; None where there is no checkpoint.
        said: OLD and NEW without the layers that follow by themselves, which the plan has as well.
        warnings: what is odd about OLD or NEW.
    """

    plan: ReshardPlan
    report: Report
    prepared: Prepared | None = None
    said: tuple[Placement, Placement] | None = None
    warnings: tuple[Finding, ...] = ()

    def with_estimate(self, rates: Rates) -> Answer:
        """The same, with how long it will take."""
        from eplb_cli.report.estimate import estimate

        totals = self.report.totals
        took = estimate(self.plan, rates, totals.other_bytes or 0, totals.output_bytes)
        return replace(self, report=replace(self.report, estimate=took))


def plan_files(  # noqa: PLR0913 - each of them is an option of its own
    old: str | PathLike[str],
    new: str | PathLike[str],
    *,
    checkpoint: str | PathLike[str] | None = None,
    layout: str = "auto",
    options: PlacementOptions = NO_OPTIONS,
    expert_nbytes: int | None = None,
    senders: Senders = "balanced",
    ranks_per_node: int | None = None,
    rank_scalars: RankScalars | None = None,
    relabel: Relabel = "none",
    full: bool = False,
    load: str | PathLike[str] | None = None,
    progress: ProgressBar = silent,
) -> Answer:
    """Plan from placement files, and perhaps the shards under OLD; nothing is moved.

    Args:
        old: OLD: a file in any dialect, or one of the named maps "linear" and "round_robin".
        new: NEW, likewise.
        checkpoint: shards under OLD, for sizes in bytes; what a reshard of them would refuse is refused.
        layout: how their tensors are named: "auto", the name of a layout, or a TOML file that describes one.
        options: what OLD and NEW leave out.
        expert_nbytes: bytes of an expert, without shards; None where the model says it, or nothing does.
        senders: "balanced" evens out bytes sent, "vllm" gives the senders of vLLM's rearrangement.
        rank_scalars: "max" for what `Request.rank_scalars` says.
        relabel: what of NEW changes places first, so that less moves; see `Request.relabel`.
        ranks_per_node: G; with it "balanced" prefers a sender on the receiver's node.
        full: list traffic by rank however many ranks there are.
        load: a load dump, to say how evenly OLD and NEW spread it over their ranks.
        progress: what shows the bytes read, where other tensors have to be compared.

    Raises:
        PlacementError: a placement cannot be read, or the pair cannot be used; EP119, nor can the load.
        CheckpointError: the shards cannot be used.
        UsageError: EP001, the arguments contradict each other.
        BytesError: EP506, the shards are not those of their manifest.

    Examples:
        >>> answer = eplb_cli.plan_files("old.json", "new.json", checkpoint="src")
        >>> answer.report.totals.remote_bytes, answer.report.totals.busiest_sender_bytes
        (614400, 344064)
    """
    names = os.fspath(old), os.fspath(new)
    given = None
    if load is not None:
        from eplb_cli.inputs.load import given_load

        given = given_load(os.fspath(load), options.model, None if checkpoint is None else Path(checkpoint))
    if checkpoint is None:
        if layout != "auto":
            raise UsageError("EP001", "--layout is of shards, and there is no --checkpoint", "add it")
        answer = _plan_placements(names, options, senders, ranks_per_node, expert_nbytes, relabel, full=full)
        return _under_load(answer, given)
    if expert_nbytes is not None:
        raise UsageError("EP001", "--checkpoint and --expert-bytes both say sizes", "leave one out")
    from eplb_cli.inputs.given import read_given

    beside = read_given(Path(checkpoint), layout, names, options, senders, ranks_per_node, rank_scalars)
    return _under_load(_plan_checkpoint(beside.with_relabelled(relabel), progress, full=full), given)


def _under_load(answer: Answer, given: GivenLoad | None) -> Answer:
    """The same, with OLD and NEW under a load, if there is one. Raises EP110 or EP119."""
    if given is None:
        return answer
    old, new = answer.said or (answer.plan.old, answer.plan.new)
    further = answer.prepared.checkpoint.shards.layers.beside if answer.prepared else ()
    judged = (given.judge("OLD", old, further), given.judge("NEW", new, further))
    return replace(answer, report=replace(answer.report, load=given.together(*judged)))


def _plan_placements(
    names: tuple[str, str],
    options: PlacementOptions,
    senders: Senders,
    ranks_per_node: int | None,
    expert_nbytes: int | None,
    relabel: Relabel,
    *,
    full: bool,
) -> Answer:
    """Plan from two placements alone."""
    expert_nbytes = expert_size(expert_nbytes, options.model)
    old, new, warnings = read_pair(*names, options)
    sizes = None if expert_nbytes is None else np.full(old.num_layers, expert_nbytes, np.int64)
    asked = new
    if relabel != "none":
        from eplb_cli.balance.relabel import relabel as by_other_names

        new = by_other_names(old, asked, relabel, ranks_per_node)
    plan = plan_reshard(old, new, senders, expert_nbytes=sizes, ranks_per_node=ranks_per_node)
    messages = [finding.message for finding in warnings]
    report = plan_report(plan, sizes, full=full, warnings=messages)
    if relabel != "none":
        from eplb_cli.report.relabelling import relabelling

        report = replace(report, relabelled=relabelling(plan, asked, new, relabel))
    return Answer(plan, report, warnings=tuple(warnings))


def _plan_checkpoint(given: Given, progress: ProgressBar, *, full: bool) -> Answer:
    """Plan for a checkpoint, and refuse what a reshard of it would."""
    from eplb_cli.checkpoint.recorded import require_digests
    from eplb_cli.checkpoint.sharded import with_layers
    from eplb_cli.machine import reading_threads
    from eplb_cli.run.clock import Clock
    from eplb_cli.run.preparing import prepare_given, prepared_report

    prepared, _ = prepare_given(given, reading_threads(1), progress, Clock(), compare=False)
    require_digests(prepared.checkpoint)
    report = prepared_report(given, prepared, full=full)
    said = with_layers(given.old, given.shards), with_layers(given.new, given.shards)
    return Answer(prepared.plan, report, prepared, said, given.warnings)
