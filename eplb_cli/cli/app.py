"""The application: its commands, in the order of the help.

Making a command of a function takes typer 5 ms and more, and the function's module imports more modules, so
both is done for the one command that was called. Typer itself knows each by its name and summary.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from typing import Annotated, Any

import typer
import typer.core

from eplb_cli import __version__
from eplb_cli.cli.command import Command, choices_of, option_name
from eplb_cli.errors import EXIT_USAGE

SUMMARIES = {
    "reshard": "Rearrange shards for another placement.",
    "plan": "Show what would move, without moving it.",
    "validate": "Check placement files.",
    "explain": "Say what the code of a message means.",
    "verify": "Prove again that an output is what it should be.",
    "inspect": "Show what a directory of shards, or a load dump, holds.",
    "balance": "Make a placement that balances a load.",
    "convert": "Write a placement in another engine's dialect.",
    "shard": "Write a Hugging Face checkpoint as shards.",
    "merge": "Write shards as the Hugging Face checkpoint they were made of.",
    "bake": "Write a placement into a Hugging Face checkpoint.",
}
"""What the help says of each command; each is the function `command` of the module of its name."""

WIDEST_HELP = 160
"""Columns of the help on a terminal that has as many; beyond it lines are too long to read."""

PLAIN: dict[str, Any] = {
    "rich_markup_mode": None,
    "pretty_exceptions_enable": False,
}


@cache
def made(name: str) -> Any:  # noqa: ANN401 - a command of click's, which not all versions of typer name
    """The command of a name, whole."""
    module = import_module(f"eplb_cli.cli.{name}")
    alone = typer.Typer(add_completion=False, **PLAIN)
    alone.command(name, cls=Command, epilog=module.EXAMPLES)(module.command)
    return typer.main.get_command(alone)


class _Commands(typer.core.TyperGroup):
    """Commands of which the one that is called is made then."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[Any, Any, list[str]]:  # noqa: ANN401 - as above
        """The name, the command and the rest of a command line."""
        name, known, rest = super().resolve_command(ctx, args)
        return name, known and made(name), rest

    def has_option(self, name: str) -> bool:
        """Whether any command has an option of this name: makes them all, and is asked about mistakes."""
        return any(name == option_name(option) for option in _all_options())

    def takes(self, name: str, word: object) -> bool:
        """Whether the option of this name takes a word of any command's few; made and asked likewise."""
        return any(name == option_name(option) and word in choices_of(option) for option in _all_options())


def _all_options() -> Iterator[Any]:
    return (option for name in SUMMARIES for option in made(name).options())


app = typer.Typer(
    cls=_Commands,
    **PLAIN,
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
    """Nothing but --version, and typer's options for shells; without a command, the help as a mistake."""
    if version:
        sys.stdout.write(f"eplb {__version__}\n")
        raise typer.Exit
    if context.invoked_subcommand is None:
        sys.stderr.write(f"{context.get_help()}\n")
        raise typer.Exit(EXIT_USAGE)


def _named() -> None:
    """What typer makes its list of."""


for _name, _summary in SUMMARIES.items():
    app.command(_name, short_help=_summary)(_named)
