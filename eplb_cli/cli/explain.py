"""`eplb explain`."""

from __future__ import annotations

from typing import Annotated

import typer

from eplb_cli import render
from eplb_cli.cli import complete
from eplb_cli.cli.options import Format, FormatOption

EXAMPLES = """\b
Examples:
  eplb explain EP106
  eplb explain"""


def command(
    code: Annotated[
        str | None,
        typer.Argument(
            metavar="CODE",
            autocompletion=complete.codes,
            help="What a message begins with; without it, list all.",
        ),
    ] = None,
    output_format: FormatOption = Format.text,
) -> None:
    """Say what a code means, what causes it and what to do about it, without any network."""
    from eplb_cli.report.explanation import explanation_of, explanations

    if code is None:
        render.print_explanations(list(explanations().values()), output_format.value)
    else:
        render.print_explanation(explanation_of(code), output_format.value)
