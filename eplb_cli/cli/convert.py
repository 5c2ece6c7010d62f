"""`eplb convert`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from eplb_cli import render
from eplb_cli.cli import complete
from eplb_cli.cli.options import (
    A_PLACEMENT,
    Format,
    FormatOption,
    ModelOption,
    NumExperts,
    NumRedundant,
    named_model,
    whole_number,
)
from eplb_cli.cli.outputs import STDOUT, check_outputs, write_output
from eplb_cli.placements.dialects.registry import DialectName

EXAMPLES = """\b
Examples:
  eplb convert map.json new.json --to eplb --model deepseek-v3 --num-ranks 32
  eplb convert new.json map.json --to sglang --model deepseek-v3
  eplb convert new.json moe_load_balancer.yaml --to tensorrt-llm"""


def command(
    source: Annotated[
        str,
        typer.Argument(metavar="IN", autocompletion=complete.maps, help=f"In any dialect: {A_PLACEMENT}."),
    ],
    output: Annotated[
        Path,
        typer.Argument(
            metavar="OUT", help="A new file, with a suffix that the dialect has: mostly .json; - is stdout."
        ),
    ],
    to: Annotated[DialectName, typer.Option("--to", help="The dialect to write.")],
    dialect: Annotated[
        DialectName | None,
        typer.Option("--from", help="The dialect of IN, if its content fits several."),
    ] = None,
    num_ranks: Annotated[
        int | None,
        typer.Option(
            "--num-ranks",
            "--ep-size",
            parser=whole_number(1),
            metavar="RANKS",
            help="How many ranks IN has, if it does not say.",
        ),
    ] = None,
    num_logical_experts: NumExperts = None,
    num_redundant_experts: NumRedundant = None,
    model: ModelOption = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--checkpoint", metavar="DIR", help="A checkpoint or shards, for the layers of the model."
        ),
    ] = None,
    output_format: FormatOption = Format.text,
) -> None:
    """Write the placement IN to OUT in another dialect; refuse where that would lose something."""
    from dataclasses import replace

    from eplb_cli.inputs.options import PlacementOptions, model_in
    from eplb_cli.placements.convert import convert_text

    options = PlacementOptions(
        num_ranks,
        None,
        num_logical_experts,
        num_redundant_experts,
        dialect,
        model=named_model(model, checkpoint) or model_in(checkpoint),
    )
    options.require_used(None, [source])
    check_outputs([output], output_format, sources=[checkpoint], replace=False)
    hints = replace(options.hints, num_ranks=options.num_ranks, dialect=options.dialect)
    placement, warnings, text = convert_text(source, None if output == STDOUT else output, to, hints)
    for warning in warnings:
        render.print_warning(warning.message)
    write_output(output, text, replace=False)
    if output == STDOUT:
        return
    numbers = {
        "num_layers": placement.num_layers,
        "num_slots": placement.num_slots,
        "num_ranks": placement.num_ranks,
        "num_logical_experts": placement.num_logical_experts,
    }
    if output_format is Format.json:
        render.print_json({"format": "eplb-conversion/1", "output": str(output), "dialect": to, **numbers})
    else:
        said = ", ".join(
            f"{value:,} {name.removeprefix('num_').replace('_', ' ')}" for name, value in numbers.items()
        )
        sys.stdout.write(f"{output}: {to}, {said}\n")
