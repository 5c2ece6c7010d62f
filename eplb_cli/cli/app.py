"""The application: its commands, in the order of the help."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from eplb_cli import __version__
from eplb_cli.cli import bake, convert, inspect, merge, plan, reshard, shard, validate, verify
from eplb_cli.errors import EXIT_USAGE

WIDEST_HELP = 160
"""Columns of the help on a terminal that has as many; beyond it lines are too long to read."""

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": WIDEST_HELP},
    help="Re-shard Mixture-of-Experts checkpoints offline, from one expert-parallel placement to another.",
    epilog="""\b
Exit codes: 0 done, 1 findings, 2 usage, 3 an input cannot be used,
4 a worker failed, 5 bytes differ, 6 the output cannot be written,
130 interrupted.""",
)


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Nothing but --version; without a command, the help as a mistake."""
    if version:
        sys.stdout.write(f"eplb {__version__}\n")
        raise typer.Exit
    if context.invoked_subcommand is None:
        sys.stderr.write(f"{context.get_help()}\n")
        raise typer.Exit(EXIT_USAGE)


app.command("reshard", short_help=reshard.SUMMARY, epilog=reshard.EXAMPLES)(reshard.command)
app.command("plan", short_help=plan.SUMMARY, epilog=plan.EXAMPLES)(plan.command)
app.command("validate", short_help=validate.SUMMARY, epilog=validate.EXAMPLES)(validate.command)
app.command("verify", short_help=verify.SUMMARY)(verify.command)
app.command("inspect", short_help=inspect.SUMMARY)(inspect.command)
app.command("convert", short_help=convert.SUMMARY, epilog=convert.EXAMPLES)(convert.command)
app.command("shard", short_help=shard.SUMMARY, epilog=shard.EXAMPLES)(shard.command)
app.command("merge", short_help=merge.SUMMARY)(merge.command)
app.command("bake", short_help=bake.SUMMARY, epilog=bake.EXAMPLES)(bake.command)
