"""SRC as several hosts see it: one checkpoint, whoever has its files, or an error that says who has what."""

from __future__ import annotations

import json
import os
import shutil
import zlib

import numpy as np
import pytest

from eplb_cli.checkpoint.packed import MAX_NBYTES, pack
from eplb_cli.checkpoint.pooled import Pool, pool, provide
from eplb_cli.checkpoint.seen import Seen, look
from eplb_cli.checkpoint.shards import open_pool, open_shards
from eplb_cli.errors import CheckpointError, UsageError
from eplb_cli.output.prepared import prepare
from eplb_cli.placements.own_format import placement_from_json
from tests.cli.tree import NEW, OLD, placement, stacked, tensor, write_tree
from tests.support.seen_by_hosts import by_rank, pooled, split

FOUR = placement([[0, 1, 2, 3, 0, 1, 2, 3], [3, 2, 1, 0, 2, 3, 0, 1]], 4)


def tree_of(path, content=OLD, parts=1):
    """A tree with numbers of ranks, and with files beside the shards."""
    ranks = stacked(content)
    for rank, tensors in enumerate(ranks):
        tensors["model.layers.3.mlp.experts.w13_input_scale"] = tensor("F32", (), f"{rank}")
    src = write_tree(path, ranks, parts=parts)
    (src / "config.json").write_text(json.dumps({"num_experts": 4, "num_hidden_layers": 5}))
    (src / "tokenizer.model").write_bytes(bytes(range(256)) * 9)
    return src


def facts(shards):
    """All that a plan may follow from."""
    return (
        [
            (file.path.name, file.name, file.header.digest, file.nbytes, file.mtime_ns)
            for file in shards.files
        ],
        [dict(tensors) for tensors in shards.tensors],
        shards.carried,
        {name: shards.beside(name).read(1 << 20) for name in shards.carried},
        shards.layout,
        None if shards.config is None else shards.config.values,
    )


def digest_of(shards, old=OLD, new=NEW):
    before, after = (placement_from_json(side, "it") for side in (old, new))
    return prepare(shards, before, after, "balanced", None, frozenset(), "max").digest


@pytest.mark.parametrize(
    "ranks", [{0: [0], 1: [1]}, {1: [0, 1]}, {0: [0, 1], 1: [0, 1]}, {0: [1], 1: [0, 1]}, {2: [0], 0: [1]}]
)
def test_hosts_see_what_one_host_sees(tmp_path, ranks):
    """Whoever has the files, each host has the same checkpoint, and makes the same plan of it."""
    src = tree_of(tmp_path / "src", parts=2)
    names = by_rank(src, ranks, 3)
    beside = ["config.json", "tokenizer.model"]
    names[min(ranks)] += beside
    whole = open_shards(src)
    for found in pooled(split(src, tmp_path, names)):
        shards = open_pool(Pool.from_bytes(found.to_bytes()))
        assert facts(shards) == facts(whole)
        assert digest_of(shards) == digest_of(whole)
        having = [tuple(node for node in range(3) if file.path.name in names[node]) for file in shards.files]
        assert list(shards.nodes) == having
        assert shards.is_here.tolist() == [shards.node in nodes for nodes in having]


def test_one_host_has_no_others(tmp_path):
    """Its files are on no host but it."""
    shards = open_shards(tree_of(tmp_path / "src"))
    assert (shards.nodes, shards.node, shards.is_here.tolist()) == (((), ()), 0, [True, True])


def test_what_is_nowhere_is_nothing(tmp_path):
    """A host need not have SRC."""
    seen = look(tmp_path / "absent")
    assert (seen.shards, dict(seen.beside)) == ((), {})


def test_a_host_may_have_no_shard(tmp_path):
    """What lies in its SRC is of the checkpoint nevertheless: a config.json is as good there as elsewhere."""
    src = tree_of(tmp_path / "src")
    names = [["config.json", "tokenizer.model"], *by_rank(src, {0: [0, 1]}, 1)]
    for found in pooled(split(src, tmp_path, names)):
        assert facts(open_pool(found)) == facts(open_shards(src))


def test_what_is_there_is_read(tmp_path):
    """A link, or a directory that is none, is an error as it is where there is one host alone."""
    src = tree_of(tmp_path / "src")
    (src / "model-rank-9-part-0.safetensors").symlink_to(src / "config.json")
    for path, code in ((src, "EP204"), (src / "config.json", "EP201")):
        with pytest.raises(CheckpointError) as caught:
            look(path)
        assert caught.value.code == code


def test_presharded_is_for_one_host(tmp_path):
    """SGLang's own form is refused by its name."""
    for name in ("checksum.json", "model-00000-common.safetensor"):
        (tmp_path / name).touch()
    with pytest.raises(UsageError, match="presharded") as caught:
        look(tmp_path)
    assert caught.value.code == "EP001"


def test_a_copy_is_doubtful_and_a_shared_file_is_not(tmp_path):
    """The same inode is one file; the same size and header are a copy, whose bytes nobody has compared."""
    src = tree_of(tmp_path / "src")
    names = by_rank(src, {0: [0, 1], 1: [0, 1]}, 2)
    shared = pooled(split(src, tmp_path / "shared", names))
    copies = pooled(split(src, tmp_path / "copies", names, copied=True))
    assert [found.doubtful for found in shared] == [(), ()]
    assert [[shard.copies for shard in found.doubtful] for found in copies] == [[(0, 1), (0, 1)]] * 2


def test_the_first_host_says_the_time_of_copies(tmp_path):
    """A plan is about one time; each host compares its own when it opens the file again."""
    src = tree_of(tmp_path / "src")
    paths = split(src, tmp_path, by_rank(src, {0: [0, 1], 1: [1]}, 2), copied=True)
    os.utime(paths[1] / "model-rank-1-part-0.safetensors", ns=(5, 5))
    here, there = (open_pool(found).files[1] for found in pooled(paths))
    assert here.mtime_ns == there.mtime_ns == here.stamp.mtime_ns
    assert there.stamp.mtime_ns == 5


@pytest.mark.parametrize("what", ["size", "header", "content"])
def test_two_files_of_one_name(tmp_path, what):
    """They are refused, with the file and both hosts."""
    src = tree_of(tmp_path / "src")
    paths = split(src, tmp_path, by_rank(src, {0: [0], 2: [0, 1]}, 3), copied=True)
    name = "config.json" if what == "content" else "model-rank-0-part-0.safetensors"
    for path in (paths[0], paths[2]):
        shutil.copy(src / name, path / name)
    content = (paths[2] / name).read_bytes()
    changed = {
        "size": content + b" ",
        "header": content.replace(b"w2_weight", b"w4_weight"),
        "content": content.replace(b"4", b"8"),
    }
    (paths[2] / name).write_bytes(changed[what])
    with pytest.raises(CheckpointError) as caught:
        pooled(paths)
    assert caught.value.code == "EP237"
    for word in (name, "host 0 (node-0)", "host 2 (node-2)", what):
        assert word in caught.value.message


def test_a_rank_that_nobody_has(tmp_path):
    """It is named, and so are the hosts that were asked, and where they looked."""
    src = tree_of(tmp_path / "src", FOUR)
    paths = split(src, tmp_path, by_rank(src, {0: [0], 1: [3, 1]}, 2))
    with pytest.raises(CheckpointError) as caught:
        open_pool(pooled(paths)[0])
    assert caught.value.code == "EP202"
    for word in ("none of rank 2", f"host 0 (node-0) in {paths[0]}", f"host 1 (node-1) in {paths[1]}"):
        assert word in caught.value.message


def test_nobody_has_anything(tmp_path):
    """SRC is on no host."""
    with pytest.raises(CheckpointError, match=r"asked: host 0 \(node-0\)") as caught:
        open_pool(pooled([tmp_path / "a", tmp_path / "b"])[1])
    assert caught.value.code == "EP201"


def test_only_what_is_small_is_known_of_a_file_elsewhere(tmp_path):
    """Numbers of ranks can be read; rows cannot, and the error says so."""
    src = tree_of(tmp_path / "src")
    shards = open_pool(pooled(split(src, tmp_path, by_rank(src, {0: [0], 1: [1]}, 2)))[0])
    at = shards.tensors[1]["model.layers.3.mlp.experts.w13_input_scale"]
    assert shards.read(at.file, at.offset, 4) == tensor("F32", (), "1").data
    row = shards.tensors[1]["model.layers.3.mlp.experts.w13_weight"]
    with pytest.raises(CheckpointError, match="another host") as caught:
        shards.read(row.file, row.offset, 4)
    assert caught.value.code == "EP201"


def test_maps_inside_are_known_everywhere(tmp_path):
    """What vLLM keeps beside experts says OLD, also of ranks that are on another host."""
    key = "model.layers.{}.mlp.experts.expert_map"
    ranks = stacked(OLD)
    for slots, tensors in zip((range(3), range(3, 6)), ranks, strict=True):
        for number, row in zip((3, 4), OLD["physical_to_logical_map"], strict=True):
            table = np.full(4, -1, np.int32)
            table[[row[slot] for slot in slots]] = range(3)
            tensors[key.format(number)] = tensor("I32", (4,), "x")._replace(data=table.tobytes())
    src = write_tree(tmp_path / "src", ranks)
    found = pooled(split(src, tmp_path, by_rank(src, {0: [0], 1: [1]}, 2)))
    assert {digest_of(open_pool(each)) for each in found} == {digest_of(open_shards(src))}


def refused(reason):
    return CheckpointError("EP237", reason)


class TestHostile:
    """What a host says is from another machine."""

    @pytest.fixture
    def seen(self, tmp_path):
        return look(tree_of(tmp_path / "src"))

    def test_cut_or_changed(self, seen):
        """Whatever is cut off or changed is refused, or says another thing that can be."""
        content = seen.to_bytes()
        for end in range(0, len(content), 7):
            with pytest.raises(CheckpointError, match="host 1"):
                Seen.from_bytes(content[:end], "host 1")
        rng = np.random.default_rng(0)
        for _ in range(300):
            changed = bytearray(content)
            changed[rng.integers(len(content))] ^= 1 << rng.integers(8)
            found = self.code_of(seen, bytes(changed))
            assert found in {"", "EP237", "EP203"}

    def code_of(self, seen, content):
        """The code of what is wrong with it, nothing where it can be used."""
        try:
            pool(seen.path, [Seen.from_bytes(content)], 0, ["a"])
        except CheckpointError as error:
            return error.code
        return ""

    def test_no_room_is_made_for_what_is_only_said(self):
        """A length that is too large, or that a bomb of zeros has, is refused before it is there."""
        for nbytes in (MAX_NBYTES + 1, 1 << 63, 9):
            content = nbytes.to_bytes(8, "little") + zlib.compress(bytes(1 << 20))
            with pytest.raises(CheckpointError) as caught:
                Seen.from_bytes(content)
            assert caught.value.code == "EP237"

    @pytest.mark.parametrize(
        "change",
        [
            {"path": 5},
            {"shards": "model-rank-0-part-0.safetensors"},
            {"shards": ["../model-rank-0-part-0.safetensors", "model-rank-1-part-0.safetensors"]},
            {"shards": ["model-rank-0-part-0.safetensors"] * 2},
            {"shards": ["model-rank-0-part-0.safetensors"]},
            {"beside": []},
            {"beside": {"a/b": [1, "0" * 32]}},
            {"beside": {"a": [-1, "0" * 32]}},
            {"beside": {"a": [True, "0" * 32]}},
            {"beside": {"a": [1, "g" * 32]}},
            {"beside": {"a": [1]}},
            {"beside": {"a": None}},
            {"more": 1},
        ],
    )
    def test_values_that_cannot_be(self, seen, change):
        """Each key is looked at."""
        index = {"path": "/src", "shards": [shard.name for shard in seen.shards], "beside": {}, **change}
        stats = np.array([shard[1:] for shard in seen.shards], np.uint64).tobytes()
        with pytest.raises(CheckpointError) as caught:
            Seen.from_bytes(pack(index, [stats, *seen.headers], refused))
        assert caught.value.code == "EP237"

    @pytest.mark.parametrize("column", [0, 5])
    def test_numbers_that_cannot_be(self, seen, column):
        """A size below 0, or a header that is not there."""
        index = {"path": "/src", "shards": [shard.name for shard in seen.shards], "beside": {}}
        stats = np.array([shard[1:] for shard in seen.shards], np.int64)
        stats[0, column] = -1
        with pytest.raises(CheckpointError) as caught:
            Seen.from_bytes(pack(index, [stats.tobytes(), *seen.headers], refused))
        assert caught.value.code == "EP237"

    def test_other_contents_than_were_seen(self, tmp_path):
        """A host that tells of other files, or of another content, is refused by its name."""
        src = tree_of(tmp_path / "src")
        paths = split(
            src,
            tmp_path,
            [["model-rank-0-part-0.safetensors", "config.json"], ["model-rank-1-part-0.safetensors"]],
        )
        seens = [look(path) for path in paths]
        first, second = (pool(path, seens, node, "ab") for node, path in enumerate(paths))
        good = [provide(first), provide(second)]
        second.with_contents(good)
        names = ["config.json", "model-rank-0-part-0.safetensors"]
        wrong: list[tuple[list[str], list[bytes]]] = [
            (names, [b"{}", bytes(8)]),
            (["config.json"], [b"{}"]),
            ([], [b""]),
            (names, [b"{}"]),
        ]
        for told, parts in wrong:
            with pytest.raises(CheckpointError) as caught:
                second.with_contents([pack(told, parts, refused), good[1]])
            assert caught.value.code in {"EP237", "EP220"}
            assert "host 0 (a)" in caught.value.message
