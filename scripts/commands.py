"""The commands as their help has them, for the pages that are made of it."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from textwrap import dedent
from typing import Any

from eplb_cli.cli.app import SUMMARIES, app, made
from eplb_cli.cli.command import option_name
from eplb_cli.cli.settings import FROM_FILES

ABOUT = {
    "Options from variables and files": """\
Every option is also a variable: `--ranks-per-node 8` is `EPLB_RANKS_PER_NODE=8`. Flags take `1` and `0`,
options that may be given several times take words with blanks between. An empty variable says nothing,
and a word that only other commands take leaves a command as it is: `EPLB_FORMAT=github` is for
`validate`.

Options that are marked with *file* may also be set in a file, by their name without dashes: in
`eplb.toml`, or in the table `[tool.eplb]` of `pyproject.toml`; for one command in its own table,
`[reshard]` or `[tool.eplb.reshard]`. Of both files in one directory `eplb.toml` is read.

The command line beats the variable, which beats the command's table, which beats the general one. `-v`
says where each option came from, and so does an error about an option that was not on the command line.

The file is that in the current directory, or inside a git repository the nearest one on the way up to
its root. `--config FILE` names another, and `--config none` is none. Whoever stands in a directory has
not looked at what lies there: so a file may set nothing that names another file or a host, takes a proof
away, or says what a placement is; `model` and `layout` take names there. It has to belong to you or to
root, must not be writable for everybody, and is no link; a file that you name may be all that. What is
refused is EP001, a link EP204, and nothing is done.

`EPLB_DEBUG=1` shows where an error was raised; `EPLB_PUSH` is for `eplb_cli.live`, and `EPLB_VERIFY` for
the plugin of vLLM. They are no options.""",
    "How much is said": """\
The result is on stdout, all else on stderr. `-q` leaves nothing there but errors, and warnings of
engines that would load the result without an error and answer nonsense. `-v` adds where options came
from, what was decided (dialects, layout, backend, workers, buffers, threads), and how long each stage
took. `NO_COLOR` is kept to.""",
    "Completion": """\
`eplb --install-completion` sets up the shell that it is called from: bash, zsh or fish. Commands and
options are completed, and values that have names: presets, layouts, engines, dialects, maps, backends.
`--show-completion` prints the script; `_EPLB_COMPLETE=source_zsh eplb` prints that of a shell that is
not running.""",
}
"""What is true of all commands, in Markdown, by its heading."""


@dataclass(frozen=True)
class Option:
    """An option, or an argument, as the help has it.

    Attributes:
        words: `--num-ranks, --ep-size RANKS`.
        text: what it does, with its default.
        variable: empty for an argument, and for the options of `eplb` itself.
        is_in_files: whether a file may set it.
    """

    words: str
    text: str
    variable: str = ""
    is_in_files: bool = False


@dataclass(frozen=True)
class Command:
    """A command: its name, how it is called, what it does, and what one may say to it."""

    name: str
    summary: str
    usage: str
    paragraphs: list[str]
    arguments: list[Option]
    options: list[Option]
    examples: list[str]


def root_options() -> list[Option]:
    """The options of `eplb` itself."""
    context = _root()
    return [_option(param, context) for param in context.command.params]


def exit_codes() -> str:
    """What the exit codes mean, in a sentence."""
    return " ".join(str(app.info.epilog).removeprefix("\b\n").split())


def commands() -> list[Command]:
    """All commands, in the order of the help."""
    parent = _root()
    return [_command(name, parent) for name in SUMMARIES]


def _root() -> Any:  # noqa: ANN401 - a context of click's
    from typer.main import get_command

    return get_command(app).make_context("eplb", [], resilient_parsing=True)


def _command(name: str, parent: Any) -> Command:  # noqa: ANN401 - as above
    command = made(name)
    context = command.make_context(name, [], parent=parent, resilient_parsing=True)
    said = {
        kind: [_option(param, context) for param in command.params if param.param_type_name == kind]
        for kind in ("argument", "option")
    }
    words = [option.words for option in said["argument"]]
    words = [
        word if param.required else f"[{word}]" for word, param in zip(words, command.params, strict=False)
    ]
    usage = " ".join(["eplb", name, *words, "[OPTIONS]"])
    paragraphs = [" ".join(text.split()) for text in inspect.cleandoc(command.help).split("\n\n")]
    lines = dedent("\n".join(command.epilog.splitlines()[2:])).splitlines()
    return Command(name, SUMMARIES[name], usage, paragraphs, said["argument"], said["option"], lines)


def _option(param: Any, context: Any) -> Option:  # noqa: ANN401 - as above
    words, text = param.get_help_record(context)
    words = words.strip("[]")  # in which some versions of typer have an argument that may be left out
    text = text.replace("  [", " [")
    if not getattr(param, "envvar", None):
        return Option(words, text)
    return Option(words, text, param.envvar, option_name(param) in FROM_FILES)
