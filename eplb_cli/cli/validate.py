"""`eplb validate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from eplb_cli import render
from eplb_cli.cli.options import (
    FindingsFormat,
    FromOption,
    LoadOption,
    ModelOption,
    NumExperts,
    NumRedundant,
    OldFromOption,
    OldNumRanks,
    named_model,
    whole_number,
)
from eplb_cli.errors import EXIT_FINDINGS

EXAMPLES = """\b
Examples:
  eplb validate maps/*.json
  eplb validate new.json --against old.json --format github
  eplb validate new.json --load load.npy --max-imbalance 1.2"""


def command(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="Placement files.")],
    against: Annotated[
        str | None,
        typer.Option("--against", metavar="OLD", help="Check that OLD can be turned into each of them."),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--checkpoint",
            metavar="DIR",
            help="Shards: every FILE, or OLD with --against, has to have their layers, ranks and slots.",
        ),
    ] = None,
    num_ranks: Annotated[
        int | None,
        typer.Option(
            "--num-ranks",
            "--ep-size",
            parser=whole_number(1),
            metavar="RANKS",
            help="How many ranks there are, if a file does not say.",
        ),
    ] = None,
    old_num_ranks: OldNumRanks = None,
    num_logical_experts: NumExperts = None,
    num_redundant_experts: NumRedundant = None,
    dialect: FromOption = None,
    old_dialect: OldFromOption = None,
    model: ModelOption = None,
    load: LoadOption = None,
    max_imbalance: Annotated[
        float | None,
        typer.Option(
            "--max-imbalance",
            metavar="RATIO",
            help="With --load: the most that the busiest rank may have in any layer, over the mean of all.",
        ),
    ] = None,
    output_format: Annotated[
        FindingsFormat, typer.Option("--format", help="What stdout gets.")
    ] = FindingsFormat.text,
) -> None:
    """Check placements, and say all that is wrong with them at once.

    Exits with 1 where there is an error among the findings; warnings alone are no reason.
    """
    from eplb_cli.inputs.options import PlacementOptions
    from eplb_cli.inputs.validate import check

    options = PlacementOptions(
        num_ranks,
        old_num_ranks,
        num_logical_experts,
        num_redundant_experts,
        dialect,
        old_dialect,
        named_model(model, checkpoint),
    )
    checked = check(files, against, checkpoint, options, load, max_imbalance)
    render.print_findings(checked.findings, files, output_format.value, checked.load)
    if any(finding.severity == "error" for finding in checked.findings):
        raise typer.Exit(EXIT_FINDINGS)
