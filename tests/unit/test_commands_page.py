"""The reference of commands, the manual page and the list in the README are what the help says."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from eplb_cli.cli.app import SUMMARIES, made
from eplb_cli.cli.command import option_name
from eplb_cli.cli.settings import FROM_FILES
from scripts import commands_page, man_page
from scripts.commands import commands

ROOT = Path(__file__).parents[2]
MAN = ROOT / "docs" / "man" / "eplb.1"


def test_the_pages_are_up_to_date():
    """`./scripts/docs` writes them anew."""
    assert (ROOT / "docs" / "commands.md").read_text() == commands_page.page()
    assert MAN.read_text() == man_page.page()
    readme = (ROOT / "README.md").read_text()
    assert readme == commands_page.with_list(readme)
    assert readme.count(commands_page.BEGIN) == readme.count(commands_page.END) == 1


@pytest.mark.parametrize("name", SUMMARIES)
def test_every_option_has_its_place(name):
    """In the command's own part, with its variable, and whether a file may set it."""
    page = (ROOT / "docs" / "commands.md").read_text()
    part = page.partition(f"\n## eplb {name}\n")[2].partition("\n## ")[0]
    for option in made(name).options():
        (line,) = re.findall(rf"^- `(?:-\w, )?--{option_name(option)}\b(?!-).*", part, re.MULTILINE)
        assert f"`{option.envvar}`" in line
        assert line.endswith(", *file*") == (option_name(option) in FROM_FILES)


@pytest.mark.parametrize("command", commands(), ids=lambda command: command.name)
def test_every_command_has_examples(command):
    """Each of them is a call that the command understands, but for what its files hold."""
    lines = "\n".join(command.examples).replace("\\\n", " ").splitlines()
    calls = [shlex.split(re.sub(r"\(.*\)", "", line.removeprefix("eplb "))) for line in lines]
    assert any(call[0] == command.name for call in calls)
    for call in calls:
        made(call[0]).make_context(call[0], call[1:], resilient_parsing=True)
        options = {name for option in made(call[0]).options() for name in option.opts}
        assert {word for word in call if word.startswith("--")} <= options
        assert all(len(example) <= 76 for example in command.examples)


def test_roff_understands_the_manual_page():
    """Without a word of complaint, and with every command."""
    if (groff := shutil.which("groff")) is None:
        pytest.skip("there is no groff")
    done = subprocess.run([groff, "-man", "-Tutf8", "-ww", MAN], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    shown = re.sub(r"\x1b\[[0-9;]*m|.\x08", "", done.stdout)
    for command in commands():
        assert f"EPLB {command.name.upper()}" in shown
        for example in command.examples:
            assert example in shown.replace("\N{HYPHEN}", "-").replace("\N{MINUS SIGN}", "-")
