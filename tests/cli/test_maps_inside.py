"""vLLM's `expert_map` inside the shards: it says OLD, has to agree with OLD, and is written anew for NEW."""

from __future__ import annotations

import json
import struct

import pytest

from eplb_cli import files
from tests.cli.case import assert_error
from tests.cli.tree import (
    NEW,
    OLD,
    Tensor,
    placement,
    read_shard,
    read_tree,
    slots_of_rank,
    stacked,
    write_shard,
)

PLAIN = placement([[2, 0, 3, 1], [0, 1, 2, 3]])
OTHER = placement([[1, 0, 3, 2], [3, 0, 1, 2]])
KEY = "model.layers.{}.mlp.experts.expert_map"
LAYOUT = """
format = "eplb-layout/1"
name = "mine"
files = ["model-rank-{rank}-part-{part}.safetensors"]
experts = ["layers.{layer}.mlp.experts.{tensor}"]
tensors = ["w13_weight", "w2_weight", "w13_weight_scale_inv", "w2_weight_scale_inv"]
"""


def map_of(held, num_ids, code="i"):
    """The bytes of a rank's map: by id the row, or -1; of two rows of an id the first."""
    rows = [held.index(number) if number in held else -1 for number in range(num_ids)]
    return struct.pack(f"<{num_ids}{code}", *rows)


def with_maps(content, *, by_slot=False, dtype="I32", key=KEY, layers=None):
    """The shards of a placement, with a map of each layer on each rank."""
    ranks = stacked(content)
    for tensors, slots in zip(ranks, slots_of_rank(content), strict=True):
        for layer, experts in zip(content["layer_ids"], content["physical_to_logical_map"], strict=True):
            held = list(slots) if by_slot else [experts[slot] for slot in slots]
            size = len(experts) if by_slot else content["num_logical_experts"]
            data = map_of(held, size, {"I32": "i", "I64": "q"}[dtype])
            if layers is None or layer in layers:
                tensors[key.format(layer)] = Tensor(dtype, (size,), data)
    return ranks


def as_ranks(ranks):
    return {f"model-rank-{rank}": tensors for rank, tensors in enumerate(ranks)}


def change_map(case, rank, data, shape=(4,), dtype="I32"):
    file = case.file(rank)
    write_shard(file, {**read_shard(file), KEY.format(3): Tensor(dtype, shape, data)})


@pytest.fixture
def mapped(case):
    """Shards of PLAIN with maps, and no --old said."""
    case.write(with_maps(PLAIN))
    case.old(PLAIN)
    case.new(OTHER)
    return case


@pytest.mark.parametrize("dtype", ["I32", "I64"])
def test_they_say_old_and_then_new(mapped, dtype):
    """Without --old; the maps of DST are those of NEW, of the same dtype."""
    mapped.write(with_maps(PLAIN, dtype=dtype))
    mapped.reshard(old=None)
    assert read_tree(mapped.dst) == as_ranks(with_maps(OTHER, dtype=dtype))


@pytest.mark.parametrize("name", ["_expert_map", "routed_experts.expert_map"])
def test_other_names(mapped, name):
    """A private buffer, and that of a module inside; the weights are where they were."""
    key = KEY.replace("expert_map", name)
    mapped.write(with_maps(PLAIN, key=key))
    mapped.reshard(old=None)
    assert read_tree(mapped.dst) == as_ranks(with_maps(OTHER, key=key))


def test_there_and_back(mapped):
    """DST says itself what it is, twice: in eplb.json, and in its maps."""
    mapped.reshard(old=None)
    mapped.new(PLAIN)
    back = mapped.home / "back"
    mapped.reshard(src=mapped.dst, dst=back, old=None)
    assert read_tree(back) == as_ranks(with_maps(PLAIN))
    (mapped.dst / "eplb.json").unlink()
    mapped.reshard(src=mapped.dst, dst=mapped.home / "again", old=None)
    assert read_tree(mapped.home / "again") == as_ranks(with_maps(PLAIN))


def test_another_old_is_refused(mapped):
    """EP215 with the layer, the slot and both experts, whatever names OLD."""
    mapped.reshard(dst=mapped.home / "fine")
    mapped.refuse("EP215", "layer 3: OLD has expert 0 in slot 0", "the map inside the shards 2", old="linear")
    mapped.old({**PLAIN, "physical_to_logical_map": [[2, 0, 3, 1], [0, 1, 3, 2]]})
    mapped.refuse("EP215", "layer 4: OLD has expert 3 in slot 2", "the shards 2")


def test_another_old_in_a_plan_is_refused(mapped):
    """EP215 also where the plan was made without the shards."""
    plan = mapped.home / "plan"
    old, new = mapped.old(OTHER), mapped.home / "new.json"
    mapped.new(PLAIN)
    assert mapped.eplb("plan", old, new, "--out", plan).code == 0
    result = mapped.eplb("reshard", mapped.src, mapped.dst, "--plan", plan, "--backend", "file")
    assert_error(result, "EP215", "layer 3: OLD has expert 1 in slot 0")
    assert not mapped.dst.exists()


def test_another_manifest_is_refused(mapped):
    """EP215 for an eplb.json that says another placement than the maps beside it."""
    mapped.write(stacked(OTHER))
    mapped.old(OTHER)
    mapped.new(OTHER)
    mapped.reshard("--copy")
    for rank, tensors in enumerate(with_maps(PLAIN)):
        known = {key: at for key, at in tensors.items() if key.endswith("expert_map")}
        file = mapped.dst / mapped.file(rank).name
        write_shard(file, {**read_shard(file), **known})
    result = mapped.eplb("reshard", mapped.dst, mapped.home / "x", "--new", mapped.home / "new.json")
    assert_error(result, "EP506", exit_code=5)  # its headers are not those that it was written with


def test_more_ranks(mapped):
    """A new rank has a map of its own, of as many experts."""
    new = placement(OTHER["physical_to_logical_map"], 4)
    mapped.new(new)
    mapped.reshard(old=None)
    found = read_tree(mapped.dst)
    for rank, tensors in as_ranks(with_maps(new)).items():
        assert {key: found[rank][key] for key in tensors} == tensors


def test_replicas(mapped):
    """The map of a layer with redundant experts is by slot, as vLLM's is; it says nothing of the experts."""
    new = placement([[2, 0, 3, 1, 1, 0], [0, 1, 2, 3, 3, 3]])
    mapped.new(new)
    mapped.reshard(old=None)
    assert read_tree(mapped.dst) == as_ranks(with_maps(new, by_slot=True))
    mapped.new(OTHER)
    mapped.reshard(src=mapped.dst, dst=mapped.home / "back", old=None)
    assert read_tree(mapped.home / "back") == as_ranks(with_maps(OTHER))


def test_replicas_in_src(case):
    """By slot they cannot say OLD (EP216), and do not contradict it, with and without config.json."""
    case.write(with_maps(OLD, by_slot=True))
    case.reshard()
    assert read_tree(case.dst) == as_ranks(with_maps(NEW, by_slot=True))
    (case.src / "config.json").write_text(json.dumps({"num_experts": 4}))
    case.reshard(dst=case.home / "other")
    assert read_tree(case.home / "other") == as_ranks(with_maps(NEW, by_slot=True))
    case.refuse("EP216", old=None, dst=case.home / "none")


def test_slots_of_other_ranks(case):
    """EP215 for a map by slot that gives a rank the slots of another one."""
    swapped = {
        **OLD,
        "physical_to_logical_map": [[3, 4, 5, 0, 1, 2], [0, 1, 2, 3, 4, 5]],
        "num_logical_experts": 6,
    }
    maps = with_maps(swapped)
    ranks = stacked(OLD)
    for tensors, mapped in zip(ranks, maps, strict=True):
        tensors |= {key: at for key, at in mapped.items() if key.endswith("expert_map")}
    case.write(ranks)
    case.refuse("EP215", "give slots to other ranks")


def test_gloo(mapped):
    """Workers write the maps of their own ranks."""
    pytest.importorskip("torch")
    how = ["--new", mapped.home / "new.json", "--backend", "gloo", "--nproc-per-node", "2"]
    result = mapped.eplb("reshard", mapped.src, mapped.dst, *how)
    assert result.code == 0, result.err
    assert read_tree(mapped.dst) == as_ranks(with_maps(OTHER))
    assert mapped.eplb("verify", mapped.dst, "--against", mapped.src).code == 0


def test_resume(mapped, monkeypatch):
    """What an ended run has left is gone on with; the maps are those of NEW all the same."""

    def attempt(name, call, *args):
        if name == "rename" and args[1] == mapped.dst:
            raise OSError(16, "busy")
        return call(*args)

    with monkeypatch.context() as patch:
        patch.setattr(files, "attempt", attempt)
        assert mapped.eplb(*mapped.arguments(old=None)).code == 6
    mapped.reshard("--resume", old=None)
    assert read_tree(mapped.dst) == as_ranks(with_maps(OTHER))


@pytest.mark.parametrize(
    ("data", "shape", "dtype", "says"),
    [
        (struct.pack("<4i", 0, -1, 0, -1), (4,), "I32", "does not give each of its 2 rows one id"),
        (struct.pack("<4i", 0, -1, -1, -1), (4,), "I32", "does not give each of its 2 rows one id"),
        (struct.pack("<4i", 0, 1, 2, -1), (4,), "I32", "does not give each of its 2 rows one id"),
        (struct.pack("<4i", 0, -1, 7, -1), (4,), "I32", "does not give each of its 2 rows one id"),
        (struct.pack("<4i", 0, -2, 1, -1), (4,), "I32", "does not give each of its 2 rows one id"),
        (struct.pack("<5i", 1, -1, 0, -1, -1), (5,), "I32", "of several lengths"),
        (struct.pack("<4i", 1, -1, 0, -1), (2, 2), "I32", "no list of rows"),
        (struct.pack("<4f", 1, -1, 0, -1), (4,), "F32", "no list of rows"),
        (b"", (0,), "I32", "no list of rows"),
    ],
)  # fmt: skip
def test_a_damaged_map(mapped, data, shape, dtype, says):
    """EP215, whether it is to say OLD or to agree with it."""
    change_map(mapped, 0, data, shape, dtype)
    mapped.refuse("EP215", KEY.format(3) if "lengths" not in says else str(mapped.src), says, old=None)
    mapped.refuse("EP215", says)


def test_an_expert_on_two_ranks(mapped):
    """EP215 where the maps of two ranks claim one expert and nobody has another."""
    change_map(mapped, 1, struct.pack("<4i", 0, -1, 1, -1))
    result = mapped.eplb(*mapped.arguments(old=None))
    assert result.code == 3, result.err
    mapped.refuse("EP215", "layer 3")


def test_a_rank_without_its_map(mapped):
    """EP215 names the rank."""
    file = mapped.file(1)
    write_shard(file, {key: at for key, at in read_shard(file).items() if key != KEY.format(3)})
    mapped.refuse("EP215", KEY.format(3), "missing on rank 1", old=None)


def test_a_map_of_no_layer(mapped):
    """EP215: nothing would write it anew."""
    for rank in (0, 1):
        file = mapped.file(rank)
        held = read_shard(file)
        write_shard(file, {**held, KEY.format(9): held[KEY.format(3)]})
    mapped.refuse("EP215", KEY.format(9), "has none")


def test_a_layout_file_that_takes_a_map_for_another_tensor(mapped):
    """EP206: it would go on saying OLD. The remedy works: the same file with `maps`."""
    layout = mapped.home / "mine.toml"
    bias = '"e_score_correction_bias"'
    layout.write_text(f'{LAYOUT}\nothers = [{bias}, "expert_map"]\n')
    options = ("--layout", layout)
    mapped.refuse(
        "EP206", "'expert_map' says which experts a rank has", 'maps = ["expert_map"]', options=options
    )
    layout.write_text(f'{LAYOUT}\nothers = [{bias}]\nmaps = ["expert_map"]\n')
    mapped.refuse("EP215", options=options, old="linear")
    mapped.reshard(*options, old=None)
    assert read_tree(mapped.dst) == as_ranks(with_maps(OTHER))


def test_layers_without_a_map(mapped):
    """Only those with one say OLD; of the others it has to be said."""
    mapped.write(with_maps(PLAIN, layers=[3]))
    mapped.reshard()
    assert read_tree(mapped.dst) == as_ranks(with_maps(OTHER, layers=[3]))


def test_what_inspect_and_dry_runs_say(mapped):
    """A dry run refuses what the run would."""
    mapped.refuse("EP215", old="linear", options=("--dry-run",))
    assert mapped.eplb("inspect", mapped.src).code == 0
    assert mapped.eplb(*mapped.arguments("--dry-run", old=None)).code == 0
