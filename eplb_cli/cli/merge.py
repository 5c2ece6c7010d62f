"""`eplb merge`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from eplb_cli.cli.options import DryRunOption, Format, FormatOption, NoFsyncOption, NoKeepOption, ResumeOption
from eplb_cli.cli.show import print_written, progress_bar

EXAMPLES = """\b
Examples:
  eplb merge SRC HF_DIR
  eplb merge SRC HF_DIR --bake"""


def command(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="What `eplb shard` wrote, resharded or not.")],
    destination: Annotated[
        Path, typer.Argument(metavar="HF_DIR", help="Where the checkpoint appears: new, or empty.")
    ],
    bake: Annotated[
        bool,
        typer.Option("--bake", help="Leave the experts in the order of the shards, as `eplb bake` does."),
    ] = False,
    dry_run: DryRunOption = False,
    resume: ResumeOption = False,
    no_keep: NoKeepOption = False,
    no_fsync: NoFsyncOption = False,
    output_format: FormatOption = Format.text,
) -> None:
    """Write the Hugging Face checkpoint that shards were made of: the same files, byte for byte."""
    from eplb_cli.huggingface.bake import bake_shards
    from eplb_cli.huggingface.merge import merge

    made = bake_shards if bake else merge
    done = made(
        source,
        destination,
        durable=not no_fsync,
        resume=resume,
        keep=not no_keep,
        dry_run=dry_run,
        progress=progress_bar,
    )
    print_written("checkpoint", done, output_format)
