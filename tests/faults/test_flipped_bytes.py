"""A flipped byte is found: anywhere in DST by `verify`, and in SRC by `reshard` where it has a manifest."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest

from tests.cli.case import assert_error
from tests.cli.tree import placement

FLIPS = 8
"""Places tried in each region of each file, the first and the last byte among them."""


@pytest.fixture
def tree(case):
    """A tree that eplb wrote, with an empty slot on each rank, and a layer that no placement names."""
    case.old(placement([[0, 1, 2, 3, 0, 1]]))
    case.new(placement([[3, 0, -1, 1, 2, -1]]))
    case.reshard()
    (case.home / "back.json").write_text((case.home / "old.json").read_text())
    return case.dst


def regions(file: Path) -> dict[str, range]:
    """The parts of a shard, by what they are; any other file is one part."""
    content = file.read_bytes()
    if file.suffix != ".safetensors":
        return {file.suffix: range(len(content))}
    end = 8 + int.from_bytes(content[:8], "little")
    text = len(content[8:end].rstrip())
    found = {"length": range(8), "header": range(8, 8 + text), "padding": range(8 + text, end)}
    for name, said in json.loads(content[8:end]).items():
        if name != "__metadata__" and said["data_offsets"][0] < said["data_offsets"][1]:
            found[name] = range(end + said["data_offsets"][0], end + said["data_offsets"][1])
    return found


def places(tree: Path, seed: int):
    """(file, region, offset, what is changed) of a sample of all bytes of a tree."""
    rng = Random(seed)
    for file in sorted(tree.iterdir()):
        for region, offsets in regions(file).items():
            sample = {offsets[0], offsets[-1], *rng.choices(offsets, k=FLIPS - 2)}
            yield from ((file, region, offset, rng.randrange(1, 256)) for offset in sorted(sample))


def flipped(file: Path, offset: int, change: int):
    content = bytearray(file.read_bytes())
    content[offset] ^= change
    file.write_bytes(content)


def test_every_byte_of_a_shard_is_in_a_region(tree):
    """So that the sample is one of all bytes."""
    for file in tree.glob("*.safetensors"):
        offsets = [offset for region in regions(file).values() for offset in region]
        assert sorted(offsets) == list(range(file.stat().st_size))


def test_in_dst(eplb, tree, count):
    """EP501 to EP505 with the file, and exit code 5."""
    tried, kinds = 0, set()
    for file, region, offset, change in places(tree, 1):
        good = file.read_bytes()
        flipped(file, offset, change)
        result = eplb("verify", tree)
        assert result.code == 5, (file.name, region, offset, change, result.err)
        assert str(file) in result.err
        file.write_bytes(good)
        tried += 1
        kinds.add(region.split(".")[-1])
    assert eplb("verify", tree).code == 0
    assert {"length", "header", "padding", "npy", "json", "w13_weight", "weight"} <= kinds
    count("flipped bytes in DST, all found by verify", tried)
    assert tried > 200


def test_in_src_with_a_manifest(case, tree, count):
    """EP506 before DST is there: rows, empty ones, other tensors, and all that headers say."""
    tried, back = 0, case.home / "back"
    for file, region, offset, change in places(tree, 2):
        if file.suffix != ".safetensors":
            continue
        good = file.read_bytes()
        flipped(file, offset, change)
        arguments = case.arguments(src=tree, dst=back, old=None, new=case.home / "back.json")
        result = case.eplb(*arguments)
        assert not back.exists(), (file.name, region, offset, change)
        if region in {"length", "header", "padding"}:
            assert result.code in {3, 5}, result.err
            assert "error[EP203]" in result.err or "error[EP506]" in result.err
        else:
            assert_error(result, "EP506", exit_code=5)
        file.write_bytes(good)
        tried += 1
    count("flipped bytes in SRC with a manifest, all found by reshard", tried)
    assert tried > 200
    case.reshard(src=tree, dst=back, old=None, new=case.home / "back.json")


def test_a_digest_file_of_src_that_is_gone(case, tree):
    """EP214: without it nothing would say what the rows were."""
    (tree / "eplb-digests-rank-1.npy").unlink()
    back = {"src": tree, "dst": case.home / "back", "old": None, "new": case.home / "back.json"}
    case.refuse("EP214", "eplb-digests-rank-1.npy is missing", **back)


def test_a_shard_of_src_that_is_gone_or_new(case, tree):
    """EP506, for a part that no number says was there."""
    extra = tree / "model-rank-1-part-1.safetensors"
    back = {"src": tree, "dst": case.home / "back", "old": None, "new": case.home / "back.json"}
    extra.write_bytes((2).to_bytes(8, "little") + b"{}")
    case.refuse("EP506", extra.name, exit_code=5, **back)
