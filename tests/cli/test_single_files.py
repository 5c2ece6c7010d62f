"""Files that commands write one at a time: what is refused before any work, and what is replaced."""

from __future__ import annotations

import ast
import json
import os
import socket
import stat
from pathlib import Path

import pytest

import eplb_cli
from tests.cli.case import assert_error
from tests.cli.tree import fingerprint
from tests.support.huggingface import deepseek_v3, write_checkpoint


@pytest.fixture
def commands(case, monkeypatch):
    """Each command that writes a file, without its name, and the directories that it only reads."""
    hugging_face = case.home / "hf"
    write_checkpoint(hugging_face, deepseek_v3(), "deepseek_v3")
    monkeypatch.setattr("eplb_cli.render.html_page.require_plotly", lambda: None)
    old, new = case.home / "old.json", case.home / "new.json"
    plan = ["plan", old, new, "--checkpoint", case.src]
    return {
        "plan --out": ([*plan, "--out"], [case.src]),
        "plan --html": ([*plan, "--html"], [case.src]),
        "convert": (["convert", old, "--to", "eplb", "--checkpoint", case.src], [case.src]),
        "inspect --out": (
            ["inspect", case.src, "--identify", hugging_face, "--out"],
            [case.src, hugging_face],
        ),
    }


NAMES = ["plan --out", "plan --html", "convert", "inspect --out"]


def arguments(command, name):
    """The arguments with the file in its place."""
    return [*command[:2], name, *command[2:]] if command[0] == "convert" else [*command, name]


def special_files(home):
    """What is no regular file, by what the message calls it."""
    os.mkfifo(home / "fifo.json")
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(os.path.relpath(home / "socket.json"))
    (home / "link.json").symlink_to("old.json")
    (home / "dangling.json").symlink_to("nowhere")
    kinds = dict.fromkeys(["fifo.json", "socket.json"], "no regular file")
    kinds |= dict.fromkeys(["link.json", "dangling.json"], "a symbolic link")
    if os.geteuid() == 0:
        os.mknod(home / "device.json", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        kinds["device.json"] = "no regular file"
    return kinds


def identity(path):
    """What another file in its place would not have."""
    status = path.lstat()
    return status.st_ino, status.st_mode, status.st_ctime_ns


@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_regular_file(case, commands, name):
    """EP604 for a fifo, a socket, a device and a link, wherever it leads; it stays what it is."""
    kinds = special_files(case.home)
    before = [identity(case.home / kind) for kind in kinds]
    for kind, said in kinds.items():
        result = case.eplb(*arguments(commands[name][0], case.home / kind))
        assert_error(result, "EP604", f"{kind} is {said}", exit_code=6)
        assert result.out == ""
    assert [identity(case.home / kind) for kind in kinds] == before


@pytest.mark.parametrize("name", NAMES)
def test_a_directory(case, commands, name, monkeypatch):
    """EP001, and so is the current one."""
    monkeypatch.chdir(case.home)
    for path in (".", case.home, "src"):
        result = case.eplb(*arguments(commands[name][0], path))
        assert_error(result, "EP001", "is a directory", exit_code=2)


@pytest.mark.parametrize("name", NAMES)
def test_a_place_in_what_is_only_read(case, commands, name):
    """EP602, however the place is called; nothing is written."""
    command, sources = commands[name]
    (case.home / "alias").symlink_to(case.src)
    (case.src / "sub").mkdir()
    before = fingerprint(case.home)
    places = [
        *(source / "x.json" for source in sources),
        case.home / "alias" / "x.json",
        case.src / "sub/x.json",
    ]
    for place in places:
        assert_error(case.eplb(*arguments(command, place)), "EP602", "only read", exit_code=6)
    assert fingerprint(case.home) == before


@pytest.mark.parametrize("name", NAMES)
def test_a_directory_that_is_not_there(case, commands, name):
    """EP604 before any work is done."""
    result = case.eplb(*arguments(commands[name][0], case.home / "no" / "x.json"))
    assert_error(result, "EP604", "No such file", exit_code=6)


def test_a_file_that_is_there(case, commands):
    """A plan replaces it and leaves its mode; a placement is not replaced."""
    file = case.home / "x.json"
    file.touch(mode=0o600)
    assert case.eplb(*arguments(commands["plan --out"][0], file)).code == 0
    assert (stat.S_IMODE(file.stat().st_mode), file.stat().st_size > 0) == (0o600, True)
    for name in ("convert", "inspect --out"):
        assert_error(case.eplb(*arguments(commands[name][0], file)), "EP601", exit_code=6)


def test_stdout(case, commands):
    """`-` is stdout, which then has what the file would have, and nothing else."""
    for name in ("plan --out", "convert"):
        command = commands[name][0]
        assert case.eplb(*arguments(command, case.home / "x.json")).code == 0
        result = case.eplb(*arguments(command, "-"))
        assert (result.code, result.out) == (0, (case.home / "x.json").read_text())
        json.loads(result.out)
        (case.home / "x.json").unlink()


def test_two_things_for_one_place(case, commands):
    """EP001."""
    for name in NAMES:
        result = case.eplb(*arguments(commands[name][0], "-"), "--format", "json")
        assert_error(result, "EP001", "stdout", exit_code=2)
    for place in ("-", case.home / "x.json"):
        result = case.eplb(*arguments(commands["plan --out"][0], place), "--html", place)
        assert_error(result, "EP001", "written over", exit_code=2)


def test_there_is_one_door():
    """No other module renames a file over another name, or opens a path for writing."""
    package = Path(eplb_cli.__file__).parent
    users = set()
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in {
                "replace_file", "write_text", "write_bytes", "touch",
            }:  # fmt: skip
                users.add(str(path.relative_to(package)))
    assert users == {"cli/outputs.py"}
