"""`eplb plan`: two placements and perhaps sizes in, a report out."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from eplb_cli.findings import Finding
from eplb_cli.inputs import PlacementOptions, read_pair
from eplb_cli.plan import Senders, plan_reshard
from eplb_cli.report import Report
from eplb_cli.tally import plan_report


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
    full: bool,
) -> Report:
    """Plan without an output.

    Raises:
        EplbError: the placements, or the checkpoint, cannot be used.
    """
    if checkpoint is not None:
        return _with_checkpoint(
            old_name, new_name, options, checkpoint, layout, senders, ranks_per_node, full=full
        )
    old, new, warnings = read_pair(old_name, new_name, options)
    if expert_nbytes is None and options.model is not None:
        expert_nbytes = options.model.expert_nbytes
    sizes = None if expert_nbytes is None else np.full(old.num_layers, expert_nbytes, np.int64)
    plan = plan_reshard(old, new, senders, expert_nbytes=sizes, ranks_per_node=ranks_per_node)
    return plan_report(plan, sizes, full=full, warnings=_messages(warnings))


def _with_checkpoint(  # noqa: PLR0913 - as plan_command
    old_name: str,
    new_name: str,
    options: PlacementOptions,
    path: Path,
    layout: str,
    senders: Senders,
    ranks_per_node: int | None,
    *,
    full: bool,
) -> Report:
    """Plan as `reshard` would, down to the sizes of the output."""
    from eplb_cli.checkpoint import open_shards
    from eplb_cli.inputs import read_new, read_old
    from eplb_cli.prepare import prepare

    shards = open_shards(path, layout)
    options = options.beside(shards)
    old, old_warnings = read_old(shards, old_name, new_name, options)
    new, new_warnings = read_new(new_name, old, options)
    prepared = prepare(shards, old, new, senders, ranks_per_node)
    sharded = prepared.checkpoint.sharded_others
    count = f"{len(sharded):,} other tensors look" if len(sharded) > 1 else "an other tensor looks"
    notes = [f"{count} sharded over the ranks: {sharded[0]!r}"] if sharded else []
    return plan_report(
        prepared.plan,
        prepared.checkpoint.expert_nbytes,
        other_nbytes=prepared.output.other_nbytes,
        output_nbytes=prepared.output.nbytes,
        full=full,
        warnings=[*_messages([*old_warnings, *new_warnings]), *prepared.checkpoint.warnings, *notes],
    )


def _messages(findings: list[Finding]) -> list[str]:
    return [finding.message for finding in findings]
