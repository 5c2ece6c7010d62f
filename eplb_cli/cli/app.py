"""The application, and nothing but --version."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from eplb_cli import __version__

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Re-shard Mixture-of-Experts checkpoints offline, from one expert-parallel placement to another.",
    epilog="""\b
Exit codes: 0 done, 1 findings, 2 usage, 3 an input cannot be used,
4 a worker failed, 5 bytes differ, 6 the output cannot be written,
130 interrupted.""",
)


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Nothing but --version."""
    if version:
        sys.stdout.write(f"eplb {__version__}\n")
        raise typer.Exit
