"""`eplb verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from eplb_cli import render
from eplb_cli.cli.options import Format, FormatOption
from eplb_cli.cli.show import progress_bar, tree_nbytes

SUMMARY = "Prove again that an output is what it should be."


def command(
    dst: Annotated[Path, typer.Argument(metavar="DST", help="A directory that eplb wrote.")],
    against: Annotated[
        Path | None, typer.Option("--against", metavar="SRC", help="The shards it was made from.")
    ] = None,
    output_format: FormatOption = Format.text,
) -> None:
    """Prove again, from the files alone, that DST holds what it should.

    Every byte of DST is read and compared with the digests taken while it was written; with --against, also
    with SRC. Exits with 5 where a byte differs.
    """
    from eplb_cli.audit.verify import verify
    from eplb_cli.progress import accumulate

    total_nbytes = tree_nbytes(dst) + (tree_nbytes(against) if against else 0)
    with progress_bar(total_nbytes, "verify") as show:
        result = verify(dst, against, accumulate(show))
        show(total_nbytes)  # headers are read, and not counted
    for warning in result["warnings"]:
        render.print_warning(warning)
    if output_format is Format.json:
        render.print_json({"format": "eplb-verification/1", **result})
    else:
        render.print_verification(result)
