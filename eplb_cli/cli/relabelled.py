"""`--relabel` and `--out-new`: shards under a NEW that was relabelled never lack the file that fits them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from eplb_cli.cli.outputs import write_output
from eplb_cli.errors import UsageError

if TYPE_CHECKING:
    from eplb_cli.plan.choice import Relabel
    from eplb_cli.report.report import Report


def require_out_new(relabel: Relabel, out_new: Path | None, *, is_made: bool) -> None:
    """EP001 where NEW by other names would be kept nowhere, or where there is none.

    Args:
        is_made: whether something that only fits that NEW comes of the command: shards, or a plan for them.
    """
    if relabel == "none" and out_new is not None:
        raise UsageError("EP001", "--out-new has NEW as it was relabelled", "add --relabel rows|ranks")
    if relabel != "none" and out_new is None and is_made:
        problem = f"--relabel {relabel} makes another NEW, which is the one that an engine needs for DST"
        raise UsageError("EP001", problem, "keep it with --out-new FILE")


def write_new(report: Report, out_new: Path | None) -> Report:
    """Write the relabelled NEW, and the same report with where it is. Raises EP601, EP603 or EP604."""
    if report.relabelled is None or out_new is None:
        return report
    from eplb_cli.placements.own_format import format_placement

    write_output(out_new, format_placement(report.relabelled.new), replace=True)
    return replace(report, relabelled=replace(report.relabelled, output=str(out_new)))
