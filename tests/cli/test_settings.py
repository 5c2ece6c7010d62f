"""Options from eplb.toml and from [tool.eplb] of pyproject.toml, and what no file may say."""

from __future__ import annotations

import os
from itertools import product
from pathlib import Path

import pytest

from eplb_cli.cli import settings
from eplb_cli.cli.app import SUMMARIES, made
from eplb_cli.cli.command import option_name
from eplb_cli.cli.settings import FROM_FILES, MAX_LOOKED_AT_NBYTES, MAX_NBYTES
from tests.cli.case import assert_error
from tests.cli.tree import fingerprint

STRANGER = 4321
"""A user id that is neither ours nor root's."""


@pytest.fixture
def here(case, monkeypatch) -> Path:
    """A directory in the directory of the case, where somebody stands."""
    path: Path = case.home / "here"
    path.mkdir()
    monkeypatch.chdir(path)
    return path


def plan(case, *options):
    """A plan for the two placements of the case."""
    return case.eplb("plan", case.home / "old.json", case.home / "new.json", *options)


def refused(case, *says, code="EP001", exit_code=2):
    """A plan that is refused, and leaves everything as it is."""
    before = fingerprint(case.home)
    assert_error(plan(case), code, *says, exit_code=exit_code)
    assert fingerprint(case.home) == before


def test_what_a_file_may_set_is_an_option():
    """No name in the list that no command has."""
    options = {option_name(option) for name in SUMMARIES for option in made(name).options()}
    assert sorted(FROM_FILES - options) == []


@pytest.mark.parametrize("name", SUMMARIES)
def test_nothing_that_names_a_file_or_takes_a_proof_away(name):
    """Whoever wrote the file is not whoever runs the command."""
    for option in made(name).options():
        if option_name(option) in FROM_FILES:
            takes = option.metavar or ""
            assert not {"FILE", "DIR", "SRC", "OLD", "LOAD", "HF_DIR", "HOST:PORT"} & {*takes.split("|")} or (
                option_name(option) in settings._NAMES
            )
            assert option.type.name != "path"
            assert not option_name(option).startswith("no-")
            assert option_name(option) not in {
                "copy",
                "resume",
                "dry-run",
                "bake",
                "rank-scalars",
                "old",
                "new",
            }


def test_precedence(case, here, monkeypatch):
    """The command line beats a variable, which beats the command's table, which beats the others."""
    (here / "eplb.toml").write_text('expert-bytes = "1kB"\nnum-ranks = 2\n')
    steps = [(1000, None), (2000, "[plan]\nexpert-bytes = 2000\n"), (3000, "EPLB"), (4000, "--")]
    options: list[str] = []
    for size, more in steps:
        if more == "EPLB":
            monkeypatch.setenv("EPLB_EXPERT_BYTES", "3kB")
        elif more == "--":
            options = ["--expert-bytes", "4000"]
        elif more:
            (here / "eplb.toml").write_text((here / "eplb.toml").read_text() + more)
        totals = plan(case, "--format", "json", *options).json["totals"]
        assert totals["remote_bytes"] == totals["remote_rows"] * size


@pytest.mark.parametrize("name", ["eplb.toml", "pyproject.toml"])
def test_where_it_came_from(case, here, name):
    """With -v: the table, and the file."""
    table, rest = ("tool.eplb", "\n[tool.eplb.plan]") if name == "pyproject.toml" else ("", "\n[plan]")
    (here / name).write_text(f"{f'[{table}]' if table else ''}\nfull = true{rest}\nsenders = 'vllm'\n")
    err = plan(case, "-v").err
    first = f"[tool.eplb] of {here / name}" if table else str(here / name)
    second = f"[{'tool.eplb.' * bool(table)}plan] of {here / name}"
    assert f"option: --full, from full in {first}\n" in err
    assert f"option: --senders vllm, from senders in {second}\n" in err


def test_only_inside_a_repository_directories_above(case, here):
    """Up to its root and not beyond; the nearest file is the only one."""
    inner, other = here / "a" / "b", case.home / "eplb.toml"
    inner.mkdir(parents=True)
    (here / "eplb.toml").write_text("format = 'json'")
    other.write_text("format = 'text'")
    os.chdir(inner)
    assert not plan(case).json
    (here / ".git").mkdir()
    assert plan(case).json
    (here / "a" / "pyproject.toml").write_text("[tool.other]\nformat = 'text'")
    assert plan(case).json
    (here / "a" / "pyproject.toml").write_text("[tool.eplb]\nformat = 'text'")
    assert not plan(case).json
    (here / "eplb.toml").unlink()
    (here / "a" / "pyproject.toml").unlink()
    assert "option: --format" not in plan(case, "-v").err


def test_eplb_toml_before_pyproject(case, here):
    """Of the same directory."""
    (here / "pyproject.toml").write_text("[tool.eplb]\nformat = 'text'")
    (here / "eplb.toml").write_text("format = 'json'")
    assert plan(case).json


def test_a_file_that_is_named(case, here, monkeypatch):
    """Instead of what lies here; `none` is no file at all."""
    (here / "eplb.toml").write_text("format = 'json'")
    (case.home / "mine.toml").write_text("format = 'text'\nfull = true")
    assert plan(case).json
    for named in ("none", case.home / "mine.toml"):
        assert not plan(case, "--config", named).json
    monkeypatch.setenv("EPLB_CONFIG", "none")
    assert not plan(case).json
    assert_error(plan(case, "--config", "nothing.toml"), "EP201")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("out = 'x'", ["--out cannot be set in a file", "say it on the command line"]),
        ("[reshard]\nno-verify = true", ["--no-verify cannot be set in a file"]),
        ("config = 'x'", ["--config cannot be set in a file"]),
        ("num_ranks = 2", ["'num_ranks' is no option", "did you mean num-ranks"]),
        ("[pln]\nfull = true", ["'pln' is no command", "did you mean plan"]),
        ("[plan]\ncurve = true", ["plan has no --curve", "[plan] of "]),
        ("[plan]\nformat = 'github'", ["format in [plan] of ", "'github' is not one of 'text', 'json'"]),
        ("senders = 'vlm'", ["senders in ", "'vlm' is not one of 'balanced', 'vllm'. Did you mean vllm?"]),
        ("num-ranks = 0", ["num-ranks in ", "'0' is not a whole number from 1 on."]),
        ("num-ranks = 1.5", ["'1.5' is not a whole number"]),
        ("num-ranks = true", ["num-ranks in ", "is not what --num-ranks takes", "a word or a number"]),
        ("num-ranks = [2]", ["is not what --num-ranks takes"]),
        ("num-ranks = 2026-11-26", ["is not what --num-ranks takes"]),
        ("num-ranks = {a = 1}", ["'num-ranks' is no command"]),
        (f"num-ranks = 0x{'f' * 9000}", ["is not what --num-ranks takes"]),
        (f"full = 0x{'f' * 9000}", ["neither true nor false"]),
        ("[plan.full]\nx = 1", ["neither true nor false"]),
        ("verify = 3", ["'verify' is no option"]),
        ("'\\u001b[31m' = 3", ["is no option"]),
        ("full = 'yes'", ["full in ", "neither true nor false"]),
        ("full = 1", ["neither true nor false"]),
        ("layout = './mine.toml'", ["may not name another"]),
        ("model = 'deepseek-v33'", ["no name that eplb knows", "did you mean deepseek-v3"]),
        ("full = ", ["not well-formed TOML", "--config none"]),
        ("full = true\n" + "#" * MAX_NBYTES, ["more than"]),
    ],
)
def test_what_a_file_may_not_say(case, here, content, says):
    """EP001 says where and what, and nothing is done."""
    (here / "eplb.toml").write_text(content)
    code = ("EP201", 3) if says == ["more than"] else ("EP001", 2)
    refused(case, *says, code=code[0], exit_code=code[1])
    assert plan(case, "--config", "none").code == 0


def test_a_word_for_other_commands(case, here):
    """What all commands are told, and only some take, leaves the others as they are."""
    (here / "eplb.toml").write_text("format = 'github'")
    result = plan(case, "-v")
    assert result.out.startswith("plan for 2 ranks")
    assert "option: --format" not in result.err
    assert plan(case, "--format", "json").json


def test_the_help_reads_no_file(case, here):
    """However wrong it is; nor does the version, or a shell that completes."""
    (here / "eplb.toml").write_text("nonsense")
    for line in (["plan", "--help"], ["--version"], ["--help"]):
        assert case.eplb(*line).code == 0
    (here / "eplb.toml").write_text("format = 'json'")
    assert "[default: text]" in case.eplb("plan", "--help").out


def test_json_for_mistakes_where_the_file_says_so(case, here):
    """A program reads stdout whatever goes wrong."""
    (here / "eplb.toml").write_text("format = 'json'")
    assert case.eplb("plan", "nothing.json", "linear").json["error"]["code"] == "EP101"
    assert not case.eplb("plan", "nothing.json", "linear", "--config", "none").json


def own(path: Path, stranger: bool, mode: int, monkeypatch) -> None:
    """Give a file to a stranger, or let a stranger be who runs eplb."""
    path.chmod(mode)
    if stranger and os.geteuid() == 0:
        os.chown(path, STRANGER, STRANGER)
    elif stranger:
        monkeypatch.setattr(os, "geteuid", lambda: STRANGER)


@pytest.mark.parametrize(
    ("name", "stranger", "mode"),
    [*product(["eplb.toml", "pyproject.toml"], [True, False], [0o644, 0o666])],
)
def test_files_of_others(case, here, monkeypatch, name, stranger, mode):
    """What somebody else could have written is refused, unless it is named or says nothing of eplb."""
    file = here / name
    file.write_text("[tool.eplb]\nformat = 'json'" if name == "pyproject.toml" else "format = 'json'")
    own(file, stranger, mode, monkeypatch)
    if stranger or mode == 0o666:
        refused(case, f"{file} would set options", f"name it with --config {file}")
    assert plan(case, "--config", file).json
    assert not plan(case, "--config", "none").json
    file.write_text("[tool.ruff]\n" if name == "pyproject.toml" else "format = 'text'")
    if name == "pyproject.toml":
        assert plan(case).code == 0


def test_links(case, here):
    """Whoever planted one would choose which of our files it is; a link that is named is followed."""
    (case.home / "mine.toml").write_text("format = 'json'")
    (here / "eplb.toml").symlink_to(case.home / "mine.toml")
    refused(case, "is a symbolic link", code="EP204", exit_code=3)
    assert plan(case, "--config", "eplb.toml").json
    (here / "eplb.toml").unlink()
    (case.home / "mine.toml").write_text("[tool.eplb]\nformat = 'json'")
    (here / "pyproject.toml").symlink_to(case.home / "mine.toml")
    assert not plan(case).json


def test_other_things_of_that_name(case, here):
    """A directory or a fifo is refused at once; a pyproject.toml that is too long says nothing of eplb."""
    (here / "eplb.toml").mkdir()
    refused(case, "not a regular file", code="EP204", exit_code=3)
    (here / "eplb.toml").rmdir()
    os.mkfifo(here / "eplb.toml")
    refused(case, "not a regular file", code="EP204", exit_code=3)
    (here / "eplb.toml").unlink()
    (here / "pyproject.toml").write_text("[tool.eplb]\nformat = 'json'\n" + "#" * MAX_NBYTES)
    refused(case, "is too long to be read for [tool.eplb]", "write an eplb.toml")
    (here / "pyproject.toml").write_text("[tool.eplb]\nformat = 'json'\n" + "#" * MAX_LOOKED_AT_NBYTES)
    assert not plan(case).json
    (here / "pyproject.toml").write_text("nonsense = [ # of another tool")
    assert plan(case).code == 0
    (here / "pyproject.toml").write_text("tool.eplb = 3")
    refused(case, "tool.eplb is no table")


def test_a_directory_that_is_gone(case, here):
    """There is nothing in it."""
    here.rmdir()
    assert case.eplb("validate", case.home / "old.json").code == 0
