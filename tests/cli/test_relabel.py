"""`--relabel` and `--out-new`: less moves, and whoever has the shards has the map that fits them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from eplb_cli.placements.read import read_placement
from tests.cli.case import assert_error
from tests.cli.tree import OLD, fingerprint, placement, read_tree, stacked, write_json

RENAMED = placement([[1, 3, 0, 2, 0, 3], [3, 2, 0, 3, 1, 2]])
"""OLD with its ranks the other way round, and but for one slot of the first layer the same."""


@pytest.fixture
def renamed(case):
    """NEW is nearly OLD, by other names."""
    case.new(RENAMED)
    return case


def relabelled(case, *options):
    """The totals of a plan, what it says of relabelling, and the table of NEW in the file that it wrote."""
    files = case.home / "old.json", case.home / "new.json"
    out = case.home / "relabelled.json"
    result = case.eplb("plan", *files, "--out-new", out, "--format", "json", *options)
    assert result.code == 0, result.err
    return result.json["totals"], result.json["relabelled"], json.loads(out.read_text())


def test_what_a_plan_saves(renamed):
    """In rows and bytes, against the plan for NEW as it was; the file is a placement of the same kind."""
    result = renamed.eplb("plan", renamed.home / "old.json", renamed.home / "new.json", "--format", "json")
    before = result.json["totals"]
    assert "relabelled" not in result.json
    sizes = ("--checkpoint", renamed.src)
    written: dict[str, object] = {}
    for how, remote, unchanged in (("rows", 4, 8), ("ranks", 1, 11)):
        totals, said, written = relabelled(renamed, "--relabel", how, *sizes)
        assert (totals["remote_rows"], totals["unchanged_rows"]) == (remote, unchanged)
        assert said["remote_rows_before"] == before["remote_rows"] == 4
        assert said["unchanged_rows_before"] == before["unchanged_rows"] == 3
        assert said["remote_bytes_before"] * remote == totals["remote_bytes"] * 4
        assert (said["how"], said["output"]) == (how, str(renamed.home / "relabelled.json"))
        assert {**written, "physical_to_logical_map": None} == {**RENAMED, "physical_to_logical_map": None}
    assert written["physical_to_logical_map"] == [[0, 3, 2, 3, 0, 1], [3, 2, 1, 0, 2, 3]]


def test_it_is_said_to_people(renamed):
    """With the file that goes with the shards, where there is one."""
    files = renamed.home / "old.json", renamed.home / "new.json"
    result = renamed.eplb("plan", *files, "--relabel", "ranks", "--out-new", renamed.home / "r.json")
    words = " ".join(result.out.split())
    assert (
        "ranks and rows; 75% less between ranks than 4 rows; unchanged 11 rows instead of 3; shards" in words
    )
    result = renamed.eplb("plan", *files, "--relabel", "rows")
    assert "relabelled rows; unchanged 8 rows instead of 3 " in " ".join(result.out.split())


def test_a_reshard(renamed):
    """DST is under the NEW in the file, and says so itself; a dry run plans the same and writes nothing."""
    out = renamed.home / "relabelled.json"
    options = ("--relabel", "ranks", "--out-new", out, "--format", "json")
    dry = renamed.reshard(*options, "--dry-run")
    assert not out.exists()
    result = renamed.reshard(*options)
    assert result.json["totals"] == dry.json["totals"]
    assert result.json["relabelled"]["output"] == str(out)
    written = json.loads(out.read_text())
    assert list(read_tree(renamed.dst).values()) == stacked(written)
    new, _ = read_placement(out)
    assert json.loads((renamed.dst / "eplb.json").read_text())["placement"] == written
    assert np.array_equal(new.first_slot, [0, 3, 6])
    again = renamed.eplb(*renamed.arguments(src=renamed.dst, dst=renamed.home / "x", old=None, new=out))
    assert again.out.startswith("nothing to do")


def test_a_saved_plan_has_new_as_it_was_relabelled(renamed):
    """And notices when the file that goes with the shards becomes another."""
    plan, out = renamed.home / "plan.json", renamed.home / "r.json"
    files = renamed.home / "old.json", renamed.home / "new.json"
    options = ("--relabel", "ranks", "--out-new", out, "--out", plan)
    assert renamed.eplb("plan", *files, "--checkpoint", renamed.src, *options).code == 0
    assert json.loads(plan.read_text())["sources"]["new"] == str(out)
    arguments = ("reshard", renamed.src, renamed.dst, "--plan", plan, "--backend", "file")
    right = out.read_bytes()
    write_json(out, OLD)
    assert_error(renamed.eplb(*arguments), "EP304", "r.json has another placement")
    out.write_bytes(right)
    assert renamed.eplb(*arguments).code == 0
    assert list(read_tree(renamed.dst).values()) == stacked(json.loads(right))


@pytest.mark.parametrize("command", ["plan", "reshard"])
def test_new_that_is_old_by_other_names(case, command):
    """Nothing is to do, and the map is that of OLD."""
    case.new(placement([[0, 1, 3, 2, 1, 0], [2, 0, 3, 1, 2, 3]]))
    out = case.home / "r.json"
    said = ("--relabel", "ranks", "--out-new", out)
    if command == "plan":
        result = case.eplb("plan", case.home / "old.json", case.home / "new.json", *said)
    else:
        result = case.eplb(*case.arguments(*said))
    assert (result.code, result.err) == (0, "")
    assert result.out.startswith("nothing to do: NEW is OLD by other names, so OLD will do")
    assert json.loads(out.read_text()) == OLD
    assert not case.dst.exists()


def test_on_stdout(renamed):
    """NEW and nothing else."""
    files = renamed.home / "old.json", renamed.home / "new.json"
    planned = renamed.eplb("plan", *files, "--relabel", "ranks", "--out-new", "-")
    moved = renamed.eplb(*renamed.arguments("--relabel", "ranks", "--out-new", "-"))
    assert (planned.code, moved.code) == (0, 0)
    assert planned.json == moved.json
    assert list(read_tree(renamed.dst).values()) == stacked(moved.json)


def test_layers_in_another_order_than_those_of_old(case):
    """Each is compared with itself, and stays where NEW has it."""
    case.new(placement([RENAMED["physical_to_logical_map"][at] for at in (1, 0)], layer_ids=[4, 3]))
    out = case.home / "r.json"
    case.reshard("--relabel", "ranks", "--out-new", out)
    assert json.loads(out.read_text())["layer_ids"] == [4, 3]
    assert json.loads(out.read_text())["physical_to_logical_map"] == [[3, 2, 1, 0, 2, 3], [0, 3, 2, 3, 0, 1]]


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (("--relabel", "ranks"), "EP001", "--out-new FILE"),
        (("--out-new", "r.json"), "EP001", "add --relabel rows|ranks"),
        (("--relabel", "rows", "--out-new", "SRC/r.json"), "EP602", "is inside"),
        (("--relabel", "rows", "--out-new", "DST"), "EP001", "would be written over"),
        (("--relabel", "rows", "--out-new", "DST/r.json"), "EP604", "r.json"),
        (("--relabel", "rows", "--out-new", "empty/r.json"), "EP602", "published whole"),
        (("--relabel", "rows", "--out-new", "new.json"), "EP001", "would be written over"),
        (("--relabel", "rows", "--out-new", "-", "--format", "json"), "EP001", "are for stdout"),
    ],
)
def test_what_is_refused(case, monkeypatch, options, code, says):
    """Before anything is read; nothing is written."""
    (case.home / "empty").mkdir()
    monkeypatch.chdir(case.home)
    words = [part.replace("SRC", str(case.src)).replace("DST", str(case.dst)) for part in options]
    changes = {"dst": case.home / "empty"} if "empty/r.json" in words else {}
    case.refuse(code, says, exit_code=6 if code.startswith("EP6") else 2, options=tuple(words), **changes)


def test_a_plan_has_relabelled_already(case):
    """`reshard --plan` takes neither option."""
    before = fingerprint(case.home)
    arguments = (
        "reshard",
        case.src,
        case.dst,
        "--plan",
        "p.json",
        "--relabel",
        "rows",
        "--out-new",
        "r.json",
    )
    assert_error(case.eplb(*arguments), "EP001", "--plan", exit_code=2)
    assert fingerprint(case.home) == before
