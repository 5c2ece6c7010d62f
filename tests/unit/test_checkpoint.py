"""Where every row lies: names and headers of shards, with a placement laid over them."""

from __future__ import annotations

import os

import numpy as np
import pytest

from eplb_cli.checkpoint.layout_file import presets
from eplb_cli.checkpoint.sharded import bind, with_layers
from eplb_cli.checkpoint.shards import open_shards
from eplb_cli.errors import CheckpointError, PlacementError
from eplb_cli.placements.own_format import placement_from_json
from tests.cli.tree import (
    KINDS,
    OLD,
    Tensor,
    others,
    placement,
    row,
    singles,
    stacked,
    tensor,
    write_shard,
    write_tree,
)

ROW_KEY = "model.layers.{layer}.mlp.experts.{row}.{tensor}"
EXPERT_KEY = "layers.{layer}.ffn.experts.{expert}.{tensor}"
EXPERT_KINDS = {"w1.weight": ("BF16", (2, 3)), "w2.weight": ("BF16", (3, 2))}


def of(content):
    return placement_from_json(content, "old.json")


def read_rows(checkpoint):
    """(layer, tensor, slot) → the bytes that the extents point at."""
    found = {}
    for layer, kind, slot in np.argwhere(checkpoint.extents.file >= 0).tolist():
        file = checkpoint.shards.files[checkpoint.extents.file[layer, kind, slot]].path
        nbytes = int(checkpoint.row_nbytes[layer, kind])
        begin = int(checkpoint.extents.offset[layer, kind, slot])
        found[layer, checkpoint.expert_tensors[kind].tensor, slot] = file.read_bytes()[begin : begin + nbytes]
    return found


def expected_rows(content, kinds):
    return {
        (index, name, slot): row(layer, expert, name, kind)
        for index, (layer, experts) in enumerate(
            zip(content["layer_ids"], content["physical_to_logical_map"], strict=True)
        )
        for slot, expert in enumerate(experts)
        for name, kind in kinds.items()
    }


class TestRows:
    @pytest.mark.parametrize("parts", [1, 3])
    def test_stacked(self, tmp_path, parts):
        """The bytes at each place are those of the expert that the placement says is there."""
        shards = open_shards(write_tree(tmp_path / "src", stacked(OLD), parts=parts))
        checkpoint = bind(shards, of(OLD))
        assert read_rows(checkpoint) == expected_rows(OLD, KINDS)
        assert checkpoint.expert_nbytes.tolist() == [48, 48]
        assert [set(rank) for rank in checkpoint.others] == [set(others())] * 2
        assert (checkpoint.warnings, checkpoint.sharded_others, shards.layers.beside) == ([], [], [])
        assert (checkpoint.rank_numbers, checkpoint.maps) == (frozenset(), {})
        assert not checkpoint.extents.offset.flags.writeable

    def test_one_tensor_for_each_row(self, tmp_path):
        """The number in the key is the row on its rank."""
        shards = open_shards(write_tree(tmp_path / "src", singles(OLD, EXPERT_KINDS, ROW_KEY)))
        assert read_rows(bind(shards, of(OLD))) == expected_rows(OLD, EXPERT_KINDS)

    def test_one_tensor_for_each_expert(self, tmp_path):
        """The number in the key is the expert, so that an empty slot has no place."""
        old = placement([[0, 1, 2, -1, 3, 0], [3, 2, -1, 0, 1, 3]])
        ranks = singles(old, EXPERT_KINDS, EXPERT_KEY)
        shards = open_shards(write_tree(tmp_path / "src", ranks, "model{rank}-mp{world}.safetensors"))
        rows = {place: data for place, data in expected_rows(old, EXPERT_KINDS).items() if any(data)}
        assert read_rows(bind(shards, of(old))) == rows

    def test_uneven_ranks(self, tmp_path):
        """Slots per rank as the placement says, one rank without any."""
        uneven = {**OLD, "num_ranks": 3, "slots_per_rank": [1, 0, 5]}
        shards = open_shards(write_tree(tmp_path / "src", stacked(uneven)))
        assert shards.slots_per_rank.tolist() == [1, 0, 5]
        assert read_rows(bind(shards, of(uneven))) == expected_rows(uneven, KINDS)

    def test_layers_with_other_tensors(self, tmp_path):
        """A cell that a layer lacks has no bytes and no places; it may lack what is of no projection."""
        ranks = stacked(OLD, {"first": ("U8", (2,))})
        more = stacked({**OLD, "layer_ids": [3, 4]}, {"second": ("U8", (3,))})
        merged = [
            {**first, **{key: at for key, at in second.items() if "layers.4" in key}}
            for first, second in zip(ranks, more, strict=True)
        ]
        checkpoint = bind(open_shards(write_tree(tmp_path / "src", merged)), of(OLD))
        assert checkpoint.row_nbytes.tolist() == [[2, 0], [2, 3]]
        assert (checkpoint.extents.file[0, 1] == -1).all()
        assert checkpoint.dtype.tolist() == [["U8", None], ["U8", "U8"]]


class TestOpening:
    def test_what_is_carried(self, tmp_path):
        """Regular files that are no shards; not what eplb writes, nor an index, hidden files or folders."""
        src = write_tree(tmp_path / "src", stacked(OLD))
        for name in ("config.json", "tokenizer.model", ".hidden", "model.safetensors.index.json"):
            (src / name).touch()
        (src / "eplb-digests-rank-0.npy").touch()
        (src / "folder").mkdir()
        assert open_shards(src).carried == ("config.json", "tokenizer.model")

    def test_files_are_known_again(self, tmp_path):
        """By size and time, so that a change while they are read is seen."""
        src = write_tree(tmp_path / "src", stacked(OLD))
        file = open_shards(src).files[0]
        status = file.path.stat()
        assert (file.nbytes, file.mtime_ns) == (status.st_size, status.st_mtime_ns)

    def test_a_layout_object(self, tmp_path):
        """As a worker gets it from its job file."""
        src = write_tree(tmp_path / "src", stacked(OLD))
        layout = next(layout for layout in presets() if layout.name == "sharded-state")
        assert open_shards(src, layout).layout is layout

    def test_names_of_any_bytes(self, tmp_path):
        """A file name need not be UTF-8 to be carried along."""
        src = write_tree(tmp_path / "src", stacked(OLD))
        name = os.fsdecode(b"vocab-\xff.txt")
        (src / name).touch()
        assert open_shards(src).carried == (name,)

    def test_thousands_of_ranks(self, tmp_path):
        """A rank number is a number, not a size."""
        src = write_tree(tmp_path / "src", stacked(OLD))
        (src / "model-rank-1-part-0.safetensors").rename(src / "model-rank-999999999-part-0.safetensors")
        with pytest.raises(CheckpointError, match="rank 999999999 and none of rank 1"):
            open_shards(src)

    def test_two_layouts_of_names(self, tmp_path):
        """EP205: the same tensor under both names of one rank."""
        src = write_tree(tmp_path / "src", stacked(OLD))
        write_tree(src, stacked(OLD), "model-pp-0-tp-{rank}-part-{part}.safetensors")
        with pytest.raises(CheckpointError) as caught:
            open_shards(src)
        assert caught.value.code == "EP205"


class TestBinding:
    def shards(self, tmp_path):
        return open_shards(write_tree(tmp_path / "src", stacked(OLD)))

    def test_layers_come_from_the_shards(self, tmp_path):
        """Where the placement has as many and does not number them."""
        shards = self.shards(tmp_path)
        bare = of({key: value for key, value in OLD.items() if key != "layer_ids"})
        numbered = with_layers(bare, shards)
        assert numbered.layer_ids is not None
        assert numbered.layer_ids.tolist() == [3, 4]
        assert with_layers(numbered, shards) is numbered

    @pytest.mark.parametrize(
        "content",
        [placement([[0, 1, 2, 3, 0, 1]], layer_ids=None), {**OLD, "layer_ids": [3, 7]}],
    )
    def test_layers_that_are_not_there(self, tmp_path, content):
        """EP212."""
        with pytest.raises(CheckpointError) as caught:
            bind(self.shards(tmp_path), of(content))
        assert caught.value.code == "EP212"

    def test_too_many_kinds_of_tensors(self, tmp_path):
        """EP209 before any array is made for them."""
        kind = Tensor("U8", (1 << 16, 0), b"")
        ranks = [{f"layers.3.mlp.experts.part_{number}": kind for number in range(3000)}]
        rows = placement([[0] * (1 << 16)], 1, layer_ids=[3])
        shards = open_shards(write_tree(tmp_path / "src", ranks))
        with pytest.raises(CheckpointError) as caught:
            bind(shards, of(rows))
        assert caught.value.code == "EP209"
        assert "3,000 expert tensors" in caught.value.message

    def test_every_hint_says_something(self, tmp_path):
        """Also those of errors that have none of their own."""
        shards = self.shards(tmp_path)
        for wrong in (
            {**OLD, "num_ranks": 3},
            {**OLD, "layer_ids": [3, 7]},
            {**OLD, "slots_per_rank": [2, 4]},
        ):
            with pytest.raises((CheckpointError, PlacementError)) as caught:
                bind(shards, of(wrong))
            assert caught.value.hint

    def test_a_rank_without_a_tensor_of_its_own(self, tmp_path):
        """A rank may have nothing at all, if it has no slots."""
        uneven = {**OLD, "slots_per_rank": [6, 0]}
        src = write_tree(tmp_path / "src", [stacked(uneven)[0], {}])
        checkpoint = bind(open_shards(src), of(uneven))
        assert "rank 1 lacks" in checkpoint.warnings[0]
        assert read_rows(checkpoint) == expected_rows(OLD, KINDS)
        write_shard(src / "model-rank-1-part-0.safetensors", {"x": tensor("U8", (3,), "")})
        assert len(bind(open_shards(src), of(uneven)).warnings) == 1
