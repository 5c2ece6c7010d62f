"""`eplb verify`: every byte that changed since it was written is found, and named, with exit code 5."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re

import pytest

from tests.cli.case import assert_error
from tests.cli.tree import (
    NEW,
    OLD,
    fingerprint,
    placement,
    read_shard,
    stacked,
    write_json,
    write_shard,
    write_tree,
)


@pytest.fixture
def tree(case):
    """A tree that eplb wrote, with an empty slot on rank 1."""
    case.new(placement([[3, 0, 0, 1, 2, -1], [0, 1, 2, 3, 3, 1]]))
    case.reshard()
    return case.dst


def flip(file, offset):
    """Change one byte."""
    content = bytearray(file.read_bytes())
    content[offset] ^= 0x10
    file.write_bytes(content)


def offset_of(file, key):
    """Where a tensor begins in a file."""
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return 8 + length + json.loads(content[8 : 8 + length])[key]["data_offsets"][0]


def test_a_whole_tree(eplb, tree, case):
    """Rows, other tensors and bytes are counted; nothing is changed."""
    before = fingerprint(case.home)
    result = eplb("verify", tree)
    assert result.code == 0
    assert result.out.startswith("verified: 11 of 11 rows proved\n")
    assert eplb("verify", tree, "--against", case.src).code == 0
    assert fingerprint(case.home) == before


def test_json(eplb, tree, case):
    """The same numbers, for scripts."""
    result = eplb("verify", tree, "--against", case.src, "--format", "json")
    found = dict(result.json)
    assert found.pop("seconds") > 0
    assert found == {
        "format": "eplb-verification/1",
        "dst": str(tree),
        "against": str(case.src),
        "ok": True,
        "rows_proved": 11,
        "rows_total": 11,
        "others_proved": 10,
        "files": 2,
        "bytes": sum(file.stat().st_size for file in tree.glob("*.safetensors")),
        "warnings": [],
        "compared": "plan",
        "ranks": [0, 1],
    }


class TestDamage:
    def expect(self, eplb, tree, case, code, *says):
        """The place is named, whether SRC is there to compare with or not."""
        assert_error(eplb("verify", tree), code, *says, exit_code=5)
        result = eplb("verify", tree, "--against", case.src, "--format", "json")
        assert_error(result, code, *says, exit_code=5)
        assert list(result.json) == ["error"]

    def test_a_row(self, eplb, tree, case):
        """EP501 names file, layer, slot, rank, row and tensor."""
        file = tree / "model-rank-1-part-0.safetensors"
        key = "model.layers.4.mlp.experts.w2_weight"
        flip(file, offset_of(file, key) + 2 * 12 + 5)
        says = (str(file), "layer 4, slot 5 (rank 1, row 2)", "w2_weight")
        self.expect(eplb, tree, case, "EP501", *says)

    def test_an_empty_row(self, eplb, tree, case):
        """EP502: an empty slot holds zeros."""
        file = tree / "model-rank-1-part-0.safetensors"
        flip(file, offset_of(file, "model.layers.3.mlp.experts.w13_weight") + 2 * 24 + 23)
        self.expect(eplb, tree, case, "EP502", str(file), "layer 3, slot 5 (rank 1, row 2)", "w13_weight")

    def test_another_tensor(self, eplb, tree, case):
        """EP504 names file and tensor."""
        file = tree / "model-rank-0-part-0.safetensors"
        flip(file, offset_of(file, "model.embed_tokens.weight") + 7)
        self.expect(eplb, tree, case, "EP504", str(file), "model.embed_tokens.weight")

    @pytest.mark.parametrize("offset", [0, 3, 8, 100, 4000])
    def test_a_header(self, eplb, tree, case, offset):
        """EP505 names the file, whatever byte of its header it is."""
        file = tree / "model-rank-0-part-0.safetensors"
        flip(file, offset)
        self.expect(eplb, tree, case, "EP505", str(file), "header")

    @pytest.mark.parametrize("name", ["config.json", "eplb-digests-rank-1.npy"])
    @pytest.mark.parametrize("offset", [0, 9, -1])
    def test_a_file_beside_the_shards(self, eplb, tree, case, name, offset):
        """EP505 names the file: carried along, or of digests."""
        flip(tree / name, offset)
        self.expect(eplb, tree, case, "EP505", str(tree / name))

    def test_any_byte_of_the_manifest(self, eplb, tree):
        """EP505 names eplb.json, for a sample of all its bytes."""
        file = tree / "eplb.json"
        good = file.read_bytes()
        for offset in range(0, len(good), len(good) // 40):
            flip(file, offset)
            assert_error(eplb("verify", tree), "EP505", str(file), exit_code=5)
            file.write_bytes(good)
        assert eplb("verify", tree).code == 0

    @pytest.mark.parametrize(
        "name", ["model-rank-0-part-0.safetensors", "config.json", "eplb-digests-rank-0.npy"]
    )
    def test_a_file_that_is_cut_short_or_gone(self, eplb, tree, case, name):
        """EP505 names the file, and its size."""
        size = (tree / name).stat().st_size
        os.truncate(tree / name, size - 1)
        self.expect(eplb, tree, case, "EP505", str(tree / name), f"has {size - 1} bytes instead of {size}")
        (tree / name).unlink()
        self.expect(eplb, tree, case, "EP505", str(tree / name), "is missing")
        (tree / name).symlink_to("eplb.json")
        self.expect(eplb, tree, case, "EP505", str(tree / name))

    def test_an_extra_shard(self, eplb, tree, case):
        """EP505: an engine would load it."""
        file = tree / "model-rank-0-part-1.safetensors"
        write_shard(file, {})
        self.expect(eplb, tree, case, "EP505", str(file), "not in the manifest")


def lie(tree, **changes):
    """Change what the manifest says, and its digest with it."""
    content = {**json.loads((tree / "eplb.json").read_text()), **changes}
    del content["digest"]
    text = json.dumps(content, indent=1, sort_keys=True).encode()
    sealed = {**content, "digest": hashlib.sha256(text).hexdigest()}
    (tree / "eplb.json").write_bytes(json.dumps(sealed, indent=1, sort_keys=True).encode() + b"\n")


class TestPlan:
    """The plan that the manifest names is the one that its placements make, by its senders."""

    SAYS = "eplb.json: its placements do not make the plan that it names"

    @pytest.mark.parametrize(
        "changes",
        [
            {"source_placement": placement([[0, 1, 2, 3, 0, 1], [3, 2, 1, 0, 2, 0]])},
            {"plan_digest": "00" * 32},
        ],
    )
    def test_another(self, eplb, tree, changes):
        """EP505, though the digest of the manifest is right."""
        lie(tree, **changes)
        assert_error(eplb("verify", tree), "EP505", self.SAYS, exit_code=5)

    def test_of_another_version(self, eplb, tree):
        """Other versions may choose other senders: what they say is believed."""
        lie(tree, tool="eplb 0", plan_digest="00" * 32)
        assert eplb("verify", tree).code == 0

    @pytest.mark.parametrize("options", [["--senders", "vllm"], ["--ranks-per-node", "1"]])
    def test_of_other_options(self, eplb, case, options):
        """The manifest has all that the plan follows from."""
        case.reshard(*options)
        assert eplb("verify", case.dst).code == 0


class TestAgainst:
    def test_another_source(self, eplb, tree, case):
        """EP501 asks whether DST was made from it."""
        rows = [[0, 1, 2, 3, 0, 1], [3, 2, 1, 0, 2, 0]]
        other = write_tree(case.home / "other", stacked(placement(rows)))
        result = eplb("verify", tree, "--against", other)
        assert_error(result, "EP501", "layer 4", f"is {other} what it was made from?", exit_code=5)

    def test_a_source_that_cannot_be_used(self, eplb, tree, case):
        """The error of the shards, with exit code 3."""
        case.file(1).unlink()
        assert_error(eplb("verify", tree, "--against", case.src), "EP202")
        assert_error(eplb("verify", tree, "--against", case.home / "nowhere"), "EP201")

    def test_a_tree_without_digests(self, eplb, case):
        """EP214 without SRC, a proof with it."""
        case.reshard("--no-digest")
        assert not list(case.dst.glob("*.npy"))
        assert_error(eplb("verify", case.dst), "EP214", "--against SRC")
        assert eplb("verify", case.dst, "--against", case.src).code == 0
        flip(case.dst / "model-rank-0-part-0.safetensors", 4096)
        assert_error(eplb("verify", case.dst, "--against", case.src), "EP501", exit_code=5)

    def test_after_a_change_of_ranks(self, eplb, case):
        """Other tensors of new ranks are compared with those they came from."""
        case.new(placement([[3, 0, 0, 1, 2, 2], [0, 1, 2, 3, 3, 1]], 3))
        case.reshard()
        assert eplb("verify", case.dst, "--against", case.src).code == 0
        file = case.dst / "model-rank-2-part-0.safetensors"
        flip(file, offset_of(file, "model.norm.weight"))
        result = eplb("verify", case.dst, "--against", case.src)
        assert_error(result, "EP504", "model.norm.weight", exit_code=5)

    def test_replicas_that_differ_in_the_source(self, eplb, case):
        """A warning, trap 10 of the reference: they stay as different as they were."""
        tensors = read_shard(case.file(1))
        key = "model.layers.3.mlp.experts.w2_weight"
        data = bytearray(tensors[key].data)
        data[12 * 1] ^= 1
        write_shard(case.file(1), {**tensors, key: tensors[key]._replace(data=bytes(data))})
        warning = "warning: layer 3: the replicas of expert 0 differ in SRC"
        assert warning in case.reshard().err
        result = eplb("verify", case.dst, "--against", case.src)
        assert (result.code, warning in result.err) == (0, True)
        assert eplb("verify", case.dst).code == 0


def test_senders_that_there_are_not(eplb, case):
    """EP214 where the plan has to be derived anew from a word that this version does not know."""
    case.reshard()
    file = case.dst / "eplb.json"
    content = json.loads(file.read_text())
    del content["digest"]
    content["senders"] = "fastest"
    digest = hashlib.sha256(json.dumps(content, indent=1, sort_keys=True).encode()).hexdigest()
    text = json.dumps({**content, "digest": digest}, indent=1, sort_keys=True)
    file.write_text(text + "\n")
    for against in ((), ("--against", case.src)):
        assert_error(eplb("verify", case.dst, *against), "EP214", "'fastest'")


@pytest.mark.parametrize("senders", ["balanced", "vllm"])
def test_replicas_that_differ_and_nodes(case, senders):
    """The plan is made again as it was, so that the same replica is the source of each row."""
    rng = random.Random(7)  # nodes change who sends what

    def rows() -> list[list[int]]:
        return [rng.sample([0, 1, 2, 3, *rng.choices(range(4), k=4)], 8) for _ in range(2)]

    old, new = placement(rows(), 8), placement(rows(), 8)
    kinds = {"w13_weight": ("U8", (16,)), "w2_weight": ("U8", (16,))}
    ranks = stacked(old, kinds)
    for rank, tensors in enumerate(ranks):
        for key in (f"model.layers.3.mlp.experts.{kind}" for kind in kinds):  # those of layer 4 are alike
            tensors[key] = tensors[key]._replace(data=bytes([rank]) * 16)
    case.write(ranks)
    case.old(old)
    case.new(new)
    for nodes in (1, 2, 4):
        case.reshard("--ranks-per-node", nodes, "--senders", senders, dst=case.home / f"{nodes}")


def test_what_is_no_tree_of_eplb(eplb, case):
    """EP201 for no directory, EP214 for one without a manifest."""
    assert_error(eplb("verify", case.home / "nowhere"), "EP201", "nowhere")
    assert_error(eplb("verify", case.file(0)), "EP201")
    assert_error(eplb("verify", case.src), "EP214", "has no eplb.json")


def test_a_tree_that_moved(eplb, tree, case):
    """Nothing in it says where it is."""
    tree.rename(case.home / "elsewhere")
    assert eplb("verify", case.home / "elsewhere").code == 0


class TestChains:
    """What went through other trees is compared with the first one, whatever R was on the way."""

    THREE = placement([[3, 0, 1, 2, 2, 0], [0, 1, 2, 3, 3, 1]], 3)
    FOUR = placement([[3, 0, 1, 2], [0, 1, 2, 3]], 4)

    def chain(self, case, *placements):
        """Reshard from each tree to the next one; the last of them."""
        src, old = case.src, case.home / "old.json"
        for number, content in enumerate(placements):
            dst = case.home / f"step{number}"
            case.reshard(src=src, dst=dst, old=old, new=write_json(case.home / f"{number}.json", content))
            src, old = dst, None
        return src

    def test_each_is_proved_against_the_one_before_it(self, eplb, case):
        """By the plan that made it."""
        last = self.chain(case, NEW, self.THREE)
        result = eplb("verify", last, "--against", case.home / "step0", "--format", "json")
        assert (result.code, result.json["compared"]) == (0, "plan")

    @pytest.mark.parametrize("middle", [NEW, THREE, FOUR])
    def test_going_back(self, eplb, case, middle):
        """The tree is what there was, though it was made from another; SRC says no placement."""
        back = self.chain(case, middle, OLD)
        result = eplb("verify", back, "--against", case.src)
        assert (result.code, result.err.count("error")) == (0, 0)
        assert "compared       expert by expert, since it is not SRC's placement" in result.out
        assert eplb("verify", back, "--against", case.src, "--format", "json").json["compared"] == "expert"

    @pytest.mark.parametrize("steps", [(NEW, FOUR, THREE), (THREE, NEW, FOUR)])
    def test_any_placement_that_src_says_itself(self, eplb, case, steps):
        """Two steps from a tree with an eplb.json, to another number of ranks."""
        last = self.chain(case, *steps)
        result = eplb("verify", last, "--against", case.home / "step0", "--format", "json")
        assert (result.code, result.json["compared"]) == (0, "expert")

    def test_a_placement_that_nothing_says(self, eplb, case):
        """Neither R of the last step is that of SRC: rows are compared as sets, and the page says so."""
        last = self.chain(case, self.THREE, self.FOUR)
        result = eplb("verify", last, "--against", case.src)
        assert result.code == 0
        assert "compared       layer by layer, as sets of rows: nothing says" in result.out
        file = case.file(0)
        flip(file, offset_of(file, "model.layers.4.mlp.experts.w2_weight"))
        result = eplb("verify", last, "--against", case.src, "--format", "json")
        assert_error(result, "EP501", "layer 4", f"is none of {last}", exit_code=5)

    @pytest.mark.parametrize("middle", [NEW, THREE])
    def test_damage_at_the_end_of_a_chain(self, eplb, case, middle):
        """A row and another tensor that are not those of SRC any more."""
        back = self.chain(case, middle, OLD)
        for rank in (0, 1):  # the replicas of expert 0
            file = case.file(rank)
            flip(file, offset_of(file, "model.layers.3.mlp.experts.w2_weight") + 12 * rank)
            flip(file, offset_of(file, "model.norm.weight"))
        result = eplb("verify", back, "--against", case.src)
        assert_error(result, "EP501", "layer 3, slot 0", "differs from expert 0 in its source", exit_code=5)
        assert "\n  | EP504: " in result.err
        assert "'model.norm.weight' differs from its source" in result.err
        assert "\n  | 4 differences in all\n" in result.err

    def test_replicas_that_differ_in_the_first_tree(self, eplb, case):
        """Each row is one of its expert's replicas there, whichever came through; and they are named."""
        tensors = read_shard(case.file(1))
        key = "model.layers.3.mlp.experts.w2_weight"
        data = bytearray(tensors[key].data)
        data[12 * 1] ^= 1
        write_shard(case.file(1), {**tensors, key: tensors[key]._replace(data=bytes(data))})
        back = self.chain(case, self.THREE, OLD)
        result = eplb("verify", back, "--against", case.src)
        assert result.code == 0
        assert "warning: layer 3: the replicas of expert 0 differ in SRC" in result.err

    def test_experts_that_were_exchanged(self, eplb, case):
        """Two experts under each other's names are found wherever SRC says which is which."""
        last = self.chain(case, NEW, self.THREE)
        wrong = placement([[0, 3, 3, 1, 2, 2], [0, 1, 2, 3, 3, 1]])  # NEW with experts 0 and 3 exchanged
        lie(case.home / "step0", placement=wrong)
        result = eplb("verify", last, "--against", case.home / "step0")
        assert_error(result, "EP501", "layer 3", "differs from expert 3 in its source", exit_code=5)


class TestAllDamage:
    def test_it_is_listed(self, eplb, case):
        """Every row, empty row and other tensor, and every file beside them."""
        (case.src / "tokenizer.json").write_text("{}")
        case.new(placement([[3, 0, 0, 1, 2, -1], [0, 1, 2, 3, 3, 1]]))
        case.reshard()
        tree = case.dst
        file = tree / "model-rank-1-part-0.safetensors"
        for key, offset in (
            ("model.layers.4.mlp.experts.w2_weight", 2 * 12 + 5),
            ("model.layers.3.mlp.experts.w13_weight", 0),
            ("model.layers.3.mlp.experts.w13_weight", 2 * 24 + 23),
            ("model.norm.weight", 0),
        ):
            flip(file, offset_of(file, key) + offset)
        flip(tree / "tokenizer.json", 1)
        result = eplb("verify", tree)
        assert_error(result, "EP505", f"{tree / 'tokenizer.json'} is not what was written", exit_code=5)
        lines = result.err[result.err.index("error[") :].splitlines()
        codes = ["EP501", "EP501", "EP502", "EP504"]
        assert [line.split(": ")[0].removeprefix("  | ") for line in lines[1:5]] == codes
        assert lines[5] == "  | 5 differences in all"
        error = eplb("verify", tree, "--format", "json").json["error"]
        assert error["num_further"] == 4
        assert [further["code"] for further in error["further"]] == codes
        assert error["further"][1]["where"] == {
            "file": str(file),
            "line": None,
            "layer": 4,
            "slot": 5,
            "rank": 1,
            "tensor": "model.layers.{layer}.mlp.experts.w2_weight",
        }

    def test_files_that_say_where_rows_are(self, eplb, tree):
        """All of them are named; their rows are not looked at, and that is said."""
        flip(tree / "model-rank-0-part-0.safetensors", 100)
        (tree / "model-rank-1-part-0.safetensors").unlink()
        flip(tree / "eplb-digests-rank-1.npy", 200)
        result = eplb("verify", tree)
        assert_error(result, "EP505", "what is in the rows was not looked at", exit_code=5)
        for name, problem in (
            ("model-rank-0-part-0.safetensors", ": its header"),
            ("model-rank-1-part-0.safetensors", " is missing"),
            ("eplb-digests-rank-1.npy", " is not what was written"),
        ):
            assert f"{tree / name}{problem}" in result.err
        assert "  | 3 differences in all\n" in result.err

    def test_much_of_it_is_counted(self, eplb, tree, case):
        """Twenty places, and how many more there are."""
        case.write(stacked(placement([[1, 2, 3, 0, 1, 2], [2, 1, 0, 3, 1, 2]])))
        result = eplb("verify", tree, "--against", case.src)
        assert result.code == 5
        lines = result.err[result.err.index("error[") :].splitlines()
        more = re.fullmatch(r"  \| \.\.\. and (\d+) more", lines[20])
        assert more
        assert lines[21] == f"  | {20 + int(more[1])} differences in all"
        assert lines[22].startswith("  hint: ")


def test_progress_ends_at_the_whole(eplb, tree):
    """The last line on stderr has read all there is."""
    err = eplb("verify", tree).err
    assert re.search(r"^verify: [0-9.]+ kB, .*$", err, re.MULTILINE), err
