"""`eplb verify --ranks`: what one host of several has of a tree is proved, and nothing else is looked at."""

from __future__ import annotations

import re
import shutil

import numpy as np
import pytest

import eplb_cli
from eplb_cli.audit.own_digests import manifest_of
from eplb_cli.audit.verify import prove_ranks
from eplb_cli.checkpoint.staged import WORK
from eplb_cli.cli.options import rank_numbers
from eplb_cli.errors import UsageError
from eplb_cli.placements.own_format import format_placement
from tests.cli.case import assert_error
from tests.cli.test_ranks_without_slots import LAYERS, model_of
from tests.cli.test_ranks_without_slots import OLD as FEW_SLOTS
from tests.cli.test_verify import flip, lie, offset_of
from tests.cli.tree import OLD, fingerprint, placement, singles, stacked, tensor, write_shard
from tests.support.checkpoints import write_tree
from tests.support.placements import placement as placement_of

NEW = placement([[3, 0, 0, 1, 2, -1, 0, 3], [0, 1, 2, 3, 3, 1, 2, 0]], 4)
"""Slot 5, row 1 of rank 2, is empty in layer 3."""


@pytest.fixture
def whole(case):
    """A tree of four ranks of two slots."""
    (case.src / "tokenizer.json").write_text("{}")
    case.new(NEW)
    case.reshard()
    return case.dst


def files_of(tree, *ranks):
    return [file for rank in ranks for file in sorted(tree.glob(f"model-rank-{rank}-part-*"))]


def without(tree, *ranks):
    """The tree as a host has it that has not these ranks."""
    for file in files_of(tree, *ranks):
        file.unlink()
    return tree


@pytest.fixture
def part(whole):
    """The tree as the second of two hosts has it."""
    return without(whole, 0, 1)


def test_a_part(eplb, part):
    """The rows, tensors and files of these ranks; nothing is changed; the page says that it is a part."""
    before = fingerprint(part)
    result = eplb("verify", part, "--ranks", "2-3")
    assert result.code == 0, result.err
    assert result.out.startswith("verified: 7 of 7 rows proved, those of 2 of 4 ranks\n")
    assert "ranks          2-3; files of the others were not looked at\n" in result.out
    assert fingerprint(part) == before


@pytest.mark.parametrize(
    ("words", "ranks", "rows"), [("0", [0], 4), ("1,3", [1, 3], 8), ("0-3", [0, 1, 2, 3], 15)]
)
def test_json(eplb, whole, words, ranks, rows):
    """The keys of every verification, for these ranks; all of them are the whole tree."""
    found = eplb("verify", whole, "--ranks", words, "--format", "json").json
    assert found["ranks"] == ranks
    assert found["rows_proved"] == found["rows_total"] == rows
    assert (found["files"], found["others_proved"]) == (len(ranks), 5 * len(ranks))
    assert found["bytes"] == sum(file.stat().st_size for file in files_of(whole, *ranks))
    page = eplb("verify", whole, "--ranks", words).out
    assert ("not looked at" in page) == (len(ranks) < 4)


def test_the_files_of_all_hosts_together_are_the_tree(eplb, whole, tmp_path):
    """What each host can prove of its own, all can that have them in one directory."""
    for host, ranks in (("a", (0, 1)), ("b", (2, 3))):
        shutil.copytree(whole, tmp_path / host)
        without(tmp_path / host, *({0, 1, 2, 3} - {*ranks}))
        assert eplb("verify", tmp_path / host, "--ranks", f"{ranks[0]}-{ranks[1]}").code == 0
    shutil.copytree(tmp_path / "b", tmp_path / "a", dirs_exist_ok=True)
    assert fingerprint(tmp_path / "a").keys() == fingerprint(whole).keys()
    assert eplb("verify", tmp_path / "a").code == 0


class TestDamage:
    """Errors say the rank and the slot that the whole tree has, wherever they are among those looked at."""

    def expect(self, eplb, tree, code, *says, ranks="2-3"):
        assert_error(eplb("verify", tree, "--ranks", ranks), code, *says, exit_code=5)

    def test_a_row(self, eplb, part):
        file = files_of(part, 3)[0]
        flip(file, offset_of(file, "model.layers.4.mlp.experts.w2_weight") + 12 + 5)
        self.expect(eplb, part, "EP501", str(file), "layer 4, slot 7 (rank 3, row 1)", "w2_weight")
        where = eplb("verify", part, "--ranks", "3", "--format", "json").json["error"]["where"]
        assert (where["rank"], where["slot"], where["layer"]) == (3, 7, 4)
        assert eplb("verify", part, "--ranks", "2").code == 0

    def test_an_empty_row(self, eplb, part):
        file = files_of(part, 2)[0]
        flip(file, offset_of(file, "model.layers.3.mlp.experts.w13_weight") + 24)
        self.expect(eplb, part, "EP502", "layer 3, slot 5 (rank 2, row 1)", ranks="2")

    def test_another_tensor(self, eplb, part):
        file = files_of(part, 3)[0]
        flip(file, offset_of(file, "model.norm.weight"))
        self.expect(eplb, part, "EP504", str(file), "model.norm.weight")
        assert eplb("verify", part, "--ranks", "3", "--format", "json").json["error"]["where"]["rank"] == 3

    def test_a_header(self, eplb, part):
        flip(files_of(part, 2)[0], 100)
        self.expect(eplb, part, "EP505", "its header is not the one", "was not looked at")

    @pytest.mark.parametrize(
        "name", ["config.json", "tokenizer.json", "eplb-digests-rank-0.npy", "eplb.json"]
    )
    def test_what_every_host_has(self, eplb, part, name):
        """Carried files, the digests of all ranks, and the manifest."""
        flip(part / name, -1)
        self.expect(eplb, part, "EP505", str(part / name))
        (part / name).unlink()
        if name != "eplb.json":
            self.expect(eplb, part, "EP505", f"{part / name} is missing")

    def test_a_file_of_these_ranks_that_is_gone(self, eplb, part):
        (gone,) = files_of(without(part, 3), 2)
        self.expect(eplb, part, "EP505", "model-rank-3-part-0.safetensors is missing", "make it again")
        assert gone.exists()

    def test_a_part_too_many(self, eplb, part):
        """EP505 for one of these ranks, which an engine would load."""
        write_shard(part / "model-rank-3-part-1.safetensors", {})
        self.expect(eplb, part, "EP505", "model-rank-3-part-1.safetensors is not in the manifest")
        assert eplb("verify", part, "--ranks", "2").code == 0

    def test_other_ranks_are_not_looked_at(self, eplb, whole):
        """Whatever their files are."""
        row, header, link = (files_of(whole, rank)[0] for rank in (0, 1, 3))
        flip(row, -1)
        flip(header, 3)
        link.unlink()
        link.symlink_to("nowhere")
        assert eplb("verify", whole, "--ranks", "2").code == 0
        assert_error(eplb("verify", whole), "EP505", exit_code=5)

    def test_replicas_that_differ(self, eplb, case):
        """A warning where both are on these ranks, as for a whole tree."""
        file = case.file(1)
        flip(file, offset_of(file, "model.layers.3.mlp.experts.w2_weight") + 12)  # expert 0, as on rank 0
        case.new(placement([[0, 1, 2, 3, 0, 1], [3, 2, 1, 0, 2, 3]], 3))
        case.reshard()
        for ranks, differ in (("0", False), ("0,2", True), ("1-2", False)):
            result = eplb("verify", case.dst, "--ranks", ranks)
            assert (result.code, "replicas of expert 0 differ" in result.err) == (0, differ), ranks

    def test_a_manifest_that_lies(self, eplb, part):
        """Another placement than that of the plan: an expert in the slot that is empty."""
        rows = [[3, 0, 0, 1, 2, 1, 0, 3], [0, 1, 2, 3, 3, 1, 2, 0]]
        lie(part, placement=placement(rows, 4))
        self.expect(eplb, part, "EP505", "do not make the plan", "layer 3, slot 5 (rank 2, row 1)")


class TestRefused:
    @pytest.mark.parametrize(
        ("words", "says"),
        [
            ("4", "no rank 4 in"),
            ("2-7", "no rank 4 in"),
            ("3-2", "no rank is named"),
            ("", "is no list of ranks"),
            ("-1", "is no list of ranks"),
            ("a", "is no list of ranks"),
        ],
    )
    def test_ranks_that_there_are_not(self, eplb, part, words, says):
        """EP001, with those that there are."""
        result = eplb("verify", part, f"--ranks={words}")
        assert_error(result, "EP001", says, exit_code=2)
        assert ("has ranks 0-3" in result.err) == ("list" not in says)

    def test_for_programs(self, part):
        for ranks in ([], [4], [-1], [2, 4]):
            with pytest.raises(UsageError, match="rank"):
                eplb_cli.verify(part, ranks=ranks)
        found = eplb_cli.verify(part, ranks=iter([3, 2, 3]))
        assert (found.ranks, found.num_ranks, found.rows_proved) == ((2, 3), 4, 7)

    def test_with_against(self, eplb, case, whole):
        """EP001: what SRC is compared with is the whole tree."""
        result = eplb("verify", whole, "--ranks", "0", "--against", case.src)
        assert_error(result, "EP001", "--against", "--ranks", exit_code=2)

    def test_without_digests(self, eplb, case):
        """EP214, and what to do on one host is not what --ranks forbids."""
        case.reshard("--no-digest")
        assert_error(eplb("verify", case.dst, "--ranks", "0"), "EP214", "copy the files of all ranks")

    def test_staging(self, eplb, part):
        """EP233; whoever writes it can prove it there."""
        (part / WORK).mkdir()
        assert_error(eplb("verify", part, "--ranks", "2-3"), "EP233")
        assert prove_ranks(part, manifest_of(part), {2, 3}, lambda _: None).ranks == [2, 3]


class TestWithoutRanks:
    """A command that needs all ranks says which are there, and what can be proved of them."""

    @pytest.mark.parametrize(
        ("lost", "there"), [((0, 1), "ranks 2-3"), ((3,), "ranks 0-2"), ((0, 2, 3), "rank 1")]
    )
    def test_verify(self, eplb, whole, lost, there):
        """EP505 as for any missing file, with another hint."""
        without(whole, *lost)
        number = there.split()[1]
        hint = f"{whole} has {there} of 4: `eplb verify {whole} --ranks {number}` proves those"
        result = eplb("verify", whole)
        assert_error(result, "EP505", "is missing", hint, exit_code=5)
        assert "make it again" not in result.err
        assert eplb("verify", whole, "--ranks", number).code == 0

    @pytest.mark.parametrize("options", [[], ["--deep"]])
    @pytest.mark.parametrize(("lost", "there"), [((0, 1), "2-3"), ((3,), "0-2")])
    def test_inspect(self, eplb, whole, options, lost, there):
        """EP202, whether the first ranks are missing or the last."""
        without(whole, *lost)
        result = eplb("inspect", whole, *options)
        says = f"{whole} has ranks {there} of 4", f"`eplb verify {whole} --ranks {there}` proves those"
        assert_error(result, "EP202", f"has no file of rank{'s 0-1' if len(lost) > 1 else ' 3'}", *says)

    def test_reshard(self, case, part, tmp_path):
        """EP202: the tree is no source on one host."""
        case.refuse("EP202", "has no file of ranks 0-1", src=part, dst=tmp_path / "next", old=None)

    def test_where_a_rank_is_there_in_part(self, eplb, case):
        """As ever: the file is missing."""
        big = {"model.big.weight": tensor("U8", (1 << 20,), "alike")}
        case.write([{**rank, **big} for rank in stacked(OLD)])
        case.reshard()
        _, shared = files_of(case.dst, 0)  # what all ranks have alike is in a file of its own
        assert eplb("verify", case.dst, "--ranks", "0").code == 0
        shared.unlink()
        result = eplb("verify", case.dst)
        assert_error(result, "EP505", f"{shared} is missing", "make it again", exit_code=5)
        assert eplb("verify", case.dst, "--ranks", "1").code == 0


SPARSE = placement_of([[-1, 0, 1, 2], [1, 2, 0, -1]], None, 3, LAYERS, [1, 2, 0, 1, 0])
"""Rank 0 has no expert in the first layer, rank 3 none in the second, ranks 2 and 4 none at all."""


def test_layers_of_another_module(eplb, case):
    """EP212 where a rank has no expert of one of them: their numbers follow from those of all ranks."""
    key, kinds = (
        "layers.{layer}.ffn.experts.{expert}.{tensor}",
        {"w1.weight": ("U8", (6,)), "w2.weight": ("U8", (4,))},
    )
    old = placement([[0, 1, 2, 3]] * 4)
    ranks = [
        {re.sub(r"^layers\.([56])\.", r"mtp.layers.\1.", name): at for name, at in tensors.items()}
        for tensors in singles(old, kinds, key)
    ]
    case.write(ranks, name="model{rank}-mp{world}.safetensors")
    case.old(old)
    case.new(placement([[0, 1, 2, 3, 0, 1]] * 2 + [[0, 1, -1, -1, 2, 3], [2, 1, 0, 3, 0, -1]], 3))
    case.reshard()
    for numbers in ("0", "2", "0-1"):
        assert eplb("verify", case.dst, "--ranks", numbers).code == 0
    assert_error(eplb("verify", case.dst, "--ranks", "1"), "EP212", "ranks 1 have no expert of some layer")


@pytest.mark.parametrize("style", ["stacked", "row", "expert"])
@pytest.mark.parametrize("ranks", ["0", "1", "2", "3", "2,4", "3-4", "0,3", "0-4"])
def test_ranks_with_few_experts(tmp_path, eplb, style, ranks):
    """Ranks that have no row of a layer, or none of any: what they have is proved, other tensors too."""
    src, dst = tmp_path / "src", tmp_path / "dst"
    src.mkdir()
    write_tree(src, model_of(style), FEW_SLOTS)
    for name, side in (("old", FEW_SLOTS), ("new", SPARSE)):
        (tmp_path / f"{name}.json").write_text(format_placement(side))
    sides = ["--old", tmp_path / "old.json", "--new", tmp_path / "new.json"]
    assert eplb("reshard", src, dst, *sides, "--backend", "file").code == 0
    numbers = rank_numbers("--ranks", ranks)
    for file in dst.glob("*.safetensors"):
        if int(re.findall("[0-9]+", file.name)[0]) not in numbers:
            file.unlink()
    result = eplb("verify", dst, "--ranks", ranks, "--format", "json")
    assert result.code == 0, result.err + result.out
    held = SPARSE.physical_to_logical[:, np.isin(SPARSE.rank_of_slot, numbers)]
    assert result.json["rows_proved"] == (held >= 0).sum()
    assert result.json["others_proved"] == len(numbers)
    for file in dst.glob("*.safetensors"):
        flip(file, -1)
        assert eplb("verify", dst, "--ranks", ranks).code == 5, file
        flip(file, -1)
