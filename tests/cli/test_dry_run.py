"""A plan for a checkpoint and a dry run refuse what the run would, in the same words, and write nothing."""

from __future__ import annotations

import os
import resource
from pathlib import Path

from eplb_cli import files
from eplb_cli.output.journal import Journal
from tests.cli.case import assert_error
from tests.cli.tree import OLD, fingerprint, placement, stacked, tensor

BIG = "model.embed_tokens.weight"
THREE = placement([[3, 0, 1, 2, 2, 0], [0, 1, 2, 3, 3, 1]], num_ranks=3)


def problem(result):
    """The line of the error: its code and its message."""
    (line,) = [line for line in result.err.splitlines() if line.startswith("error")]
    return line


def plan(case, **changes):
    """`eplb plan --checkpoint` for what a run is given."""
    old, new = changes.get("old") or case.home / "old.json", case.home / "new.json"
    return case.eplb("plan", old, new, "--checkpoint", changes.get("src", case.src))


def refused_alike(case, code, *says, exit_code=3, plans=True, **changes):
    """The dry run, the plan and then the run end with the same line."""
    before = fingerprint(case.home)
    tried = case.eplb(*case.arguments("--dry-run", **changes))
    assert_error(tried, code, *says, exit_code=exit_code)
    if plans:
        assert problem(plan(case, **changes)) == problem(tried)
    assert fingerprint(case.home) == before
    assert problem(case.eplb(*case.arguments(**changes))) == problem(tried)


class TestOtherTensors:
    def test_sharded_by_their_content_only(self, case):
        """EP213 where R changes, with all names that the run would say."""
        case.write(stacked(OLD, shared=False))
        case.new(THREE)
        refused_alike(case, "EP213", "and 4 more")

    def test_sharded_by_their_shapes(self, case):
        """EP213 where R changes."""
        ranks = stacked(OLD)
        for number, tensors in enumerate(ranks):
            tensors["lm_head.weight"] = tensor("BF16", (4 + number, 3), "x")
        case.write(ranks)
        case.new(THREE)
        refused_alike(case, "EP213", "lm_head.weight")

    def test_what_is_alike_is_no_reason(self, case):
        """With another R a plan and a dry run are told what the run is, shared files included."""
        ranks = stacked(OLD)
        for tensors in ranks:
            tensors[BIG] = tensor("BF16", (768, 1024), "all")
        case.write(ranks)
        case.new(THREE)
        tried = case.reshard("--dry-run", "--format", "json").json["totals"]
        assert tried == case.reshard("--format", "json").json["totals"]
        assert plan(case).code == 0

    def test_nothing_is_read_where_ranks_stay(self, case, monkeypatch):
        """With the same R no answer hangs on what is in the files, and only headers are read."""
        ranks = stacked(OLD)
        for tensors in ranks:
            tensors[BIG] = tensor("BF16", (768, 1024), "all")
        case.write(ranks)
        monkeypatch.setattr("eplb_cli.run.preparing.find_alike", None)
        assert plan(case).code == 0
        case.reshard("--dry-run")


def test_a_header_that_the_manifest_does_not_name(case):
    """EP506 before anything is made of the header."""
    case.reshard()
    file = case.dst / "model-rank-1-part-0.safetensors"
    content = file.read_bytes()
    file.write_bytes(content.replace(b'"BF16"', b'"F16" '))
    assert file.read_bytes() != content
    changes = {"src": case.dst, "dst": case.home / "back", "old": None}
    refused_alike(case, "EP506", file.name, "its header", exit_code=5, **changes)


def test_digests_that_are_not_there(case):
    """EP214 from all three, since a run compares with them."""
    case.reshard()
    (case.dst / "eplb-digests-rank-1.npy").unlink()
    changes = {"src": case.dst, "dst": case.home / "back", "old": case.home / "new.json"}
    refused_alike(case, "EP214", "eplb-digests-rank-1.npy", **changes)


def test_too_many_open_files(case, monkeypatch):
    """EP405, where the hard limit is below what the run opens."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (100, 100))
    refused_alike(case, "EP405", "4 shards need 132 open files", exit_code=4)


class TestDestination:
    def test_without_space(self, case, monkeypatch):
        """EP603, with both numbers."""
        full(monkeypatch, 1)
        refused_alike(case, "EP603", "its file system has 1", exit_code=6, plans=False)

    def test_space_for_what_is_written_once(self, case, monkeypatch):
        """A DST that fits because its ranks share a file is not refused."""
        ranks = stacked(OLD)
        for tensors in ranks:
            tensors[BIG] = tensor("BF16", (768, 1024), "all")
        case.write(ranks)
        full(monkeypatch, 2 << 20)
        case.reshard("--dry-run")
        assert case.eplb(*case.arguments()).code == 0
        full(monkeypatch, 1 << 20)
        refused_alike(case, "EP603", exit_code=6, plans=False, dst=case.home / "other")

    def test_a_name_that_is_too_long(self, case):
        """EP604: with what is put around it, no file system takes it."""
        dst = case.home / ("x" * 250)
        refused_alike(case, "EP604", "File name too long", exit_code=6, plans=False, dst=dst)

    def test_staging_that_is_a_link(self, case):
        """EP604: nothing is written behind it."""
        (case.home / "precious").mkdir()
        (case.home / ".dst.eplb-staging").symlink_to("precious")
        refused_alike(case, "EP604", exit_code=6, plans=False)

    def test_a_directory_that_may_not_be_written(self, case, monkeypatch):
        """EP604, as the system says it."""
        monkeypatch.setattr(os, "access", lambda _, mode: mode != os.W_OK | os.X_OK)
        result = case.eplb(*case.arguments("--dry-run"))
        assert_error(result, "EP604", "Permission denied", exit_code=6)

    def test_what_was_begun_with_other_inputs(self, case):
        """EP305 with --resume; without it the run starts over, and nothing is said."""
        work = case.home / ".dst.eplb-staging" / ".eplb"
        work.mkdir(parents=True)
        Journal(work, "0", "0" * 64).close()
        case.reshard("--dry-run")
        tried = case.eplb(*case.arguments("--dry-run", "--resume"))
        assert_error(tried, "EP305", "was begun with other inputs")
        assert problem(case.eplb(*case.arguments("--resume"))) == problem(tried)


def full(monkeypatch, free_nbytes):
    """A file system that has so much room."""

    class Full:
        f_bavail = free_nbytes
        f_frsize = 1

    monkeypatch.setattr(os, "statvfs", lambda _: Full)


def test_the_digests_of_src_are_read_once(case, monkeypatch):
    """Whoever needs them: the comparison of other tensors, the move and the proof."""
    case.reshard()
    case.new(OLD)
    opened = []
    original = files.make_call

    def counted(operation, call, *arguments):
        if operation == "open":
            opened.append(Path(arguments[0]))
        return original(operation, call, *arguments)

    monkeypatch.setattr(files, "make_call", counted)
    changes = {"src": case.dst, "dst": case.home / "back", "old": None}
    result = case.eplb(*case.arguments(**changes))
    assert result.code == 0, result.err
    assert sorted(path.name for path in opened if path.parent == case.dst and path.suffix == ".npy") == [
        "eplb-digests-rank-0.npy",
        "eplb-digests-rank-1.npy",
    ]
