"""`validate`: everything that is wrong with placement files, at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from eplb_cli.errors import PlacementError, UsageError
from eplb_cli.inputs.options import PlacementOptions
from eplb_cli.inputs.validate import validate
from tests.support.placements import text


@pytest.fixture
def write(tmp_path):
    """Write a placement file and return its name."""

    def write_one(name, data=None, **changes):
        path = tmp_path / name
        path.write_bytes(text(**changes) if data is None else data)
        return str(path)

    return write_one


def said(findings):
    """All but notes, which most of these files have."""
    findings = [finding for finding in findings if finding.severity != "note"]
    return [(f.file.rpartition("/")[2], f.line, f.code, f.severity, f.layer) for f in findings]


def test_good_files_have_no_findings(write):
    """Any number of them, and none at all."""
    assert said(validate([write("a.json"), write("b.json", slots_per_rank=[3, 1])])) == []
    assert validate([]) == []


def test_each_file_has_its_own_findings(write):
    """Form and meaning, with file and line, in the order of the files."""
    files = [
        write("syntax.json", b"{"),
        write("twice.json", physical_to_logical_map=[[0, 0, 1, 2], [0, 1, 2, -1]]),
        write("missing.json", physical_to_logical_map=[[0, 1], [0, 2]], num_ranks=1),
    ]
    assert said(validate(files)) == [
        ("syntax.json", 1, "EP102", "error", None),
        ("twice.json", 5, "EP112", "warning", 3),
        ("missing.json", 5, "EP110", "error", 3),
        ("missing.json", 5, "EP110", "error", 4),
    ]


def test_a_load(write, tmp_path):
    """The findings of `--load` and `--max-imbalance`, for programs: with file, line and rank."""
    load, file = tmp_path / "load.json", Path(write("a.json"))
    load.write_text("[[4, 0, 0], [0, 0, 5]]")  # by rank 2 and 2, 5 and none
    assert said(validate([file], load=load)) == []
    assert said(validate([file], load=load, max_imbalance=1.9)) == [("a.json", 5, "EP120", "error", 4)]
    with pytest.raises(UsageError, match="--max-imbalance is of a load"):
        validate([file], max_imbalance=2)


def test_wrong_ranks_do_not_hide_missing_experts(write):
    """What does not depend on ranks is checked without them."""
    files = [write("a.json", num_ranks=3, physical_to_logical_map=[[0, 1, 2, 0], [2, 2, 0, 0]])]
    assert said(validate(files)) == [
        ("a.json", 2, "EP108", "error", None),
        ("a.json", 5, "EP110", "error", 4),
    ]


def test_hints_hold_for_each_file(write):
    """A contradiction to the command line is a finding."""
    files = [write("a.json"), write("b.json", num_logical_experts=None)]
    assert said(validate(files, options=PlacementOptions(num_logical_experts=4))) == [
        ("a.json", 3, "EP109", "error", None),
        ("b.json", 4, "EP110", "error", 3),
        ("b.json", 4, "EP110", "error", 4),
    ]


def test_against_compares_with_old(write):
    """Experts that OLD lacks or NEW drops, with the lines of NEW; what NEW leaves out is as in OLD."""
    old = write("old.json", physical_to_logical_map=[[0, 1, 2, 0], [0, 1, 1, 0]])
    rows = [[0, 1, 1, 0], [2, 1, 0, 1]]
    new = write("new.json", num_logical_experts=None, layer_ids=None, physical_to_logical_map=rows)
    assert said(validate([new], against=old)) == [
        ("new.json", 3, "EP110", "error", 3),
        ("new.json", 3, "EP106", "error", 4),
        ("new.json", 3, "EP107", "error", 3),
    ]


def test_against_may_be_a_named_map(write):
    """It has the experts, layers and ranks of each file, which may be many; options still say otherwise."""
    rows = [[2, 1, 0], [0, 1, 2]]
    files = [
        write("a.json", num_ranks=3, physical_to_logical_map=rows),
        write("b.json", layer_ids=[7, 9]),
        write("c.json", num_ranks=3),
    ]
    assert said(validate(files, against="linear")) == [("c.json", 2, "EP108", "error", None)]
    options = PlacementOptions(old_num_ranks=2, num_logical_experts=4)
    assert said(validate(files[:1], against="linear", options=options)) == [
        ("a.json", 3, "EP109", "error", None)
    ]


def test_a_named_map_can_be_validated(write):
    """It is compared with OLD as a file is."""
    assert validate(["round_robin"], against=write("old.json"), options=PlacementOptions(num_ranks=3)) == []


def test_warnings_of_old_are_shown(write):
    """A guess about OLD is a guess about the comparison."""
    old = write("old.json", num_logical_experts=None)
    assert said(validate([write("new.json")], against=old)) == [("old.json", 4, "EP111", "warning", None)]


@pytest.mark.parametrize("bad", ["files", "against"])
def test_a_file_that_cannot_be_read_raises(write, bad):
    """It is no finding: nothing was checked."""
    names = {"files": write("a.json"), "against": write("b.json"), bad: "/nowhere/p.json"}
    with pytest.raises(PlacementError, match="No such file") as caught:
        validate([names["files"]], against=names["against"])
    assert caught.value.code == "EP101"


def test_a_malformed_old_raises(write):
    """OLD is not what is to be checked, so it has to be usable."""
    with pytest.raises(PlacementError, match=r"old\.json:2: 4 slots do not divide over 3 ranks"):
        validate([write("new.json")], against=write("old.json", num_ranks=3))


def test_many_findings_are_all_there(write):
    """One for each layer: what is shown of them is for whoever shows them."""
    rows = [[0, 9]] * 1_000
    findings = validate([write("a.json", layer_ids=None, physical_to_logical_map=rows)])
    assert [(finding.code, finding.layer) for finding in findings] == [("EP105", n) for n in range(1_000)]
