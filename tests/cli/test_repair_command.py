"""`balance --repair`: NEW for the ranks that are left, what was lost, and the commands that follow."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eplb_cli.placements.read import read_placement
from tests.cli.case import assert_error
from tests.cli.tree import fingerprint, placement, read_tree, write_json
from tests.support.huggingface import MOE_LAYERS, deepseek_v3, write_checkpoint

PLANNING = Path(__file__).parents[2] / "docs" / "planning.md"
OLD = placement([[3, 0, 0, 1, 2, 2, 1, 2], [0, 1, 2, 3, 3, 1, 2, 0]], 4, layer_ids=list(MOE_LAYERS))


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A directory with OLD and a load, which commands are run in."""
    write_json(tmp_path / "old.json", OLD)
    write_json(tmp_path / "load.json", [[1, 8, 2, 4], [1, 1, 8, 2]])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def repaired(eplb, *options, lost="0,3", out="new.json"):
    return eplb("balance", *options, "--repair", "old.json", "--lost-ranks", lost, "--out", out)


def test_the_page_of_the_documentation(eplb, home):
    """It shows this very output."""
    done = repaired(eplb)
    assert (done.code, done.err) == (0, "")
    command = "$ eplb balance --repair old.json --lost-ranks 0,3 --out new.json\n"
    assert PLANNING.read_text().partition(command)[2].startswith(f"{done.out}```\n")


def test_what_programs_get(eplb, home):
    """Every number of the page, ranks by their old numbers, and bytes where an expert has a size."""
    done = repaired(eplb, "--format", "json", "--expert-bytes", "1kB")
    assert done.json == {
        "format": "eplb-repair/1",
        "output": "new.json",
        "num_ranks": 2,
        "num_slots": 4,
        "num_redundant_experts": 0,
        "lost_ranks": [0, 3],
        "old_ranks": [1, 2],
        "missing_rows": 2,
        "missing_bytes": 2000,
        "missing_experts": [{"layer": 1, "experts": [3]}, {"layer": 2, "experts": [0]}],
        "replicated_rows": 0,
        "warnings": [],
    }


def test_a_load(eplb, home):
    """It says which replica is missed least; OLD and NEW are judged by it."""
    done = repaired(eplb, "load.json", "--format", "json", lost="0")
    assert [each["name"] for each in done.json["load"]["placements"]] == ["OLD", "NEW"]
    new, _ = read_placement(home / "new.json")
    # Of 0, 1 and 2 in layer 1, expert 2 has 2/2 without its third replica; in layer 2 nothing is lost.
    assert sorted(new.physical_to_logical[0].tolist()) == [0, 1, 1, 2, 2, 3]
    assert new.physical_to_logical[1].tolist() == [2, 3, 3, 1, 2, 0]
    assert repaired(eplb, lost="0", out="alike.json").code == 0


def test_in_another_dialect(eplb, home):
    """As `balance` writes it, or on stdout."""
    assert repaired(eplb, "--to", "vllm", out="map.json").code == 0
    done = repaired(eplb, out="-")
    assert done.json["physical_to_logical_map"] == json.loads((home / "map.json").read_text())


def test_end_to_end(eplb, home, monkeypatch):
    """The commands of the page, one after the other, give what `shard` makes for NEW."""
    write_checkpoint(home / "hf", deepseek_v3(), "deepseek_v3")
    assert eplb("shard", "hf", "SRC", "--placement", "old.json", "--engine", "sglang").code == 0
    for rank in (0, 3):
        for file in (home / "SRC").glob(f"*rank-{rank}-*"):
            file.unlink()
    monkeypatch.setenv("COLUMNS", "200")
    page = repaired(eplb).out
    steps = [line.removeprefix("- eplb ").split() for line in page.splitlines() if line.startswith("- eplb ")]
    names = {"HF_DIR": "hf", "ENGINE": "sglang"}
    for step in steps:
        done = eplb(
            *(names.get(word, word) for word in step),
            *(["--backend", "file"] if step[0] == "reshard" else []),
        )
        assert done.code == 0, done.err
    assert eplb("shard", "hf", "WANT", "--placement", "new.json", "--engine", "sglang").code == 0
    assert read_tree(home / "DST") == read_tree(home / "WANT")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--repair", "old.json"), "--lost-ranks 5,17"),
        (("--repair", "old.json", "--lost-ranks", "4"), "rank 4 is said to be lost"),
        (("--repair", "old.json", "--lost-ranks", "0-3"), "no rank with a slot is left"),
        (
            ("--repair", "old.json", "--lost-ranks", "0,1,2"),
            "--num-redundant-experts 0 gives each rank 2 more",
        ),
        (("--repair", "old.json", "--lost-ranks", "0", "--old", "old.json"), "--old is not for a repair"),
        (
            ("--repair", "old.json", "--lost-ranks", "0", "--num-ranks", "3"),
            "--num-ranks is not for a repair",
        ),
        (("load.json", "--lost-ranks", "0"), "--lost-ranks is about a repair"),
        ((), "there is no load"),
    ],
)
def test_what_is_refused(eplb, home, options, says):
    """With what to do, and nothing is written."""
    before = fingerprint(home)
    assert_error(eplb("balance", *options, "--out", "new.json"), "EP001", says, exit_code=2)
    assert fingerprint(home) == before
