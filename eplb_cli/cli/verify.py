"""`eplb verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from eplb_cli import render
from eplb_cli.cli.options import Format, FormatOption
from eplb_cli.cli.show import progress_bar


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
    output_format: FormatOption = Format.text,
) -> None:
    """Prove again, from the files alone, that DST holds what it should.

    Every byte of DST is read and compared with the digests taken while it was written; with --against, also
    with SRC. All that differs is listed, and the exit code is 5 then.
    """
    from eplb_cli.audit.verify import verify

    result = verify(dst, against, progress=progress_bar)
    for warning in result.warnings:
        render.print_warning(warning)
    if output_format is Format.json:
        from eplb_cli.report.verification import verification_json

        render.print_json(verification_json(result))
    else:
        render.print_verification(result)
