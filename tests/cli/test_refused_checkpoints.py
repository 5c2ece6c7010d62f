"""`eplb reshard` with shards that cannot be used: a coded error, exit code 3, and nothing on disk."""

from __future__ import annotations

import errno
import json
import os
import shutil

import pytest

from eplb_cli import files
from tests.cli.case import assert_error, forget_kept
from tests.cli.tree import (
    NEW,
    OLD,
    Tensor,
    file_bytes,
    fingerprint,
    header_of,
    others,
    placement,
    read_shard,
    singles,
    stacked,
    tensor,
    write_json,
    write_shard,
)

W13 = "model.layers.3.mlp.experts.w13_weight"
LAYOUT_FILE = """
format = "eplb-layout/1"
name = "mine"
files = ["model-rank-{rank}-part-{part}.safetensors"]
experts = ["blocks.{layer}.moe.{tensor}"]
tensors = ["up"]
"""
OLD_3 = placement([[0, 1, 2, 3, 0, 1], [3, 2, 1, 0, 2, 3]], 3)
NEW_3 = placement([[3, 0, 0, 1, 2, 2], [0, 1, 2, 3, 3, 1]], 3)


def change(case, rank, **tensors):
    """Set tensors of a rank's shard; None removes one."""
    found = {**read_shard(case.file(rank)), **tensors}
    write_shard(case.file(rank), {key: value for key, value in found.items() if value is not None})


class TestFiles:
    def test_no_such_directory(self, case):
        """EP201, for a directory that is not there and for a file."""
        case.refuse("EP201", "nowhere", src=case.home / "nowhere")
        case.refuse("EP201", "config.json", src=case.src / "config.json")

    def test_no_shards(self, case):
        """EP201: the directory has files, and none is a shard."""
        for file in case.src.glob("*.safetensors"):
            file.unlink()
        case.refuse("EP201", "no .safetensors file")

    def test_a_missing_rank(self, case):
        """EP202 names the rank, whether it is the last one or not."""
        case.file(1).unlink()
        case.refuse("EP202", "OLD has 2 ranks", "files of 1")
        case.write(stacked(OLD))
        case.file(0).unlink()
        case.refuse("EP202", "rank 1", "none of rank 0")

    def test_an_extra_rank(self, case):
        """EP202: more ranks in SRC than in OLD."""
        shutil.copy(case.file(1), case.file(2))
        case.refuse("EP202", "OLD has 2 ranks", "files of 3")

    def test_a_missing_part(self, case):
        """EP202: parts are counted from 0 without a gap."""
        case.write(stacked(OLD), parts=3)
        (case.src / "model-rank-1-part-1.safetensors").unlink()
        case.refuse("EP202", "rank 1 lacks part 1")

    def test_a_missing_last_part(self, case):
        """EP209: no number says that it was there, but the tensors of the other rank do."""
        case.write(stacked(OLD), parts=3)
        (case.src / "model-rank-1-part-2.safetensors").unlink()
        result = case.eplb(*case.arguments())
        assert result.code == 3
        assert "missing on rank 1" in result.err
        assert not case.dst.exists()

    def test_a_tensor_in_two_files(self, case):
        """EP205 names both files."""
        shutil.copy(case.file(1), case.src / "model-rank-1-part-1.safetensors")
        case.refuse("EP205", "part-0", "part-1")

    @pytest.mark.parametrize("change_size", [-1, 1, -300, 4096])
    def test_a_truncated_or_oversized_shard(self, case, change_size):
        """EP203: a file one byte short or long is none."""
        size = case.file(1).stat().st_size + change_size
        os.truncate(case.file(1), size)
        case.refuse("EP203", "model-rank-1-part-0.safetensors", "the tensors end at")

    @pytest.mark.parametrize("size", [0, 7, 8, 100])
    def test_a_file_that_ends_in_its_header(self, case, size):
        """EP203, whatever is left of it."""
        os.truncate(case.file(0), size)
        case.refuse("EP203", "model-rank-0-part-0.safetensors")

    def test_overlapping_offsets(self, case):
        """EP203 names the tensor."""
        tensors = read_shard(case.file(0))
        header = header_of(tensors)
        begin, end = header["model.norm.weight"]["data_offsets"]
        header["model.norm.weight"]["data_offsets"] = [begin - 2, end - 2]
        data = b"".join(tensor.data for tensor in tensors.values())
        case.file(0).write_bytes(file_bytes(header, data))
        case.refuse("EP203", "model.norm.weight", "overlaps")

    def test_links_are_not_followed(self, case):
        """EP204: a link among the shards, or among what is carried along."""
        target = case.home / "elsewhere.safetensors"
        case.file(1).rename(target)
        case.file(1).symlink_to(target)
        case.refuse("EP204", "model-rank-1-part-0.safetensors is a symbolic link", "cp -L")
        case.file(1).unlink()
        target.rename(case.file(1))
        (case.src / "tokenizer.json").symlink_to(case.src / "config.json")
        case.refuse("EP204", "tokenizer.json")

    def test_a_pipe_named_like_a_shard(self, case):
        """EP204, without waiting for a writer."""
        case.file(1).unlink()
        os.mkfifo(case.file(1))
        case.refuse("EP204", "model-rank-1-part-0.safetensors is not a regular file")

    def test_a_directory_named_like_a_shard(self, case):
        """EP204; other directories stay behind."""
        (case.src / "original").mkdir()
        case.reshard(dst=case.home / "fine")
        (case.src / "model-rank-2-part-0.safetensors").mkdir()
        case.refuse("EP204", "model-rank-2")

    def test_a_hugging_face_checkpoint(self, case):
        """EP206 says what SRC looks like instead."""
        for rank in (0, 1):
            case.file(rank).rename(case.src / f"model-0000{rank + 1}-of-00002.safetensors")
        case.refuse("EP206", "no layout fits", "model-00001-of-00002.safetensors", "Hugging Face")

    def test_a_strange_file_among_the_shards(self, case):
        """EP206 names the one that is strange."""
        shutil.copy(case.file(0), case.src / "consolidated.safetensors")
        case.refuse("EP206", "consolidated.safetensors", "docs/layouts.md")

    def test_no_expert_in_the_shards(self, case):
        """EP206, with --layout auto and with a layout that knows none of the tensors."""
        (case.home / "mine.toml").write_text(LAYOUT_FILE)
        case.refuse("EP206", "layout mine", options=("--layout", case.home / "mine.toml"))
        case.write([others(), others()])
        case.refuse("EP206", "no tensor is an expert's")


class TestTensors:
    def test_an_expert_tensor_that_nobody_knows(self, case):
        """EP207 where dim 0 does not say that it has rows: it is never passed through in silence."""
        for rank in (0, 1):
            change(case, rank, **{"model.layers.3.mlp.experts.lora": tensor("BF16", (2, 3), "x")})
        case.refuse("EP207", "experts.lora", "rank 0", "[2, 3]", "3 rows of experts")
        change(case, 1, **{"model.layers.3.mlp.experts.lora": None})
        case.refuse("EP209", "experts.lora", "missing on rank 1")

    def test_an_expert_tensor_of_no_layer(self, case):
        """EP207: nothing says whose rows it has."""
        change(case, 0, **{"model.w13_weight": tensor("BF16", (3, 2), "x")})
        case.refuse("EP207", "model.w13_weight", "rank 0", "sharded-state")

    def test_a_kernel_layout_with_the_expert_last(self, case):
        """EP207: dim 0 is not the rank's row count."""
        change(case, 1, **{W13: tensor("F8_E4M3", (4, 6, 3), "x")})
        case.refuse("EP207", W13, "rank 1", "[4, 6, 3]", "3 rows of experts")

    def test_another_number_of_slots(self, case):
        """EP208: OLD is not the placement of these shards."""
        case.old(placement([[0, 1, 2, 3], [3, 2, 1, 0]]))
        case.refuse("EP208", "3 rows where OLD has 2", "is OLD the placement")

    def test_slots_divided_otherwise(self, case):
        """EP208 for uneven ranks, too."""
        case.old({**OLD, "slots_per_rank": [4, 2]})
        case.refuse("EP208", "rank 0", "3 rows where OLD has 4")

    def test_a_weight_without_a_dimension(self, case):
        """EP208: nothing in it belongs to a row."""
        for rank in (0, 1):
            change(case, rank, **{"model.layers.3.mlp.experts.w2_weight": tensor("F32", (), "x")})
        case.refuse("EP208", "w2_weight", "no dimension")

    def test_a_scale_without_a_dimension(self, case):
        """It is of all experts where all ranks have the same; EP231 where they do not."""
        key = "model.layers.3.mlp.experts.w2_weight_scale_inv"
        for rank in (0, 1):
            change(case, rank, **{key: tensor("F32", (), "x")})
        case.reshard()
        for rank in (0, 1):
            change(case, rank, **{key: tensor("F32", (), str(rank))})
        case.refuse("EP231", key, dst=case.home / "other")
        hint = "not known to be a maximum"
        case.refuse("EP231", key, hint, options=("--rank-scalars", "max"), dst=case.home / "other")

    def test_another_dtype_on_one_rank(self, case):
        """EP209 names both dtypes and their ranks."""
        found = read_shard(case.file(1))[W13]
        change(case, 1, **{W13: Tensor("U8", found.shape, found.data)})
        case.refuse("EP209", "layer 3", "F8_E4M3", "U8", "on rank 1")

    def test_another_row_shape_on_one_rank(self, case):
        """EP209 names both shapes."""
        found = read_shard(case.file(1))[W13]
        change(case, 1, **{W13: Tensor(found.dtype, (3, 24), found.data)})
        case.refuse("EP209", "[4, 6]", "[24]")

    def test_a_tensor_that_one_rank_lacks(self, case):
        """EP209 for a weight, EP210 for a scale."""
        change(case, 1, **{W13: None})
        case.refuse("EP209", W13, "missing on rank 1")
        case.write(stacked(OLD))
        change(case, 1, **{f"{W13}_scale_inv": None})
        case.refuse("EP210", f"{W13}_scale_inv", "missing on rank 1")

    def test_rows_that_are_not_whole_bytes(self, case):
        """EP209: four bits cannot be moved."""
        ranks = [
            {
                **others(),
                **{f"model.layers.3.mlp.experts.{name}": odd for name in ("w13_weight", "w2_weight")},
            }
            for odd in (tensor("F4", (4, 3), "0"), tensor("F4", (4, 3), "1"))
        ]
        case.write(ranks)
        case.old(placement([[0, 1, 2, 3, 0, 1, 2, 3]]))
        case.new(placement([[3, 1, 2, 0, 0, 1, 2, 3]]))
        case.refuse("EP209", "12 bits")

    @pytest.mark.parametrize("missing", ["w13_weight_scale_inv", "w2_weight_scale_inv"])
    @pytest.mark.parametrize("layer", [3, 4])
    def test_a_weight_without_its_scale(self, case, layer, missing):
        """EP210: its like have one."""
        for rank in (0, 1):
            change(case, rank, **{f"model.layers.{layer}.mlp.experts.{missing}": None})
        weight, _, kind = missing.partition("_")
        case.refuse("EP210", f"layer {layer}", f"experts.{weight}_weight is there without {kind}")

    def test_a_scale_without_its_weight(self, case):
        """EP210: scales that move alone are the worst that can happen."""
        for rank in (0, 1):
            change(case, rank, **{W13: None})
        case.refuse("EP210", "w13_weight_scale_inv is there without the weight of w13")

    @pytest.mark.parametrize("shapes", [((4,), (4,)), ((), (3,)), ((1,), (3,)), ((3,), ())])
    def test_an_input_scale_that_is_neither_one_value_nor_rows(self, case, shapes):
        """EP211, on any rank."""
        for rank, shape in enumerate(shapes):
            change(case, rank, **{"model.layers.3.mlp.experts.w13_input_scale": tensor("F32", shape, "x")})
        case.refuse("EP211", "w13_input_scale")

    def test_unplaced_layers_when_slots_change(self, case):
        """EP219: MTP layers cannot follow to other slots or ranks."""
        mtp = {**OLD, "layer_ids": [3, 61]}
        case.write(stacked(mtp))
        case.old(placement([[0, 1, 2, 3, 0, 1]]))
        case.new(placement([[0, 1, 2, 3]]))
        case.refuse("EP219", "layer 61")
        case.new(placement([[3, 1, 2, 0, 0, 1]], 3))
        case.refuse("EP219", "layer 61")


class TestOtherTensors:
    def test_sharded_by_their_shapes(self, case):
        """EP213 when R changes: vocabulary parts of unequal size."""
        for rank in (0, 1):
            change(case, rank, **{"lm_head.weight": tensor("BF16", (4 + rank, 3), "x")})
        case.new(NEW_3)
        case.refuse("EP213", "lm_head.weight", "which become 3 instead of 2")
        case.new(NEW)
        case.reshard()

    def test_sharded_by_their_content_only(self, case):
        """EP213 when R changes, although the shapes are the same; nothing of DST stays behind."""
        case.write(stacked(OLD, shared=False))
        case.new(NEW_3)
        case.refuse("EP213", "and 4 more")
        case.refuse("EP213", "and 4 more", options=("--no-digest",))

    def test_a_vocabulary_in_equal_parts(self, case):
        """EP213 when R changes, before any data is read: config.json says the whole size."""
        (case.src / "config.json").write_text(json.dumps({"vocab_size": 16}))
        case.new(NEW_3)
        case.refuse("EP213", "model.embed_tokens.weight", options=("--dry-run",))

    def test_one_that_a_rank_lacks(self, case):
        """EP213 when R changes, and a warning when it does not."""
        change(case, 1, **{"model.norm.weight": None})
        result = case.reshard()
        assert "warning: rank 1 lacks 'model.norm.weight'" in result.err
        case.new(NEW_3)
        case.refuse("EP213", "model.norm.weight", dst=case.home / "other")


class TestKeysThatNameExperts:
    KINDS = {  # noqa: RUF012
        "w1.weight": ("BF16", (2, 3)),
        "w1.scale": ("F32", (1, 1)),
        "w2.weight": ("BF16", (3, 2)),
        "w2.scale": ("F32", (1, 1)),
    }
    OLD = placement([[0, 1, 2, 3], [3, 2, 1, 0]])

    @pytest.fixture
    def deepseek(self, case):
        """The shards of DeepSeek's convert.py: keys have the expert's number, files that of ranks."""
        self.write(case, self.OLD)
        case.old(self.OLD)
        case.new(placement([[3, 1, 2, 0], [3, 2, 0, 1]]))
        return case

    def write(self, case, content):
        ranks = singles(content, self.KINDS, "layers.{layer}.ffn.experts.{expert}.{tensor}")
        case.write(ranks, name="model{rank}-mp{world}.safetensors")

    def test_other_experts_than_old_says(self, deepseek):
        """EP217 names layer, rank and expert."""
        deepseek.old(placement([[0, 2, 1, 3], [3, 2, 1, 0]]))
        deepseek.refuse("EP217", "rank 0, layer 3: expert 1", "in the shard and not in OLD")

    def test_the_same_expert_twice_on_a_rank(self, deepseek):
        """EP218: a key can be there only once, in NEW as in OLD."""
        deepseek.new(placement([[0, 0, 1, 2, 3, 3], [0, 1, 2, 3, 0, 1]]))
        deepseek.refuse("EP218", "layer 3, rank 0: expert 0")
        deepseek.old(placement([[0, 0, 1, 2, 3, 3], [0, 1, 2, 3, 0, 1]]))
        deepseek.refuse("EP218", "layer 3, rank 0: expert 0")

    def test_files_of_another_number_of_ranks(self, deepseek):
        """EP202: the name says of how many ranks a file is, so that a lost last rank shows."""
        (deepseek.src / "model1-mp2.safetensors").unlink()
        deepseek.refuse("EP202", "model0-mp2.safetensors is one of 2 ranks", old="linear")

    def test_ranks_with_unequal_experts_in_two_layers(self, deepseek):
        """EP217, in `inspect` too."""
        file = deepseek.src / "model1-mp2.safetensors"
        write_shard(
            file, {key: at for key, at in read_shard(file).items() if "layers.4.ffn.experts.0" not in key}
        )
        deepseek.refuse("EP217", "rank 1, layer 4: expert 0", "in OLD and not in the shard")
        result = deepseek.eplb("inspect", deepseek.src)
        assert result.code == 3
        assert "error[EP217]: rank 1 has 1 experts in layer 4" in result.err


class TestLayoutFiles:
    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("", "format"),
            ("format = 'eplb-layout/1'\nnope = 1", "nope"),
            ("format = 'eplb-layout/1'\nname = 'x'", "files"),
            ("= broken", "line 1"),
            ("\0", "line 1"),
        ],
    )
    def test_a_layout_file_that_is_none(self, case, text, says):
        """EP206 names the key."""
        (case.home / "mine.toml").write_text(text)
        case.refuse("EP206", "mine.toml", says, options=("--layout", case.home / "mine.toml"))

    def test_a_key_that_only_a_layout_file_makes_look_like_an_experts(self, case):
        """EP207: what fits `experts` but for its end is never passed through in silence."""
        (case.home / "mine.toml").write_text(LAYOUT_FILE)
        shards = stacked(OLD, {"up": ("U8", (2,)), "down": ("U8", (3,))}, prefix="blocks.{layer}.moe")
        case.write([{key: at for key, at in rank.items() if "experts" not in key} for rank in shards])
        case.refuse("EP207", "blocks.3.moe.down", options=("--layout", case.home / "mine.toml"))

    def test_a_layout_that_does_not_exist(self, case):
        """EP206 lists the layouts there are."""
        case.refuse("EP206", "neither a layout nor a file", "per-row", options=("--layout", "nope"))

    def test_a_layout_that_names_files_otherwise(self, case):
        """EP206 names a file, and what the layout expects."""
        case.refuse("EP206", "model-rank-0", "model{rank}-mp{world}", options=("--layout", "deepseek"))


class TestManifest:
    @pytest.mark.parametrize(
        "change",
        [
            lambda text: text[:-20],
            lambda text: text.replace('"senders"', '"sender"'),
            lambda text: text.replace("eplb-checkpoint/1", "eplb-checkpoint/2"),
            lambda text: text.replace("model-rank-0-part-0", "../model-rank-0-part-0"),
            lambda text: text.replace('"num_ranks": 2', '"num_ranks": 3'),
            lambda _: "[" * 100_000,
            lambda _: "[]",
            lambda _: "\udcff",
        ],
    )
    def test_a_manifest_that_cannot_be_used(self, case, tmp_path, change):
        """EP214 for an eplb.json in SRC that was changed in any way; without it the run goes on."""
        case.reshard()
        file = case.dst / "eplb.json"
        file.write_text(change(file.read_text()), errors="surrogateescape")
        back = {"src": case.dst, "dst": tmp_path / "back", "old": None, "new": tmp_path / "old.json"}
        case.refuse("EP214", "eplb.json", **back)
        file.unlink()
        case.reshard(**back | {"old": tmp_path / "new.json"})

    def test_a_row_that_is_not_what_the_manifest_says(self, case, tmp_path):
        """EP506 with exit code 5: SRC was changed since eplb wrote it."""
        case.reshard()
        content = bytearray((case.dst / case.file(1).name).read_bytes())
        content[4096] ^= 1
        (case.dst / case.file(1).name).write_bytes(content)
        back = {"src": case.dst, "dst": tmp_path / "back", "old": None, "new": tmp_path / "old.json"}
        case.refuse("EP506", "rank 1, row 0", exit_code=5, **back)


@pytest.mark.parametrize(
    ("operation", "number", "after"),
    [
        ("open", errno.EACCES, 0),
        ("open", errno.EACCES, 2),
        ("read", errno.EIO, 0),
        ("read", errno.EIO, 3),
        ("read", errno.EIO, 12),
    ],
)
def test_a_file_that_cannot_be_read(case, monkeypatch, operation, number, after):
    """EP201 with the file and the system's words, whether it is a header or a row that cannot be read."""
    left = after

    def attempt(name, call, *args):
        nonlocal left
        is_source = name == operation and (name == "read" or str(case.src) in str(args[0]))
        if is_source and (left := left - 1) < 0:
            raise OSError(number, os.strerror(number))
        return call(*args)

    before = fingerprint(case.home)
    monkeypatch.setattr(files, "attempt", attempt)
    result = case.eplb(*case.arguments(), "--config", "none")  # which would be read, too
    assert_error(result, "EP201", str(case.src), os.strerror(number))
    forget_kept(case.home, result)
    assert fingerprint(case.home) == before


def test_a_file_that_changes_while_it_is_read(case, monkeypatch):
    """EP220: rows of two writes are never mixed."""

    def touch_when_created(operation, call, *args):
        if operation == "allocate":
            os.utime(case.file(1), ns=(1, 1))
        return call(*args)

    monkeypatch.setattr(files, "attempt", touch_when_created)
    result = case.eplb(*case.arguments())
    assert result.code == 3
    assert "error[EP220]" in result.err
    assert sorted(path.name for path in case.home.iterdir()) == ["new.json", "old.json", "src"]


def test_too_few_dimensions_cost_no_memory(case):
    """EP208: a tensor of no bytes may claim any number of rows."""
    for rank in (0, 1):
        kernel = Tensor("F8_E4M3", (1 << 40, 0), b"")
        change(case, rank, **{W13: kernel, "model.layers.3.mlp.experts.w2_weight": kernel})
    case.refuse("EP208", "1,099,511,627,776", old="linear")


def test_rows_too_large_to_count(case):
    """EP203: a rank without slots cannot claim rows of any size; the safetensors library refuses it too."""
    uneven = {**OLD, "slots_per_rank": [6, 0]}
    ranks = stacked(uneven)
    ranks[1][W13] = Tensor("F8_E4M3", (0, 1 << 62, 1 << 62), b"")
    case.write(ranks)
    case.old(uneven)
    write_json(case.home / "new.json", NEW)
    case.refuse("EP203", "model-rank-1", "too much to count")
