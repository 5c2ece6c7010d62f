"""`eplb balance --repair`: the part of `balance` that is about ranks which are lost."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eplb_cli import render
from eplb_cli.cli import complete
from eplb_cli.cli.options import A_PLACEMENT, Format, rank_numbers
from eplb_cli.cli.outputs import STDOUT, check_outputs, write_output
from eplb_cli.errors import UsageError

if TYPE_CHECKING:
    from eplb_cli.inputs.options import PlacementOptions
    from eplb_cli.report.repair import Repair

RepairOption = Annotated[
    str | None,
    typer.Option(
        "--repair",
        metavar="OLD",
        autocompletion=complete.maps,
        help="Bring experts back to life that were lost with ranks of OLD, on those that are left; LOAD says "
        f"which replicas are missed least, and may be left out. OLD is {A_PLACEMENT}.",
    ),
]
LostRanksOption = Annotated[
    str | None,
    typer.Option("--lost-ranks", metavar="RANK,...", help="The ranks of OLD that are lost: 5,17 or 0-7."),
]


def repair(
    old: str,
    lost_ranks: str | None,
    out: Path,
    to: str,
    options: PlacementOptions,
    output_format: Format,
    *,
    load: str | None,
    num_redundant_experts: int | None,
    expert_nbytes: int | None,
) -> None:
    """Write a placement for the ranks that are left, and say what has to come from where.

    Raises:
        UsageError: EP001, it is not said which ranks are lost; what `repaired` and writing raise.
    """
    from eplb_cli.inputs.repaired import repaired
    from eplb_cli.placements.convert import text_in_dialect
    from eplb_cli.placements.hints import Hints

    lost = rank_numbers("--lost-ranks", lost_ranks)
    if not lost:
        raise UsageError("EP001", "--repair needs the ranks that are lost", "name them: --lost-ranks 5,17")
    check_outputs([out], output_format, inputs=filter(None, [old, load]), replace=False)
    placement, found = repaired(
        old,
        lost,
        options,
        load=load,
        num_redundant_experts=num_redundant_experts,
        expert_nbytes=expert_nbytes or (None if options.model is None else options.model.expert_nbytes),
    )
    hints = Hints(num_logical_experts=placement.num_logical_experts, model=options.model)
    _, left_out, text = text_in_dialect(placement, None if out == STDOUT else out, to, hints)
    warnings = [*found.warnings, *(finding.message for finding in left_out)]
    write_output(out, text, replace=False)
    _print(replace(found, output=str(out), warnings=warnings), output_format, is_quiet=out == STDOUT)


def _print(found: Repair, output_format: Format, *, is_quiet: bool) -> None:
    """The report, unless stdout has the placement; warnings on stderr where the page does not have them."""
    if is_quiet or output_format is Format.json or not sys.stdout.isatty():
        for warning in found.warnings:
            render.print_warning(warning)
    if is_quiet:
        return
    if output_format is Format.json:
        from eplb_cli.report.repair import repair_json

        render.print_json(repair_json(found))
    else:
        render.print_repair(found)
