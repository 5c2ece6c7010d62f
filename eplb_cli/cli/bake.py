"""`eplb bake`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from eplb_cli.cli.options import (
    DryRunOption,
    Format,
    FormatOption,
    FromOption,
    KeysOption,
    NoFsyncOption,
    NoKeepOption,
    NumRanks,
    ResumeOption,
)
from eplb_cli.cli.show import print_written, progress_bar

EXAMPLES = """\b
Example:
  eplb bake HF_DIR OUT --placement new.json --num-ranks 16"""


def command(
    source: Annotated[Path, typer.Argument(metavar="HF_DIR", help="A Hugging Face checkpoint; only read.")],
    destination: Annotated[
        Path, typer.Argument(metavar="OUT", help="Where the checkpoint appears: new, or empty.")
    ],
    placement: Annotated[
        str,
        typer.Option("--placement", metavar="FILE", help="Without replicas, in any dialect."),
    ],
    layout: KeysOption = "auto",
    num_ranks: NumRanks = None,
    dialect: FromOption = None,
    dry_run: DryRunOption = False,
    resume: ResumeOption = False,
    no_keep: NoKeepOption = False,
    no_fsync: NoFsyncOption = False,
    output_format: FormatOption = Format.text,
) -> None:
    """Write a Hugging Face checkpoint that any engine serves under a placement, without being told of it.

    Experts get the numbers of their slots, and the rows of routers move with them: what the model computes is
    the same, and the engine's default placement is the one that was wanted.
    """
    from eplb_cli.huggingface.bake import bake
    from eplb_cli.inputs.options import PlacementOptions

    options = PlacementOptions(num_ranks, dialect=dialect)
    done = bake(
        source,
        destination,
        placement,
        options,
        layout=layout,
        durable=not no_fsync,
        resume=resume,
        keep=not no_keep,
        dry_run=dry_run,
        progress=progress_bar,
    )
    print_written("checkpoint", done, output_format)
