"""`eplb validate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from eplb_cli import render
from eplb_cli.cli import complete
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
from eplb_cli.errors import EXIT_FINDINGS, EplbError
from eplb_cli.placements.choice import EngineName
from eplb_cli.report.sizes import parse_limit, parse_size

EXAMPLES = """\b
Examples:
  eplb validate placements
  eplb validate maps/*.json --engine sglang --model deepseek-v3
  eplb validate new.json --against old.json --format github
  eplb validate new.json --load load.npy --max-imbalance 1.2
  eplb validate new.json --against old.json --model deepseek-v3 \\
    --max-moved-bytes 500GB
  eplb explain EP106"""


def command(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE...",
            help="Placement files, directories of them, or - for JSON on stdin.",
        ),
    ],
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            metavar="OLD",
            autocompletion=complete.maps,
            help="Check that OLD can be turned into each of them.",
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--checkpoint",
            metavar="DIR",
            help="Shards: every FILE, or OLD with --against, has to have their layers, ranks and slots.",
        ),
    ] = None,
    engine: Annotated[
        EngineName | None,
        typer.Option("--engine", help="Check that this engine can take each of them as its map of experts."),
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
    max_moved_bytes: Annotated[
        str | None,
        typer.Option(
            "--max-moved-bytes",
            metavar="SIZE",
            help="With --against: the most that may go from rank to rank on the way from OLD.",
        ),
    ] = None,
    expert_bytes: Annotated[
        str | None,
        typer.Option(
            "--expert-bytes",
            metavar="SIZE",
            help="Bytes of one expert, for --max-moved-bytes without --model or --checkpoint.",
        ),
    ] = None,
    select: Annotated[
        list[str] | None,
        typer.Option(
            "--select",
            metavar="CODE,...",
            autocompletion=complete.codes,
            help="Show and count only these findings: EP112, or all of EP11.",
        ),
    ] = None,
    ignore: Annotated[
        list[str] | None,
        typer.Option(
            "--ignore",
            metavar="CODE,...",
            autocompletion=complete.codes,
            help="Neither show nor count these findings.",
        ),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings count as errors.")] = False,
    output_format: Annotated[
        FindingsFormat, typer.Option("--format", help="What stdout gets.")
    ] = FindingsFormat.text,
) -> None:
    """Check placements, and say all that is wrong with them at once.

    Exits with 1 where there is an error among the findings; warnings and notes alone are no reason.
    """
    from eplb_cli.inputs.options import PlacementOptions
    from eplb_cli.inputs.selection import Selection, codes_in
    from eplb_cli.inputs.validate import Gates, check
    from eplb_cli.report.findings import FindingsReport

    selection = Selection(codes_in("--select", select or []), codes_in("--ignore", ignore or []), strict)
    options = PlacementOptions(
        num_ranks,
        old_num_ranks,
        num_logical_experts,
        num_redundant_experts,
        dialect,
        old_dialect,
        named_model(model, checkpoint),
    )
    gates = Gates(
        load,
        max_imbalance,
        None if max_moved_bytes is None else parse_limit("--max-moved-bytes", max_moved_bytes),
        None if expert_bytes is None else parse_size(expert_bytes),
        engine,
    )
    try:
        checked = check(files, against, checkpoint, options, gates)
    except EplbError as error:
        if output_format is FindingsFormat.github:
            render.annotate_error(error)
        raise
    findings = selection.of(checked.findings)
    ignored = len(checked.findings) - len(findings)
    report = FindingsReport(findings, checked.files, checked.skipped, ignored, checked.load)
    render.print_findings(report, output_format.value)
    if any(finding.severity == "error" for finding in findings):
        raise typer.Exit(EXIT_FINDINGS)
