"""`eplb plan`: two placements and perhaps sizes in, a plan and its report out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from eplb_cli.errors import OutputError, UsageError
from eplb_cli.inputs.old_and_new import read_pair
from eplb_cli.inputs.options import PlacementOptions
from eplb_cli.placements.findings import Finding
from eplb_cli.plan.moves import ReshardPlan, Senders
from eplb_cli.plan.plan import plan_reshard
from eplb_cli.report.report import Report
from eplb_cli.report.sizes import Rates
from eplb_cli.report.tally import plan_report

if TYPE_CHECKING:
    from eplb_cli.output.prepared import Prepared


@dataclass(frozen=True, eq=False)
class Answer:
    """A plan and the report on it; `prepared` is None where there is no checkpoint."""

    plan: ReshardPlan
    report: Report
    prepared: Prepared | None = None


def plan_command(  # noqa: PLR0913 - an argument for each option
    old_name: str,
    new_name: str,
    options: PlacementOptions,
    *,
    checkpoint: Path | None,
    layout: str,
    expert_nbytes: int | None,
    senders: Senders,
    ranks_per_node: int | None,
    rates: Rates | None,
    full: bool,
) -> Answer:
    """Plan without an output.

    Raises:
        EplbError: the placements, or the checkpoint, cannot be used.
    """
    if checkpoint is None:
        old, new, warnings = read_pair(old_name, new_name, options)
        if expert_nbytes is None and options.model is not None:
            expert_nbytes = options.model.expert_nbytes
        sizes = None if expert_nbytes is None else np.full(old.num_layers, expert_nbytes, np.int64)
        plan = plan_reshard(old, new, senders, expert_nbytes=sizes, ranks_per_node=ranks_per_node)
        answer = Answer(plan, plan_report(plan, sizes, full=full, warnings=_messages(warnings)))
    else:
        from eplb_cli.checkpoint.shards import open_shards
        from eplb_cli.inputs.old_and_new import read_new, read_old
        from eplb_cli.output.prepared import prepare

        shards = open_shards(checkpoint, layout)
        options = options.beside(shards)
        old, old_warnings = read_old(shards, old_name, new_name, options)
        new, new_warnings = read_new(new_name, old, options)
        prepared = prepare(shards, old, new, senders, ranks_per_node)
        report = prepared_report(prepared, [*old_warnings, *new_warnings], full=full)
        answer = Answer(prepared.plan, report, prepared)
    return answer if rates is None else _with_estimate(answer, rates)


def check_outputs(outputs: list[Path], inputs: list[str], checkpoint: Path | None) -> None:
    """Refuse to write over what is read, or two things to one place, before anything is planned.

    Raises:
        UsageError: EP001.
        OutputError: EP602, inside SRC.
    """
    places = [path.resolve() for path in outputs]
    for number, (path, place) in enumerate(zip(outputs, places, strict=True)):
        if place in [Path(name).resolve() for name in inputs] or place in places[:number]:
            raise UsageError("EP001", f"{path} would be written over", "name another file")
        if checkpoint is not None and checkpoint.resolve() in place.parents:
            raise OutputError(
                "EP602", f"{path} is inside {checkpoint}, which is only read", "name another place"
            )


def prepared_report(prepared: Prepared, findings: list[Finding], *, full: bool) -> Report:
    """What `plan --checkpoint` and `reshard --dry-run` both say."""
    sharded = prepared.checkpoint.sharded_others
    count = f"{len(sharded):,} other tensors look" if len(sharded) > 1 else "an other tensor looks"
    notes = [f"{count} sharded over the ranks: {sharded[0]!r}"] if sharded else []
    return plan_report(
        prepared.plan,
        prepared.checkpoint.expert_nbytes,
        other_nbytes=prepared.output.other_nbytes,
        output_nbytes=prepared.output.nbytes,
        full=full,
        warnings=[*_messages(findings), *prepared.checkpoint.warnings, *notes],
    )


def _with_estimate(answer: Answer, rates: Rates) -> Answer:
    from eplb_cli.report.estimate import estimate

    totals = answer.report.totals
    others, output = totals.other_bytes or 0, totals.output_bytes
    return replace(
        answer, report=replace(answer.report, estimate=estimate(answer.plan, rates, others, output))
    )


def _messages(findings: list[Finding]) -> list[str]:
    return [finding.message for finding in findings]
