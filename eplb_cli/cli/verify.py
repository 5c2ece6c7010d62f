"""`eplb verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from eplb_cli import render
from eplb_cli.cli.options import Format, FormatOption, rank_numbers
from eplb_cli.cli.show import progress_bar

EXAMPLES = """\b
Examples:
  eplb verify DST
  eplb verify DST --against SRC"""


def command(
    dst: Annotated[Path, typer.Argument(metavar="DST", help="A directory that eplb wrote.")],
    against: Annotated[
        Path | None,
        typer.Option(
            "--against",
            metavar="SRC",
            help="The shards that it comes from, by one reshard or several, or a Hugging Face checkpoint.",
        ),
    ] = None,
    ranks: Annotated[
        str | None,
        typer.Option(
            "--ranks",
            metavar="RANK,...",
            help="Look at the files of these ranks alone, as on one host of several: 8-15 or 0-7,12. Those "
            "of other ranks may be there or not.",
        ),
    ] = None,
    output_format: FormatOption = Format.text,
) -> None:
    """Prove again, from the files alone, that DST holds what it should.

    Every byte of DST is read and compared with the digests taken while it was written; with --against, also
    with SRC. All that differs is listed, and the exit code is 5 then. Where several hosts wrote DST, each
    proves what it has with --ranks.
    """
    from eplb_cli.audit.verify import verify

    chosen = None if ranks is None else rank_numbers("--ranks", ranks)
    result = verify(dst, against, ranks=chosen, progress=progress_bar)
    for warning in result.warnings:
        render.print_warning(warning)
    if output_format is Format.json:
        from eplb_cli.report.verification import verification_json

        render.print_json(verification_json(result))
    else:
        render.print_verification(result)
