"""OLD and NEW are the same: that is said in one line, and nothing is copied unless it is asked for."""

from __future__ import annotations

import json

import pytest

from tests.cli.case import assert_error
from tests.cli.tree import OLD, fingerprint, placement, read_tree, stacked, write_json

SAID = "nothing to do: OLD and NEW are the same (`reshard --copy` copies SRC all the same)\n"


@pytest.fixture
def same(case):
    """NEW is OLD in other words."""
    case.new({**OLD, "slots_per_rank": 3, "layer_ids": None} | {"layer_ids": [3, 4]})
    return case


@pytest.mark.parametrize("options", [(), ("--dry-run",), ("--resume",), ("--backend", "gloo")])
def test_one_line(same, options):
    """Exit code 0, nothing on stderr, nothing on disk, and no worker is started."""
    if "gloo" in options:
        pytest.importorskip("torch")
    before = fingerprint(same.home)
    result = same.eplb(*same.arguments(*options))
    assert (result.code, result.out, result.err) == (0, SAID, "")
    assert fingerprint(same.home) == before


def test_a_plan_says_it_too(same):
    """With and without a checkpoint; a plan that is saved is one, and carried out it says the same."""
    old, new, plan = same.home / "old.json", same.home / "new.json", same.home / "plan.json"
    for options in ((), ("--checkpoint", same.src), ("--checkpoint", same.src, "--out", plan)):
        result = same.eplb("plan", old, new, *options)
        assert (result.code, result.out, result.err) == (0, SAID, "")
    result = same.eplb("reshard", same.src, same.dst, "--plan", plan, "--backend", "file")
    assert (result.code, result.out) == (0, SAID)
    assert not same.dst.exists()


@pytest.mark.parametrize("options", [(), ("--dry-run",)])
def test_json(same, options):
    """The numbers of a plan, and a key that says it; no key of a run."""
    result = same.eplb(*same.arguments("--format", "json", *options))
    assert (result.code, result.err) == (0, "")
    assert result.json["nothing_to_do"] is True
    assert result.json["totals"]["unchanged_rows"] == 12
    assert "output" not in result.json
    assert not same.dst.exists()
    planned = same.eplb("plan", same.home / "old.json", same.home / "new.json", "--format", "json")
    assert planned.json["nothing_to_do"] is True


def test_warnings_are_said_all_the_same(case):
    """On stderr."""
    result = case.eplb(*case.arguments(old="linear", new="linear"))
    assert (result.code, result.out) == (0, SAID)
    assert "OLD is taken to have 6 experts" in result.err


def test_a_copy(same):
    """--copy makes DST with a manifest, proved; its dry run has the whole page."""
    assert "plan for 2 ranks" in same.reshard("--copy", "--dry-run").out
    result = same.reshard("--copy", "--format", "json")
    assert list(read_tree(same.dst).values()) == stacked(OLD)
    assert result.json["totals"]["unchanged_rows"] == 12
    assert result.json["traffic"] == []
    assert "nothing_to_do" not in result.json


def test_out_of_a_tree_of_eplb(case):
    """The eplb.json of SRC is OLD."""
    case.reshard()
    result = case.eplb(*case.arguments(src=case.dst, dst=case.home / "again", old=None))
    assert (result.code, result.out) == (0, SAID)
    assert not (case.home / "again").exists()


@pytest.mark.parametrize(
    "new",
    [
        {**OLD, "num_ranks": 3},
        {**OLD, "num_ranks": None, "slots_per_rank": [2, 4]},
        placement([[0, 1, 2, 3, 0, 1], [3, 2, 1, 0, 3, 2]]),
        placement([[0, 1, 2, 3, 0, -1], [3, 2, 1, 0, 2, 3]]),
    ],
)
def test_what_differs_is_done(case, new):
    """Ranks, slots, the order of two rows, an expert that leaves."""
    case.new({key: value for key, value in new.items() if value is not None})
    case.reshard()
    assert case.dst.exists()


def test_what_cannot_be_used_is_refused(same):
    """A run that would not begin is not called done."""
    same.dst.mkdir()
    write_json(same.dst / "file", {})
    assert_error(same.eplb(*same.arguments()), "EP601", exit_code=6)
    (same.src / "eplb.json").write_text(json.dumps({}))
    assert_error(same.eplb(*same.arguments(dst=same.home / "other")), "EP214")
