"""docs/commands.md, and the list of commands in the README: from the help of the commands.

Usage: python -m scripts.commands_page > docs/commands.md
       python -m scripts.commands_page README.md      puts the list where it belongs in that file
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from scripts.commands import ABOUT, Command, Option, commands, exit_codes, root_options

NOTE = "<!-- Made by scripts/docs from the help of the commands: change that. -->"
BEGIN, END = "<!-- commands: made by scripts/docs -->", "<!-- commands end -->"


def page() -> str:
    """The whole page."""
    found = commands()
    parts = [NOTE, "# Commands", _table(found, ""), exit_codes()]
    for heading, text in ABOUT.items():
        parts += [f"## {heading}", text]
    parts += ["## eplb", "\n".join(map(_line, root_options()))]
    for command in found:
        parts += _section(command)
    return "\n\n".join(parts) + "\n"


def with_list(text: str) -> str:
    """A text with the list of commands between its two marks."""
    listed = f"{BEGIN}\n\n{_table(commands(), 'docs/commands.md')}\n\n{END}"
    return re.sub(f"{BEGIN}.*{END}", lambda _: listed, text, flags=re.DOTALL)


def _table(found: list[Command], page_name: str) -> str:
    lines = ["| command | what it does |", "|---|---|"]
    lines += [
        f"| [`eplb {command.name}`]({page_name}#eplb-{command.name}) | {command.summary} |"
        for command in found
    ]
    return "\n".join(lines)


def _section(command: Command) -> list[str]:
    """A command's part of the page."""
    return [
        f"## eplb {command.name}",
        f"```\n{command.usage}\n```",
        *command.paragraphs,
        "\n".join(map(_line, command.arguments)),
        "\n".join(map(_line, command.options)),
        "```\n" + "\n".join(command.examples) + "\n```",
    ]


def _line(option: Option) -> str:
    """One line of a list; a bar and a star are what they are."""
    text = re.sub(r"([*<|])", r"\\\1", option.text)
    also = f" `{option.variable}`" if option.variable else ""
    return f"- `{option.words}`: {text}{also}{', *file*' * option.is_in_files}"


if __name__ == "__main__":
    if len(sys.argv) > 1:
        path = Path(sys.argv[1])
        path.write_text(with_list(path.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        sys.stdout.write(page())
