"""The pages in docs/jobs, followed command by command: each prints what the page shows."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.cli.tree import read_tree
from tests.support.week import write_week

JOBS = Path(__file__).parents[2] / "docs" / "jobs"
BLOCK = re.compile(r"^```\n\$ (eplb (?:.*\\\n)*.*)\n((?:.*\n)*?)```$", re.MULTILINE)
"""A command, which may go on behind a backslash, and what it prints."""
EXIT_CODE = "; echo $?"


@pytest.fixture
def home(tmp_path, monkeypatch, eplb):
    """What an operator has: shards that were made for last week's load, and this week's."""
    write_week(tmp_path)
    monkeypatch.chdir(tmp_path)
    ranks = ("--num-ranks", 4, "--num-redundant-experts", 4)
    assert eplb("balance", "last-week.npy", *ranks, "--out", "first.json").code == 0
    assert eplb("shard", "hf", "src", "--placement", "first.json", "--engine", "vllm").code == 0
    (tmp_path / "first.json").unlink()
    return tmp_path


def follow(eplb, page):
    """Run each command of a page, and compare; one that is not to end well has `; echo $?`. All commands."""
    blocks = BLOCK.findall((JOBS / page).read_text())
    for command, shown in blocks:
        line = command.removesuffix(EXIT_CODE)
        done = eplb(*shlex.split(line.replace("\\\n", ""))[1:])
        out = done.err + done.out + f"{done.code}\n" if line != command else done.out
        assert done.code == 0 or line != command, done.err
        require_shown(shown, out)
        rows = f"$ {command}\n{shown}".splitlines()
        assert all(len(row) <= 80 or row.startswith("  error[") for row in rows)
    return [command for command, _ in blocks]


def require_shown(shown, out):
    """The parts between lines `...` are whole lines of the output, in its order; times are any."""
    shown, out = (re.sub(r"\b[0-9.]+ s\b", "T s", text) for text in (shown, out))
    at, may_skip = 0, False
    for part in re.split(r"^(\.\.\.\n)", shown, flags=re.MULTILINE):
        if part in {"", "...\n"}:
            may_skip |= bool(part)
            continue
        found = f"\n{out}".find(f"\n{part}", at)
        assert found == at or (found > at and may_skip), f"{part}\nis not in\n{out[at:]}"
        at, may_skip = found + len(part), False
    assert at == len(out) or may_skip, f"the page ends before\n{out[at:]}"


def test_new_load(eplb, home):
    """From the dump to shards that are those of NEW, and the map for SGLang."""
    commands = follow(eplb, "new-load.md")
    assert len(commands) == 10
    assert eplb("shard", "hf", "want", "--placement", "new.json", "--engine", "vllm").code == 0
    assert read_tree(home / "dst") == read_tree(home / "want")
    assert eplb("validate", "map.json", "--num-ranks", 4, "--against", "new.json").code == 0


def test_lost_ranks(eplb, home):
    """From the shards of three ranks to those that NEW gives."""
    for file in (home / "src").glob("*rank-2-*"):
        file.unlink()
    commands = follow(eplb, "lost-ranks.md")
    assert len(commands) == 6
    assert eplb("shard", "hf", "want", "--placement", "new.json", "--engine", "vllm").code == 0
    assert read_tree(home / "dst") == read_tree(home / "want")


@pytest.mark.parametrize(
    ("shown", "is_it"),
    [
        ("one\ntwo 3.50 s\nthree\n", True),
        ("one\n...\n", True),
        ("...\nthree\n", True),
        ("one\n...\nthree\n", True),
        ("one\nthree\n", False),
        ("two 0.01 s\nthree\n", False),
        ("one\n", False),
        ("...\nthree\none\n", False),
        ("three\n...\none\n", False),
        ("...\nwo 0.01 s\n...\n", False),
        ("one\n...\ntwo 0.01 s\n...\nfour\n", False),
    ],
)
def test_what_is_shown(shown, is_it):
    """Nothing that is left out goes without `...`."""
    out = "one\ntwo 0.01 s\nthree\n"
    if is_it:
        require_shown(shown, out)
    else:
        with pytest.raises(AssertionError):
            require_shown(shown, out)


def test_every_page_is_followed():
    """None is there that nobody runs, and no block of a page is passed over."""
    assert {page.name for page in JOBS.iterdir()} == {"new-load.md", "lost-ranks.md"}
    for page in JOBS.iterdir():
        assert page.read_text().count("$ eplb") == len(BLOCK.findall(page.read_text()))
