"""`eplb shard`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from eplb_cli.cli import complete
from eplb_cli.cli.options import (
    A_PLACEMENT,
    DryRunOption,
    Format,
    FormatOption,
    FromOption,
    KeysOption,
    NoFsyncOption,
    NoKeepOption,
    NumRanks,
    NumRedundant,
    ResumeOption,
    rank_numbers,
)
from eplb_cli.cli.show import print_written, progress_bar
from eplb_cli.huggingface.choice import Mtp
from eplb_cli.huggingface.engines import engine_names

EXAMPLES = """\b
Examples:
  eplb shard HF_DIR DST --placement map.json --num-ranks 32 --engine sglang
  eplb shard HF_DIR DST --placement linear --num-ranks 4 --engine huggingface"""


def command(
    source: Annotated[Path, typer.Argument(metavar="HF_DIR", help="A Hugging Face checkpoint; only read.")],
    destination: Annotated[
        Path, typer.Argument(metavar="DST", help="Where the shards appear: new, or empty.")
    ],
    placement: Annotated[
        str,
        typer.Option(
            "--placement",
            metavar="FILE|MAP",
            autocompletion=complete.maps,
            help=f"In any dialect: {A_PLACEMENT}.",
        ),
    ],
    engine: Annotated[
        str,
        typer.Option(
            "--engine",
            metavar="ENGINE",
            autocompletion=complete.engines,
            help=f"Whose names tensors get, one of: {', '.join(engine_names())}.",
        ),
    ],
    mtp: Annotated[
        Mtp,
        typer.Option(
            "--mtp", help="MTP layers that FILE does not name: experts in order, as engines do, or left out."
        ),
    ] = "linear",
    layout: KeysOption = "auto",
    only: Annotated[
        str | None,
        typer.Option(
            "--only",
            metavar="RANK,...",
            help="Write nothing but the experts that were lost with these ranks of FILE, since no other has "
            "them: as one rank, for `reshard --missing-from`.",
        ),
    ] = None,
    num_ranks: NumRanks = None,
    num_redundant_experts: NumRedundant = None,
    dialect: FromOption = None,
    dry_run: DryRunOption = False,
    resume: ResumeOption = False,
    no_keep: NoKeepOption = False,
    no_fsync: NoFsyncOption = False,
    output_format: FormatOption = Format.text,
) -> None:
    """Write the experts of a Hugging Face checkpoint to the ranks that a placement names, and prove it.

    Every byte is read once. Tensors that are no experts' are on all ranks, in one file under many names.
    """
    from eplb_cli.huggingface.shard import shard
    from eplb_cli.inputs.options import PlacementOptions

    options = PlacementOptions(num_ranks, num_redundant_experts=num_redundant_experts, dialect=dialect)
    done = shard(
        source,
        destination,
        placement,
        engine,
        options,
        mtp=mtp,
        layout=layout,
        only=rank_numbers("--only", only),
        durable=not no_fsync,
        resume=resume,
        keep=not no_keep,
        dry_run=dry_run,
        progress=progress_bar,
    )
    print_written("shards", done, output_format)
