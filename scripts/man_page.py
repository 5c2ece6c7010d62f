"""docs/man/eplb.1: the manual page, from the help of the commands.

Usage: python -m scripts.man_page > docs/man/eplb.1
"""

from __future__ import annotations

import re
import sys

from eplb_cli.cli.app import app
from scripts.commands import ABOUT, Command, Option, commands, exit_codes, root_options

_HEAD = """.\\" Made by scripts/docs from the help of the commands: change that.
.TH EPLB 1 "" "eplb" "User Commands"
.SH NAME
eplb \\- """


def page() -> str:
    """The whole page, in the macros of man(7)."""
    what = str(app.info.help)
    lines = [_HEAD + _text(what[0].lower() + what[1:].rstrip(".")), ".SH SYNOPSIS", ".B eplb", "COMMAND"]
    lines += ["[OPTIONS] [ARGS]...", ".SH COMMANDS"]
    found = commands()
    for command in found:
        lines += [".TP", f"\\fBeplb {command.name}\\fR", _text(command.summary)]
    lines += [".SH OPTIONS", *_options(root_options())]
    for command in found:
        lines += _section(command)
    for heading, text in ABOUT.items():
        lines += [f'.SH "{heading.upper()}"', *_paragraphs(text.split("\n\n"))]
    return "\n".join([*lines, '.SH "EXIT STATUS"', _text(exit_codes()), ""])


def _section(command: Command) -> list[str]:
    """A command's part of the page."""
    lines = [
        f'.SH "EPLB {command.name.upper()}"',
        f".B {_text(command.usage)}",
        *_paragraphs(command.paragraphs),
    ]
    lines += _options([*command.arguments, *command.options])
    return [*lines, ".PP", "Examples:", ".PP", ".nf", *map(_text, command.examples), ".fi"]


def _options(options: list[Option]) -> list[str]:
    """A list of options, each with its variable behind it."""
    lines = []
    for option in options:
        also = f" ({option.variable}{', file' * option.is_in_files})" if option.variable else ""
        lines += [".TP", f"\\fB{_text(option.words)}\\fR", _text(option.text + also)]
    return lines


def _paragraphs(texts: list[str]) -> list[str]:
    return [line for text in texts for line in (".PP", _text(text))]


def _text(text: str) -> str:
    """Words that roff takes for words: no escape, no request, and what Markdown says of some of them."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    text = re.sub(r"`([^`]+)`", r"\\fB\1\\fR", text)
    text = re.sub(r"\*(\w+)\*", r"\\fI\1\\fR", text)
    return re.sub(r"^(?=[.'])", r"\\&", text, flags=re.MULTILINE)


if __name__ == "__main__":
    sys.stdout.write(page())
