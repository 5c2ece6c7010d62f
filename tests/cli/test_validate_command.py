"""`eplb validate` as CI runs it: exit codes, formats, and what stdout gets."""

from __future__ import annotations

import json

import pytest

from tests.cli.case import assert_error
from tests.cli.tree import NEW, OLD, placement, stacked, write_json, write_tree

BAD = {**NEW, "physical_to_logical_map": [[0, 1, 2, 9, 0, 1], [3, 2, 1, 0, 2]]}


@pytest.fixture
def good(tmp_path):
    return write_json(tmp_path / "good.json", OLD)


@pytest.fixture
def bad(tmp_path):
    return write_json(tmp_path / "bad.json", BAD)


def test_nothing_wrong(eplb, good):
    """Exit code 0, and a line for each file."""
    other = good.with_name("other.json")
    other.write_bytes(good.read_bytes())
    result = eplb("validate", good, other)
    assert (result.code, result.err) == (0, "")
    assert result.out.endswith("2 files checked: no findings\n")


def test_findings(eplb, good, bad):
    """Exit code 1 with all of them at once, also for text that is no JSON."""
    broken = good.with_name("broken.json")
    broken.write_text("{")
    result = eplb("validate", good, bad, broken)
    assert result.code == 1
    assert all(f"error[{code}]" in result.out for code in ("EP104", "EP102"))
    assert result.out.endswith("3 files checked: 2 errors\n")


def test_warnings_alone(eplb, tmp_path):
    """Exit code 0: two replicas on a rank are odd and no mistake."""
    result = eplb("validate", write_json(tmp_path / "twice.json", NEW))
    assert (result.code, "warning[EP112]" in result.out) == (0, True)


def test_json(eplb, good, bad):
    """One object, and nothing else on stdout."""
    result = eplb("validate", "--format", "json", good, bad)
    assert result.code == 1
    assert result.json["format"] == "eplb-findings/1"
    assert result.json["files"] == [str(good), str(bad)]
    (finding,) = result.json["findings"]
    assert (finding["code"], finding["file"], finding["layer"]) == ("EP104", str(bad), 4)


def test_github(eplb, tmp_path):
    """Annotations with file and line, nine at most and one that counts the others."""
    rows = [[99, 1, 2, 3, 0, 1]] * 20
    text = json.dumps(placement(rows, num_logical_experts=4)).replace("[[", "[\n[").replace("], [", "],\n[")
    (tmp_path / "bad.json").write_text(text)
    result = eplb("validate", "--format", "github", tmp_path / "bad.json")
    assert result.code == 1
    lines = result.out.splitlines()
    assert len(lines) == 10
    assert lines[0].startswith(
        f"::error file={tmp_path / 'bad.json'},line=2,col=1,title=EP105::layer 3, slot 0"
    )
    assert "11 more" in lines[-1]
    assert result.err == "1 file checked: 20 errors\n"


def test_a_file_that_cannot_be_read(eplb, good, tmp_path):
    """EP101 with exit code 3: that is no finding about a placement."""
    assert_error(eplb("validate", good, tmp_path / "nothing.json"), "EP101", "nothing.json")


def test_against_old(eplb, good, tmp_path):
    """EP106 and EP107 are findings of the file; OLD itself has to be usable."""
    lacking = write_json(tmp_path / "new.json", placement([[0, 1, 2, 3], [0, 1, 2, 2]]))
    result = eplb("validate", lacking, "--against", good)
    assert (result.code, "error[EP107]" in result.out) == (1, True)
    assert eplb("validate", lacking, "--against", tmp_path / "nothing.json").code == 3


PLAIN = placement([[3, 2, 1, 0], [0, 1, 2, 3]], 4)


class TestAgainstANamedMap:
    """It is completed as `plan` does it: whatever `plan linear NEW` takes has no error here."""

    @pytest.mark.parametrize("old", ["linear", "round_robin"])
    @pytest.mark.parametrize(
        ("content", "options"),
        [
            (PLAIN, []),
            (PLAIN, ["--old-num-ranks", 2]),
            (PLAIN, ["--num-logical-experts", 4, "--num-ranks", 4]),
            ({**PLAIN, "layer_ids": [7, 9]}, []),
            ({key: PLAIN[key] for key in ("format", "physical_to_logical_map")}, ["--num-ranks", 4]),
            ([[3, 2, 1, 0], [0, 1, 2, 3]], ["--num-ranks", 4, "--from", "vllm"]),
        ],
    )
    def test_as_in_a_plan(self, eplb, tmp_path, old, content, options):
        """Experts, layers and ranks are those of NEW, where no option says them."""
        new = write_json(tmp_path / "new.json", content)
        planned = eplb("plan", old, new, *options)
        assert planned.code == 0, planned.err
        checked = eplb("validate", new, "--against", old, *options)
        assert (checked.code, checked.err) == (0, "")
        assert "error" not in checked.out

    def test_several_files(self, eplb, tmp_path):
        """Each is compared with a map of its own experts and ranks."""
        wide = write_json(tmp_path / "wide.json", placement([[5, 4, 3, 2, 1, 0]] * 3, 3))
        result = eplb("validate", write_json(tmp_path / "new.json", PLAIN), wide, "--against", "linear")
        assert result.out.endswith("2 files checked: no findings\n"), result.out

    def test_redundant_experts(self, eplb, tmp_path):
        """Of the map; NEW has what its file says."""
        new = write_json(tmp_path / "new.json", PLAIN)
        assert eplb("validate", new, "--against", "linear", "--num-redundant-experts", 4).code == 0
        result = eplb("validate", new, "--against", "linear", "--num-redundant-experts", 3)
        assert_error(result, "EP108", "4 experts and 3 redundant ones do not divide over 4 ranks")

    def test_a_file_with_errors(self, eplb, tmp_path):
        """Its own findings, and no others: nothing can be compared with it."""
        result = eplb("validate", write_json(tmp_path / "bad.json", BAD), "--against", "linear")
        assert (result.code, result.out.count("error[")) == (1, 1)
        assert "error[EP104]" in result.out

    def test_beside_shards(self, eplb, tmp_path):
        """Then the map is that of the shards, as in a reshard."""
        src = write_tree(tmp_path / "src", stacked(placement([[0, 1, 2, 3]] * 2)))
        new = write_json(tmp_path / "new.json", PLAIN)
        result = eplb("validate", new, "--against", "linear", "--checkpoint", src)
        assert (result.code, result.out.count("error[")) == (0, 0)
        assert "OLD is taken to have 4 experts, one in each slot" in result.out
        new = write_json(tmp_path / "new.json", placement([[4, 3, 2, 1, 0, 0]] * 2, 2))
        result = eplb("validate", new, "--against", "linear", "--checkpoint", src)
        assert (result.code, "error[EP109]" in result.out) == (1, True)


class TestAgainstShards:
    @pytest.fixture
    def src(self, tmp_path):
        return write_tree(tmp_path / "src", stacked(OLD))

    def test_a_placement_of_these_shards(self, eplb, src, good, tmp_path):
        """Layers, ranks and slots are theirs; what the file leaves out is as they say."""
        assert eplb("validate", good, "--checkpoint", src).code == 0
        short = {"format": OLD["format"], "physical_to_logical_map": OLD["physical_to_logical_map"]}
        assert eplb("validate", write_json(tmp_path / "s.json", short), "--checkpoint", src).code == 0

    @pytest.mark.parametrize(
        ("content", "code"),
        [
            (placement([[0, 1, 2, 3], [3, 2, 1, 0]]), "EP108"),
            (placement([[0, 1, 2, 3, 0, 1], [3, 2, 1, 0, 2, 3]], 3), "EP108"),
            ({**OLD, "slots_per_rank": [4, 2]}, "EP108"),
            ({**OLD, "layer_ids": [3, 5]}, "EP109"),
        ],
    )
    def test_a_placement_of_others(self, eplb, src, tmp_path, content, code):
        """A finding, and exit code 1."""
        result = eplb("validate", write_json(tmp_path / "p.json", content), "--checkpoint", src)
        assert (result.code, f"error[{code}]" in result.out) == (1, True)

    def test_with_old(self, eplb, src, good, tmp_path):
        """Then OLD is the placement of the shards, and the file may have other ranks and slots."""
        new = write_json(tmp_path / "new.json", placement([[0, 1, 2, 3], [3, 2, 1, 0]], 4))
        assert eplb("validate", new, "--against", good, "--checkpoint", src).code == 0
        assert_error(eplb("validate", good, "--against", new, "--checkpoint", src), "EP108")

    def test_an_old_that_leaves_out_its_ranks(self, eplb, src, good, tmp_path):
        """They are those of the shards, as in a reshard."""
        bare = write_json(tmp_path / "bare.json", {key: OLD[key] for key in OLD if key != "num_ranks"})
        assert eplb("validate", good, "--against", bare, "--checkpoint", src).code == 0

    def test_named_maps(self, eplb, src):
        """As `reshard --old linear` reads them: one expert in each slot, or as many as are said."""
        for options in ([], ["--num-logical-experts", 4], ["--num-redundant-experts", 2]):
            assert eplb("validate", "linear", "--checkpoint", src, *options).code == 0

    def test_no_shards(self, eplb, good, tmp_path):
        """EP201 with exit code 3."""
        assert_error(eplb("validate", good, "--checkpoint", tmp_path / "nowhere"), "EP201")
