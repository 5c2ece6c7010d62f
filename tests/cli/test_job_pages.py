"""The pages in docs/jobs, followed command by command: each prints what the page shows."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from eplb_cli import format_placement, read_placement
from tests.cli.tree import Result, read_tree, write_json
from tests.support.leaders import free_port
from tests.support.week import MANY_RANKS, USUAL, write_week

JOBS = Path(__file__).parents[2] / "docs" / "jobs"
BLOCK = re.compile(r"^```\n(host\d)?\$ (eplb (?:.*\\\n)*.*)\n((?:.*\n)*?)```$", re.MULTILINE)
"""On which host, if that is said, a command, which may go on behind a backslash, and what it prints."""
EXIT_CODE = "; echo $?"
WHOLE = ("error[", "warning[", "note[", "hint: ", "::")
"""A message is one line, however long."""
PAGES = ("more-ranks", "new-load", "to-an-engine", "ci", "lost-map", "lost-ranks", "many-hosts")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def home(tmp_path, monkeypatch, eplb):
    """What an operator has: shards that were made for last week's load, and this week's."""
    monkeypatch.chdir(tmp_path)
    return begin(tmp_path, eplb)


def begin(home, eplb, size=USUAL, num_ranks=4, num_redundant=4):
    """The same for a model of another size, on so many ranks."""
    write_week(home, size)
    ranks = ("--num-ranks", num_ranks, "--num-redundant-experts", num_redundant)
    assert eplb("balance", "last-week.npy", *ranks, "--out", "first.json").code == 0
    assert eplb("shard", "hf", "src", "--placement", "first.json", "--engine", "vllm").code == 0
    (home / "first.json").unlink()
    return home


def same_as_sharded(eplb, home, dst, placement):
    """Whether a directory has the tensors that `shard` makes of the checkpoint under a placement."""
    assert eplb("shard", "hf", "want", "--placement", placement, "--engine", "vllm").code == 0
    return read_tree(home / dst) == read_tree(home / "want")


def two_hosts(home):
    """Run a command on a host, a directory here; what several have to run begins on both at once."""
    endpoint, running = f"127.0.0.1:{free_port()}", {}
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def start(host, words):
        command = [sys.executable, "-m", "eplb_cli", *words]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command, cwd=home / host, env=environment, stdout=pipe, stderr=pipe, text=True
        )

    def run(host, *words):
        command = [endpoint if word == "10.0.0.1:29500" else word for word in words]
        if "--nnodes" in words and host not in running:
            at = words.index("--node-rank") + 1
            for node in range(2):
                own = [*command[:at], str(node), *command[at + 1 :]]
                running[f"host{node}"] = start(f"host{node}", own)
        process = running.pop(host, None) or start(host, command)
        out, err = process.communicate(timeout=120)
        return Result(process.returncode, out, err)

    return run


def follow(eplb, page):
    """Run each command of a page, and compare; one that is not to end well has `; echo $?`. All commands."""
    blocks = BLOCK.findall((JOBS / page).read_text())
    for host, command, shown in blocks:
        line = command.removesuffix(EXIT_CODE)
        words = shlex.split(line.replace("\\\n", ""))[1:]
        done = eplb(host, *words) if host else eplb(*words)
        out = done.err + done.out + f"{done.code}\n" if line != command else done.out
        assert done.code == 0 or line != command, done.err
        require_shown(shown, out)
        rows = f"{host}$ {command}\n{shown}".splitlines()
        assert [row for row in rows if len(row) > 80 and not row.strip().startswith(WHOLE)] == []
    return [command for _, command, _ in blocks]


def require_shown(shown, out):
    """The parts between lines `...` are whole lines of the output, in its order; times and rates are any."""
    shown, out = (re.sub(r"\b[0-9.]+ (s|[kMG]?B/s)\b", r"T \1", text) for text in (shown, out))
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
    assert same_as_sharded(eplb, home, "dst", "new.json")
    assert eplb("validate", "map.json", "--num-ranks", 4, "--against", "new.json").code == 0


def test_lost_ranks(eplb, home):
    """From the shards of three ranks to those that NEW gives."""
    for file in (home / "src").glob("*rank-2-*"):
        file.unlink()
    commands = follow(eplb, "lost-ranks.md")
    assert len(commands) == 6
    assert same_as_sharded(eplb, home, "dst", "new.json")


def test_more_ranks(eplb, tmp_path, monkeypatch):
    """From the shards of 32 ranks to those of 64."""
    monkeypatch.chdir(tmp_path)
    home = begin(tmp_path, eplb, MANY_RANKS, 32, 32)
    commands = follow(eplb, "more-ranks.md")
    assert len(commands) == 7
    assert same_as_sharded(eplb, home, "dst", "new.json")


def test_lost_map(eplb, home):
    """From shards that say nothing to those of NEW."""
    assert eplb("balance", "this-week.npy", "--checkpoint", "src", "--out", "new.json").code == 0
    for file in (home / "src").glob("eplb*"):
        file.unlink()
    commands = follow(eplb, "lost-map.md")
    assert len(commands) == 6
    assert same_as_sharded(eplb, home, "dst", "new.json")
    assert not (home / "wrong").exists()


def test_to_an_engine(eplb, home):
    """From a checkpoint and SGLang's map to what each engine takes."""
    model = ("--model", "hf/config.json")
    assert eplb("convert", "src/eplb.json", "map.json", "--to", "sglang", *model).code == 0
    write_json(home / "plain.json", [[2, 0, 1, 3, *range(4, 16)]] * 4)
    shutil.rmtree(home / "src")
    commands = follow(eplb, "to-an-engine.md")
    assert len(commands) == 8
    assert same_as_sharded(eplb, home, "vllm", "vllm/eplb.json")
    against = eplb("validate", "moe.yaml", "--num-ranks", 4, *model, "--against", "vllm/eplb.json")
    assert against.code == 0
    assert read_tree(home / "again") == read_tree(home / "hf")


def test_ci(eplb, home):
    """From a proposal that forgets experts to one that is within the gates, or not."""
    placement, _ = read_placement("src/eplb.json")
    (home / "placements").mkdir()
    (home / "served.json").write_text(format_placement(placement))
    rows = placement.physical_to_logical.copy()
    rows[2, 7], rows[3, 19] = 9, 3
    proposed = format_placement(replace(placement, physical_to_logical=rows))
    (home / "placements" / "tuesday.json").write_text(proposed)
    write_json(home / "config.json", {**USUAL.config, "torch_dtype": "bfloat16"})
    commands = follow(eplb, "ci.md")
    assert len(commands) == 6


def test_many_hosts(eplb, home):
    """From shards that two hosts share to those of NEW, of which each has its own."""
    pytest.importorskip("torch")
    assert eplb("balance", "this-week.npy", "--checkpoint", "src", "--out", "new.json").code == 0
    for host, others in (("host0", "[23]"), ("host1", "[01]")):
        shutil.copytree(home / "src", home / host / "src")
        shutil.copy(home / "new.json", home / host)
        for file in (home / host / "src").glob(f"model-rank-{others}-*"):
            file.unlink()
    commands = follow(two_hosts(home), "many-hosts.md")
    assert len(commands) == 6
    for host in ("host0", "host1"):
        shutil.copytree(home / host / "dst", home / "dst", dirs_exist_ok=True)
    assert same_as_sharded(eplb, home, "dst", "new.json")


@pytest.mark.parametrize(
    ("shown", "is_it"),
    [
        ("one\ntwo 3.50 s, 7.1 kB/s\nthree\n", True),
        ("one\n...\n", True),
        ("...\nthree\n", True),
        ("one\n...\nthree\n", True),
        ("one\nthree\n", False),
        ("two 0.01 s, 2 MB/s\nthree\n", False),
        ("one\n", False),
        ("...\nthree\none\n", False),
        ("three\n...\none\n", False),
        ("...\nwo 0.01 s, 2 MB/s\n...\n", False),
        ("one\n...\ntwo 0.01 s, 2 kB/s\n...\nfour\n", False),
    ],
)
def test_what_is_shown(shown, is_it):
    """Nothing that is left out goes without `...`."""
    out = "one\ntwo 0.01 s, 2 kB/s\nthree\n"
    if is_it:
        require_shown(shown, out)
    else:
        with pytest.raises(AssertionError):
            require_shown(shown, out)


def test_every_page_is_followed():
    """None is there that nobody runs, and no block of a page is passed over."""
    assert {page.name for page in JOBS.iterdir()} == {f"{name}.md" for name in PAGES}
    for page in JOBS.iterdir():
        assert page.read_text().count("$ eplb") == len(BLOCK.findall(page.read_text()))
