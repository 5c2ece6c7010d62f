"""What a person reads first of a plan or a run, and whether its parts add up to the whole."""

from __future__ import annotations

import json
import re

import pytest

from tests.cli.test_terminal import on_a_terminal
from tests.cli.tree import placement, stacked, write_tree

NUMBER = re.compile(r"^([│├└─ ]*)(\w+) +((?:\d+ h )?(?:\d+ min)?(?:[\d.]+ s)?)")


def test_the_numbers_that_matter_come_first(case):
    """Bytes between ranks, the busiest sender, nodes and time, before any table."""
    lines = case.reshard().out.splitlines()
    lines = lines[lines.index("") :]  # behind the headline, which has a path
    assert lines[1:4] == [
        "between ranks   192 B, 4 of 12 rows",
        "busiest sender  96 B, bound 96 B",
        "between nodes   unknown, no --ranks-per-node",
    ]
    assert re.fullmatch(r"time            \d\.\d\d s", lines[4])
    assert lines[5:7] == ["", "per rank"]
    planned = case.eplb("plan", case.home / "old.json", case.home / "new.json").out.splitlines()
    assert planned[2:6] == [
        "between ranks   4 of 12 rows",
        "busiest sender  2 rows, bound 2 rows",
        "between nodes   unknown, no --ranks-per-node",
        "bytes           unknown: give `--checkpoint`, `--model` or `--expert-bytes`",
    ]


def test_nodes_are_known_where_they_are_said(case):
    """Bytes, or rows where no sizes are known; the JSON has a number in either case."""
    options = ("plan", case.home / "old.json", case.home / "new.json", "--expert-bytes", 48)
    assert "\nbetween nodes   192 B, bound 192 B\n" in case.eplb(*options, "--ranks-per-node", 1).out
    assert case.eplb(*options, "--format", "json").json["totals"]["cross_node_bytes"] == 0
    rows = case.eplb(*options[:3], "--ranks-per-node", 1).out
    assert "\nbetween nodes   4 rows, bound 4 rows\n" in rows


def test_the_time_is_a_tree_that_adds_up(case):
    """In the JSON exactly, and on the page but for rounding; start-up has a line where there are workers."""
    found = case.reshard("--format", "json").json["seconds"]
    steps = ("plan", "compare", "create", "move", "prove", "commit")
    assert found["total"] == pytest.approx(sum(found[step] for step in steps))
    parts = ("start", "transfer", "verify", "sync", "finish")
    assert found["move"] == pytest.approx(sum(found[part] for part in parts))
    assert all(found[name] >= 0 for name in (*steps, *parts))


def test_workers_that_start_have_a_line(case):
    """While they start it says so; then it is a part of the time, and the rate does not count it."""
    pytest.importorskip("torch")
    write_tree(case.home / "big", stacked(placement([[0, 1, 2, 3, 0, 1], [3, 2, 1, 0, 2, 3]])))
    arguments = [word for word in case.arguments(src=case.home / "big") if word not in {"--backend", "file"}]
    seen, code = on_a_terminal([*arguments, "--backend", "gloo", "--nproc-per-node", 2], COLUMNS="100")
    assert code == 0, seen
    seen = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", seen)
    assert "starting workers" in seen.partition("resharded 2 ranks")[0]
    tree = [found for line in seen.splitlines() if (found := NUMBER.match(line)) and found[3]]
    depth = {found[2]: len(found[1]) // 3 for found in tree}  # each level is three characters
    seconds = {found[2]: float(found[3].removesuffix(" s")) for found in tree}
    assert (depth["total"], depth["move"], depth["start"]) == (0, 1, 2)
    for level in (0, 1):
        whole = next(seconds[name] for name in ("total", "move") if depth[name] == level)
        summed = sum(value for name, value in seconds.items() if depth[name] == level + 1)
        assert summed == pytest.approx(whole, abs=0.06 if whole < 10 else 0.3)
    assert seconds["start"] > seconds["transfer"]
    last = re.findall(r"([\d.]+) s\s*\n?", seen.partition("resharded")[0])[-1]
    assert float(last) < seconds["start"]


class TestErrorsForPrograms:
    """With --format json an error is JSON on stdout, with the same code, exit code and words."""

    @pytest.mark.parametrize(
        ("arguments", "code", "exit_code"),
        [
            ("plan nowhere.json linear", "EP101", 3),
            ("validate nowhere.json", "EP101", 3),
            ("reshard nowhere dst --new linear --backend file", "EP201", 3),
            ("verify nowhere", "EP201", 3),
            ("inspect nowhere", "EP201", 3),
            ("convert nowhere.json out.json --to vllm", "EP101", 3),
            ("shard nowhere dst --placement linear --engine vllm --num-ranks 2", "EP201", 3),
            ("merge nowhere dst", "EP225", 3),
            ("bake nowhere dst --placement linear", "EP201", 3),
            ("inspect", "EP001", 2),
            ("plan a", "EP001", 2),
            ("plan a b --num-ranks sixteen", "EP001", 2),
            ("explode", "EP001", 2),
        ],
    )
    def test_every_command(self, eplb, tmp_path, monkeypatch, arguments, code, exit_code):
        """And stderr has none of it."""
        monkeypatch.chdir(tmp_path)
        told = eplb(*arguments.split(), "--format", "json")
        said = eplb(*arguments.split())
        assert (told.code, said.code) == (exit_code, exit_code)
        error = json.loads(told.out)["error"]
        assert list(error) == ["code", "message", "hint", "where"]
        assert error["code"] == code
        assert "error" not in told.err
        assert error["message"] in " ".join(said.err.split("\n  | "))
        assert said.out == ""

    def test_where_it_is(self, case):
        """As numbers and names, where they are known, and null where not."""
        file = case.new(placement([[0, 1, 2, 3, 0, 9], [3, 2, 1, 0, 2, 3]], num_logical_experts=4))
        where = case.eplb("plan", case.home / "old.json", file, "--format=json").json["error"]["where"]
        assert where == {"file": str(file), "line": 1, "layer": 3, "slot": 5, "rank": None, "tensor": None}

    def test_only_where_it_is_asked_for(self, case):
        """The last --format counts, and what stands behind -- is no option."""
        assert case.eplb("verify", "x", "--format", "json", "--format", "text").out == ""
        assert case.eplb("verify", "--", "--format").out == ""
