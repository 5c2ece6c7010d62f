"""Other tensors that all ranks have alike: one file under several names, and nothing else changes."""

from __future__ import annotations

import os

import pytest

from eplb_cli import files
from tests.cli.tree import NEW, OLD, Tensor, placement, read_tree, singles, stacked, tensor, write_tree

BIG = "model.embed_tokens.weight"
THREE = placement([[3, 0, 1, 2, 2, 0], [0, 1, 2, 3, 3, 1]], num_ranks=3)


def big_ranks(content, seeds=("all", "all")):
    """Ranks with 1.5 MiB of another tensor, whose bytes follow from a rank's seed."""
    ranks = stacked(content)
    for rank, seed in zip(ranks, seeds, strict=True):
        rank[BIG] = tensor("BF16", (768, 1024), f"big {seed}")
    return ranks


@pytest.fixture
def case(case):
    """The usual case, with a large tensor that both ranks have alike."""
    case.write(big_ranks(OLD))
    return case


def inodes(path):
    """The inode of each shard."""
    return {file.name: file.stat().st_ino for file in path.glob("*.safetensors")}


def require_tensors(case, dst, content, seeds=("all", "all")):
    """DST holds what it has to."""
    expected = big_ranks(content, seeds)
    assert read_tree(dst) == {f"model-rank-{rank}": tensors for rank, tensors in enumerate(expected)}


def test_one_file_with_two_names(case):
    """It is written once, read by every rank under a name of its own, and counted."""
    found = case.reshard("--format", "json").json
    require_tensors(case, case.dst, NEW)
    own, shared = (f"model-rank-{{}}-part-{part}.safetensors" for part in (0, 1))
    numbers = inodes(case.dst)
    assert numbers[shared.format(0)] == numbers[shared.format(1)]
    assert len(set(numbers.values())) == 3
    size = (case.dst / shared.format(1)).stat().st_size
    assert found["linked_bytes"] == size > 3 << 19
    assert found["totals"]["output_bytes"] == 2 * size + 2 * (case.dst / own.format(0)).stat().st_size


def test_copied_where_it_cannot_be_linked(case, monkeypatch):
    """On a file system without hard links every rank has a file of its own, with the same bytes."""
    case.reshard()

    def refuse(path, name):
        del path, name
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    found = case.reshard("--format", "json", dst=case.home / "copied").json
    assert found["linked_bytes"] == 0
    assert len(set(inodes(case.home / "copied").values())) == 4
    for file in case.dst.glob("*.safetensors"):
        assert (case.home / "copied" / file.name).read_bytes() == file.read_bytes()


def test_a_copy_that_differs(case, monkeypatch):
    """Exit 5 and EP504 where a file that could not be linked does not come back as it was written."""
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError(1, "no")))
    original = files.write_from

    def spoil(descriptor, buffer, offset, path):
        spoils = path.name == "model-rank-1-part-1.safetensors" and offset
        original(descriptor, memoryview(bytes(len(buffer))) if spoils else buffer, offset, path)

    monkeypatch.setattr(files, "write_from", spoil)
    case.refuse("EP504", "model-rank-1-part-1.safetensors differs", exit_code=5)


@pytest.mark.parametrize("position", [0, 5000, 768 * 1024 - 3, 2 * 768 * 1024 - 1])
def test_one_byte_apart(case, position):
    """Each rank keeps its own where a single byte differs, wherever it is; a change of R is refused."""
    ranks = big_ranks(OLD)
    dtype, shape, data = ranks[1][BIG]
    changed = bytearray(data)
    changed[position] ^= 1
    ranks[1][BIG] = Tensor(dtype, shape, bytes(changed))
    case.write(ranks)
    case.reshard()
    assert read_tree(case.dst)["model-rank-1"][BIG].data == bytes(changed)
    assert read_tree(case.dst)["model-rank-0"][BIG].data == data
    case.new(THREE)
    case.refuse("EP213", BIG, dst=case.home / "three")


def test_ranks_that_come_and_go(case):
    """With another R the new ranks have it too, and back; without digests as well."""
    case.new(THREE)
    case.reshard()
    require_tensors(case, case.dst, THREE, ["all"] * 3)
    assert len({number for name, number in inodes(case.dst).items() if "part-1" in name}) == 1
    two = placement(NEW["physical_to_logical_map"])
    case.new(two)
    case.reshard("--no-digest", src=case.dst, dst=case.home / "two", old=None)
    require_tensors(case, case.home / "two", two)


def test_what_is_known_is_not_read_again(case, monkeypatch):
    """From a tree that eplb wrote, the shared tensor is read by one rank only, once and to be read back."""
    case.reshard()
    case.new(OLD)
    read = []
    original = files.read_into

    def counted(descriptor, buffer, offset, path):
        read.append((str(path), len(buffer)))
        original(descriptor, buffer, offset, path)

    monkeypatch.setattr(files, "read_into", counted)
    result = case.eplb(*case.arguments(src=case.dst, dst=case.home / "back", old=None))
    assert result.code == 0, result.err
    assert sum(size for name, size in read if "rank-1-part-1" in name) < 1 << 19
    assert sum(size for name, size in read if "rank-0-part-1" in name) < 2 * (7 << 18)


def test_small_tensors_are_not_worth_a_file(case):
    """Below 1 MiB a rank every rank has all of it in its own files."""
    case.write(stacked(OLD))
    case.reshard()
    assert len(inodes(case.dst)) == 2


def test_one_name_for_each_rank(case):
    """A layout with one file a rank has nothing to share, and with the same R compares nothing."""
    source = case.home / "deepseek"
    kinds = {"w1.weight": ("BF16", (2,)), "w2.weight": ("BF16", (2,)), "w3.weight": ("BF16", (2,))}
    ranks = singles(placement([[0, 1], [1, 0]]), kinds, "layers.{layer}.ffn.experts.{expert}.{tensor}")
    for rank in ranks:
        rank["embed.weight"] = tensor("BF16", (768, 1024), "big")
    write_tree(source, ranks, name="model{rank}-mp{world}.safetensors")
    case.old(placement([[0, 1], [1, 0]]))
    case.new(placement([[1, 0], [1, 0]]))
    found = case.reshard("--format", "json", src=source).json
    assert found["linked_bytes"] == 0
    assert len(inodes(case.dst)) == 2


def test_damage_is_found_under_every_name(case):
    """`verify` reads a file with several names once, and names a byte in it that changed."""
    case.reshard()
    path = case.dst / "model-rank-1-part-1.safetensors"
    with path.open("r+b") as file:
        file.seek(-9, os.SEEK_END)
        byte = file.read(1)
        file.seek(-9, os.SEEK_END)
        file.write(bytes([byte[0] ^ 4]))
    result = case.eplb("verify", case.dst)
    assert result.code == 5
    assert "error[EP504]" in result.err
