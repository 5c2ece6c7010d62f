"""The files of an output: names, order, parts and places, before a byte is written."""

from __future__ import annotations

import json

import numpy as np
import pytest

from eplb_cli.checkpoint.sharded import bind
from eplb_cli.checkpoint.shards import open_shards
from eplb_cli.errors import CheckpointError
from eplb_cli.formats.safetensors_header import DATA_ALIGNMENT, parse_header
from eplb_cli.output.prepared import bind_and_plan
from eplb_cli.output.tree import plan_output, source_rank
from eplb_cli.placements.own_format import placement_from_json
from eplb_cli.plan.hosting import Hosting
from tests.cli.tree import NEW, OLD, others, placement, singles, stacked, write_shard, write_tree

LARGE = {"w13_weight": ("BF16", (2, 2048)), "w2_weight": ("U8", (4096,)), "w2_weight_scale": ("F32", (3,))}


def planned(tmp_path, new, ranks=None, name="model-rank-{rank}-part-{part}.safetensors", old=OLD):
    """The output for `new`, and its checkpoint."""
    src = write_tree(tmp_path / "src", stacked(OLD) if ranks is None else ranks, name)
    checkpoint = bind(open_shards(src), placement_from_json(old, "old"))
    return plan_output(checkpoint, placement_from_json(new, "new")), checkpoint


def headers_of(tree):
    """The header of each file, parsed as a file of its size would be."""
    return {
        file.name: parse_header(file.header[8:], file.nbytes - len(file.header), file.name)
        for file in tree.files
    }


def test_every_file_is_whole_before_it_is_written(tmp_path):
    """Header and size fit each other; data starts on a page."""
    tree, _ = planned(tmp_path, NEW)
    for header in headers_of(tree).values():
        assert header.data_start % DATA_ALIGNMENT == 0
    assert tree.nbytes == sum(file.nbytes for file in tree.files)
    assert tree.other_nbytes == 2 * sum(len(tensor.data) for tensor in others().values())


def test_large_aligned_tensors_come_first(tmp_path):
    """What is a multiple of a page stays aligned for every row; then by size, then by name."""
    tree, _ = planned(tmp_path, NEW, stacked(OLD, LARGE))
    header = headers_of(tree)["model-rank-0-part-0.safetensors"]
    names = [name.removeprefix("model.layers.") for name in header.tensors]
    assert names[:4] == [
        "3.mlp.experts.w13_weight",
        "4.mlp.experts.w13_weight",
        "3.mlp.experts.w2_weight",
        "4.mlp.experts.w2_weight",
    ]
    begins = [header.data_start + header.tensors[f"model.layers.{name}"].begin for name in names[:4]]
    assert all(begin % DATA_ALIGNMENT == 0 for begin in begins)


def test_places_do_not_overlap(tmp_path):
    """Rows and other tensors fill the data of every file without a hole."""
    new = {**NEW, "slots_per_rank": [4, 2]}
    tree, checkpoint = planned(tmp_path, new)
    spans: dict[int, list[tuple[int, int]]] = {number: [] for number in range(len(tree.files))}
    for layer, kind, slot in np.argwhere(tree.extents.file >= 0).tolist():
        begin = int(tree.extents.offset[layer, kind, slot])
        nbytes = int(checkpoint.row_nbytes[layer, kind])
        spans[int(tree.extents.file[layer, kind, slot])].append((begin, begin + nbytes))
    for copy in tree.others:
        spans[copy.dst_file].append((copy.dst_offset, copy.dst_offset + copy.source.entry.nbytes))
    for number, found in spans.items():
        ends = [len(tree.files[number].header), *sorted(end for _, end in found)]
        assert sorted(begin for begin, _ in found) == ends[:-1]
        assert ends[-1] == tree.files[number].nbytes


def test_metadata_names_rank_and_placement(tmp_path):
    """What SRC said stays, but for what eplb wrote there before."""
    src = write_tree(tmp_path / "src", stacked(OLD))
    for rank, tensors in enumerate(stacked(OLD)):
        metadata = {"format": "pt", "eplb.rank": "9", "eplb.other": "x"}
        write_shard(src / f"model-rank-{rank}-part-0.safetensors", tensors, metadata)
    new = placement_from_json(NEW, "new")
    tree = plan_output(bind(open_shards(src), placement_from_json(OLD, "old")), new)
    assert headers_of(tree)["model-rank-1-part-0.safetensors"].metadata == {
        "format": "pt",
        "eplb.rank": "1",
        "eplb.placement_digest": new.digest,
    }


def test_new_ranks_have_the_other_tensors_of_old_ones(tmp_path):
    """Rank r of those that came later takes from r modulo R."""
    assert [source_rank(rank, 2) for rank in range(5)] == [0, 1, 0, 1, 0]
    tree, _ = planned(tmp_path, {**NEW, "num_ranks": 3})
    assert {(copy.src_rank, copy.dst_rank) for copy in tree.others} == {(0, 0), (1, 1), (0, 2)}


TWO_HOSTS = Hosting(np.array([1, 0]), np.array([0, 0, 1, 1]), np.array([0, 1]))
"""Old rank 0 is on host 1, and old rank 1 on host 0."""


def test_other_tensors_come_from_the_host_they_go_to(tmp_path):
    """Where R changes ranks have them alike; files are those of one host, whoever is near."""
    new = placement_from_json({**NEW, "num_ranks": 4, "slots_per_rank": [2, 2, 1, 1]}, "new")
    alone, checkpoint = planned(tmp_path, {**NEW, "num_ranks": 4, "slots_per_rank": [2, 2, 1, 1]})
    tree = plan_output(checkpoint, new, hosts=TWO_HOSTS)
    assert {(copy.src_rank, copy.dst_rank) for copy in tree.others} == {(1, 0), (1, 1), (0, 2), (0, 3)}
    assert all(copy.source is checkpoint.others[copy.src_rank][copy.key] for copy in tree.others)
    assert tree.files == alone.files


def test_other_tensors_of_a_rank_stay_its_own(tmp_path):
    """With the same R only what is known to be alike may come from a rank that is nearer."""
    _, checkpoint = planned(tmp_path, NEW)
    hosts = Hosting(np.array([1, 0]), np.array([0, 1]), np.array([0, 1]))
    new, key = placement_from_json(NEW, "new"), min(others())
    tree = plan_output(checkpoint, new, frozenset([key]), hosts)
    assert {(copy.src_rank, copy.dst_rank) for copy in tree.others if copy.key == key} == {(1, 0), (0, 1)}
    assert {(copy.src_rank, copy.dst_rank) for copy in tree.others if copy.key != key} == {(0, 0), (1, 1)}


def test_what_is_shared_is_written_once_a_host(tmp_path):
    """The first rank of each writes it, with the header that one host would have."""
    new = {**NEW, "num_ranks": 4, "slots_per_rank": [2, 2, 1, 1]}
    alone, checkpoint = planned(tmp_path, new)
    placed, shared = placement_from_json(new, "new"), frozenset(others())
    alone = plan_output(checkpoint, placed, shared)
    tree = plan_output(checkpoint, placed, shared, TWO_HOSTS)
    assert [file.same_as for file in alone.files] == [None, None, None, 1, None, 1, None, 1]
    assert [file.same_as for file in tree.files] == [None, None, None, 1, None, None, None, 5]
    assert [(file.name, file.header) for file in tree.files] == [
        (file.name, file.header) for file in alone.files
    ]
    assert {copy.dst_file for copy in tree.others} == {1, 5}


def test_a_part_is_as_large_as_it_may_be(tmp_path, monkeypatch):
    """One tensor that is larger has a part of its own."""
    monkeypatch.setattr("eplb_cli.output.tree.MAX_PART_NBYTES", 10_000)
    tree, _ = planned(tmp_path, NEW, stacked(OLD, LARGE))
    for header in headers_of(tree).values():
        sizes = [tensor.nbytes for tensor in header.tensors.values()]
        assert sum(sizes) <= 10_000 or len(sizes) == 1
    assert [file.name for file in tree.files if file.rank == 0] == [
        f"model-rank-0-part-{part}.safetensors" for part in range(5)
    ]


def test_a_name_without_a_part(tmp_path, monkeypatch):
    """One file for each rank, however large: a second one would have the same name."""
    monkeypatch.setattr("eplb_cli.output.tree.MAX_PART_NBYTES", 10)
    old, new = placement([[0, 1, 2, 3]]), placement([[3, 2, 1, 0]], 4)
    kinds = {"w1.weight": ("BF16", (20, 3)), "w2.weight": ("BF16", (30, 2))}
    ranks = singles(old, kinds, "layers.{layer}.ffn.experts.{expert}.{tensor}")
    tree, _ = planned(tmp_path, new, ranks, "model{rank}-mp{world}.safetensors", old)
    assert [file.name for file in tree.files] == [f"model{rank}-mp4.safetensors" for rank in range(4)]
    headers_of(tree)


def test_a_rank_without_a_tensor_has_a_file(tmp_path):
    """So that nobody takes it for missing."""
    old = {**placement([[0, 1, 2, 3]]), "num_ranks": 2}
    kinds = {"w1.weight": ("BF16", (2,)), "w2.weight": ("BF16", (2,))}
    ranks = [
        {key: at for key, at in rank.items() if "experts" in key}
        for rank in singles(old, kinds, "layers.{layer}.ffn.experts.{expert}.{tensor}")
    ]
    new = {**old, "slots_per_rank": [4, 0]}
    tree, _ = planned(tmp_path, new, ranks, "model{rank}-mp{world}.safetensors", old)
    assert [file.name for file in tree.files] == ["model0-mp2.safetensors", "model1-mp2.safetensors"]
    assert headers_of(tree)["model1-mp2.safetensors"].tensors == {}


@pytest.mark.parametrize("new", [placement([[0, 1, 2, 3]]), placement([[0, 1, 2, 3, 0, 1]], 3)])
def test_what_cannot_follow(tmp_path, new):
    """EP219: MoE layers of the main module that no placement names, to other slots or ranks."""
    shards = open_shards(write_tree(tmp_path / "src", stacked({**OLD, "layer_ids": [3, 9]})))
    old = placement_from_json(placement([[0, 1, 2, 3, 0, 1]]), "old")
    with pytest.raises(CheckpointError, match="layer 9 has experts") as caught:
        bind_and_plan(shards, old, placement_from_json(new, "new"), "balanced", None)
    assert caught.value.code == "EP219"


def test_sharded_others(tmp_path):
    """EP213 by shapes where R changes, nothing where it does not."""
    ranks = stacked(OLD)
    ranks[1]["model.norm.weight"] = ranks[1]["model.norm.weight"]._replace(shape=(1, 3))
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight"):
        planned(tmp_path, {**NEW, "num_ranks": 3}, ranks)
    tree, _ = planned(tmp_path, NEW, ranks)
    assert len(tree.files) == 2
    assert json.loads(tree.files[1].header[8:])["model.norm.weight"]["shape"] == [1, 3]
