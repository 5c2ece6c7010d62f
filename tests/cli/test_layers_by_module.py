"""A layer is a module and a number: no map of `model.layers.0` moves `mtp.layers.0`."""

from __future__ import annotations

import json
import struct

import pytest

from tests.cli.case import Case
from tests.cli.tree import Tensor, placement, read_tree, singles, slots_of_rank, stacked

OLD = placement([[0, 1, 2, 3, 0, 1], [3, 2, 1, 0, 2, 3]], layer_ids=[0, 1])
NEW = placement([[3, 0, 0, 1, 2, 2], [0, 1, 2, 3, 3, 1]], layer_ids=[0, 1])
NEW_3 = {**NEW, "num_ranks": 3}
NEW_8 = placement([[3, 0, 0, 1, 2, 2, 1, 1], [0, 1, 2, 3, 3, 1, 2, 2]], layer_ids=[0, 1])
MTP = "mtp.layers.0.mlp.experts"
SEED = 100
"""The layer that the bytes of MTP's rows follow from: they are those of no other layer."""

IN_ORDER = [0, 1, 2, 3, 0, 1, 2, 3]


def mtp(content, rows=IN_ORDER):
    """A placement of one layer, MTP's, with the ranks and slots of another one."""
    num_slots = len(content["physical_to_logical_map"][0])
    return {**content, "layer_ids": [SEED], "physical_to_logical_map": [rows[:num_slots]]}


def both(content, rows=IN_ORDER, prefix=MTP):
    """The shards of a placement, and an MTP layer beside."""
    beside = stacked(mtp(content, rows), prefix=prefix)
    return [{**first, **second} for first, second in zip(stacked(content), beside, strict=True)]


def ranks_of(tree):
    return list(read_tree(tree).values())


def decisions(tree):
    return json.loads((tree / "eplb.json").read_text())["decisions"]


def layers_of(tree):
    return json.loads((tree / "eplb.json").read_text())["placement"]["layer_ids"]


@pytest.fixture
def beside(case: Case) -> Case:
    """Qwen3-Next in small: the MTP layer is `mtp.layers.0`, beside `model.layers.0`."""
    case.write(both(OLD))
    case.old(OLD)
    case.new(NEW)
    return case


def test_it_stays_where_ranks_and_slots_do(beside):
    """With whatever is in its rows; not a byte of it follows the map of layer 0, and nothing is decided."""
    for count, rows in enumerate((IN_ORDER, [3, 3, 1, 2, 0, 0])):
        beside.write(both(OLD, rows))
        dst = beside.home / str(count)
        beside.reshard(dst=dst)
        assert ranks_of(dst) == both(NEW, rows)
        assert (decisions(dst), layers_of(dst)) == ({}, [0, 1])


@pytest.mark.parametrize("new", [NEW_3, NEW_8, {**NEW, "slots_per_rank": [4, 2]}])
def test_it_is_laid_out_in_order_where_they_change(beside, new):
    """Said in a warning and in eplb.json, which names it from then on; `verify` proves it."""
    beside.new(new)
    result = beside.reshard()
    assert ranks_of(beside.dst)[:2] == both(new)[:2]
    assert [at for key, at in ranks_of(beside.dst)[-1].items() if "mtp" in key] == [
        both(new)[-1][key] for key in ranks_of(beside.dst)[-1] if "mtp" in key
    ]
    said = " ".join(result.err.split())
    assert "warning: layer 2 (mtp.layers.0.mlp.experts): taken to have its experts in order" in said
    assert decisions(beside.dst) == {"layers_in_order": [2]}
    assert layers_of(beside.dst) == [0, 1, 2]


def test_relabelling_leaves_it_alone(beside):
    """An engine places MTP's experts in order: only layers that NEW names are relabelled."""
    beside.new({key: value for key, value in NEW_3.items() if key != "layer_ids"})
    file = beside.home / "relabelled.json"
    options = ("--relabel", "ranks", "--out-new", file, "--format", "json")
    result = beside.reshard(*options)
    new = json.loads(file.read_text())
    assert new["layer_ids"] == [0, 1]
    assert new["physical_to_logical_map"] != NEW_3["physical_to_logical_map"]
    for held, expected in zip(ranks_of(beside.dst), both(new), strict=True):
        assert {key: at for key, at in held.items() if "experts.w" in key} == {
            key: at for key, at in expected.items() if "experts.w" in key
        }
    # OLD names the MTP layer by now and NEW does not.
    again = beside.reshard(
        *options,
        "--dry-run",
        src=beside.dst,
        dst=beside.home / "again",
        old=None,
        new=beside.home / "new.json",
    )
    assert again.json["nothing_to_do"]
    assert result.json["relabelled"]["remote_rows_before"] > result.json["totals"]["remote_rows"]


def test_behind_the_layers_of_config_json(beside):
    """Dense layers count."""
    (beside.src / "config.json").write_text(json.dumps({"num_hidden_layers": 9}))
    beside.new(NEW_3)
    assert "layer 9 (mtp.layers.0.mlp.experts)" in " ".join(beside.reshard().err.split())
    assert layers_of(beside.dst) == [0, 1, 9]


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("new", [NEW_3, NEW_8, NEW])
def test_on_from_there(beside, named, new):
    """DST says where its MTP experts are; the next NEW need not name them, with layer_ids or without."""
    beside.new(NEW_8)
    beside.reshard()
    beside.new(new if named else {key: value for key, value in new.items() if key != "layer_ids"})
    again = beside.home / "again"
    beside.reshard("--copy", src=beside.dst, dst=again, old=None)
    expected = both(new)
    for rank, held in enumerate(ranks_of(again)):
        assert {key: held[key] for key in held if "experts" in key} == {
            key: at for key, at in expected[rank].items() if "experts" in key
        }


@pytest.mark.parametrize("new", [NEW_3, NEW_8, NEW])
def test_by_a_saved_plan(beside, new):
    """The plan follows from what was said, and so does what is decided."""
    beside.new(new)
    beside.reshard(dst=beside.home / "at once")
    plan = beside.home / "plan.json"
    said = (beside.home / "old.json", beside.home / "new.json", "--checkpoint", beside.src, "--out", plan)
    assert beside.eplb("plan", *said).code == 0
    result = beside.eplb("reshard", beside.src, beside.dst, "--plan", plan, "--backend", "file")
    assert result.code == 0, result.err
    assert ranks_of(beside.dst) == ranks_of(beside.home / "at once")
    assert decisions(beside.dst) == decisions(beside.home / "at once")


@pytest.mark.parametrize("new", [NEW_3, NEW_8])
def test_on_from_where_it_stayed(beside, new):
    """The manifest has digests of its whole tensors: it is laid out in order, and they are compared."""
    beside.reshard()
    beside.new(new)
    again = beside.home / "again"
    beside.reshard(src=beside.dst, dst=again, old=None)
    assert [at for key, at in ranks_of(again)[-1].items() if "mtp" in key] == [
        both(new)[-1][key] for key in ranks_of(again)[-1] if "mtp" in key
    ]
    assert beside.eplb("verify", again, "--against", beside.dst).code == 0
    file = beside.dst / "model-rank-1-part-0.safetensors"
    content = file.read_bytes()
    row = ranks_of(beside.dst)[1][f"{MTP}.w2_weight"].data
    at = content.index(row) + len(row) // 2
    file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    said = {"src": beside.dst, "dst": beside.home / "third", "old": None}
    beside.refuse("EP506", "mtp.layers.0.mlp.experts.w2_weight", exit_code=5, **said)


def test_it_stays_where_a_named_one_can(beside):
    """OLD names it, NEW does not, ranks and slots are the same: each row stays."""
    rows = [3, 3, 1, 2, 0, 0]
    beside.write(both(OLD, rows))
    first, second = OLD["physical_to_logical_map"]
    for tables, numbers in ([first, second, rows], [0, 1, 2]), ([rows, second, first], [2, 1, 0]):
        beside.old(placement(tables, layer_ids=numbers))
        dst = beside.home / str(numbers[0])
        beside.reshard(dst=dst)
        assert ranks_of(dst) == both(NEW, rows)


def test_it_moves_where_a_named_one_cannot_stay(beside):
    """OLD says what its rows are, so that they come in order; said."""
    rows = [3, 3, 1, 2, 0, 0]
    beside.write(both(OLD, rows))
    beside.old(placement([*OLD["physical_to_logical_map"], rows], layer_ids=[0, 1, 2]))
    beside.new(NEW_8)
    result = beside.reshard()
    assert ranks_of(beside.dst) == both(NEW_8)
    assert "NEW does not name it, and its experts are laid out in order" in " ".join(result.err.split())


def test_a_map_of_its_own(beside):
    """NEW names it by its number, and it follows that."""
    rows = [2, 3, 3, 1, 0, 0]
    beside.old(placement([*OLD["physical_to_logical_map"], IN_ORDER[:6]], layer_ids=[0, 1, 2]))
    beside.new(placement([*NEW["physical_to_logical_map"], rows], layer_ids=[0, 1, 2]))
    beside.reshard()
    assert ranks_of(beside.dst) == both(NEW, rows)


def test_experts_in_keys(case):
    """Where keys name experts nothing is taken for granted: they come in order, from where they are."""
    kinds = {"w1.weight": ("BF16", (2, 3)), "w2.weight": ("U8", (5,))}
    old = placement([[0, 1, 2, 3], [3, 2, 1, 0]], layer_ids=[0, 1])
    new = placement([[3, 2, 1, 0], [3, 2, 0, 1]], 4, layer_ids=[0, 1])

    def shards(content, rows):
        main = singles(content, kinds, "layers.{layer}.ffn.experts.{expert}.{tensor}")
        more = singles(mtp(content, rows), kinds, "mtp.0.ffn.experts.{expert}.{tensor}")
        return [{**first, **second} for first, second in zip(main, more, strict=True)]

    case.write(shards(old, [2, 0, 3, 1]), name="model{rank}-mp{world}.safetensors")
    case.old(old)
    case.new(new)
    result = case.reshard()
    assert "layer 2 (mtp.0.ffn.experts): laid out in order" in " ".join(result.err.split())
    expected = shards(new, IN_ORDER)
    for rank in range(4):
        held = read_tree(case.dst)[f"model{rank}-mp4.safetensors"]
        assert held.keys() == expected[rank].keys()
        assert all(held[key] == at for key, at in expected[rank].items())


def test_other_rows_than_old_has(beside):
    """EP219: it stays where it can, and is refused where nothing says how it would go on."""
    ranks = both(OLD)
    uneven = stacked(mtp({**OLD, "slots_per_rank": [4, 2]}), prefix=MTP)
    ranks = [{**tensors, **more} for tensors, more in zip(ranks, uneven, strict=True)]
    beside.write(ranks)
    beside.reshard()
    beside.new(NEW_3)
    beside.refuse("EP219", f"layer 2 ({MTP}) has 6 rows", dst=beside.home / "x")


def test_mtp_in_the_main_module(beside):
    """DeepSeek's `model.layers.61`, behind num_hidden_layers: treated alike, under its own number."""
    (beside.src / "config.json").write_text(json.dumps({"num_hidden_layers": 2}))
    prefix = "model.layers.2.mlp.experts"
    beside.write(both(OLD, prefix=prefix))
    beside.reshard()
    assert (ranks_of(beside.dst), decisions(beside.dst)) == (both(NEW, prefix=prefix), {})
    beside.new(NEW_8)
    result = beside.reshard(dst=beside.home / "more")
    assert ranks_of(beside.home / "more") == both(NEW_8, prefix=prefix)
    assert decisions(beside.home / "more") == {"layers_in_order": [2]}
    assert "layer 2: taken to have its experts in order" in " ".join(result.err.split())


def test_a_number_like_that_of_a_dense_layer(beside):
    """`mtp.layers.0` where layer 0 of the model is dense: OLD and NEW number the model's own."""
    old, new = ({**content, "layer_ids": [3, 4]} for content in (OLD, NEW))
    beside.write(
        [{**main, **more} for main, more in zip(stacked(old), stacked(mtp(OLD), prefix=MTP), strict=True)]
    )
    beside.old({key: value for key, value in old.items() if key != "layer_ids"})
    beside.new({key: value for key, value in new.items() if key != "layer_ids"})
    beside.reshard()
    assert layers_of(beside.dst) == [3, 4]
    assert [tensors[f"{MTP}.w2_weight"] for tensors in ranks_of(beside.dst)] == [
        tensors[f"{MTP}.w2_weight"] for tensors in stacked(mtp(OLD), prefix=MTP)
    ]
    beside.old({**old, "layer_ids": [0, 3]})
    beside.refuse("EP212", "layer 0 of the placement has no experts", dst=beside.home / "x")


def towers(content, rows, numbers=(0,)):
    """Thinker's layers under the placement, talker's under rows of its own."""
    ranks = stacked(content, prefix="thinker.model.layers.{layer}.mlp.experts")
    for number in numbers:
        more = stacked(mtp(content, rows), prefix=f"talker.model.layers.{number}.mlp.experts")
        ranks = [{**first, **second} for first, second in zip(ranks, more, strict=True)]
    return ranks


def test_two_towers(beside):
    """The one with more layers is the model; the other one stays."""
    beside.write(towers(OLD, IN_ORDER))
    beside.reshard()
    assert ranks_of(beside.dst) == towers(NEW, IN_ORDER)


def test_two_towers_of_equal_depth(beside):
    """EP212 names both; a layout file says which is meant, and DST remembers it."""
    beside.write(towers(OLD, IN_ORDER, (0, 1)))
    beside.refuse("EP212", "'talker.model.layers' and 'thinker.model.layers'", 'main = "MODULE"')
    layout = beside.home / "mine.toml"
    text = (
        'format = "eplb-layout/1"\nname = "towers"\nfiles = ["model-rank-{rank}-part-{part}.safetensors"]\n'
    )
    text += 'others = ["e_score_correction_bias"]\n'
    layout.write_text(f'{text}main = "thinker.model.layers"\n')
    beside.reshard("--layout", layout)
    assert ranks_of(beside.dst) == towers(NEW, IN_ORDER, (0, 1))
    beside.new(OLD)
    beside.reshard(src=beside.dst, dst=beside.home / "back", old=None)
    assert ranks_of(beside.home / "back") == towers(OLD, IN_ORDER, (0, 1))
    layout.write_text(f'{text}main = "thinker.layers"\n')
    beside.refuse(
        "EP212", "'thinker.layers', which has no experts", dst=beside.home / "x", options=("--layout", layout)
    )


def test_more_mtp_layers_than_others(case):
    """They are numbered in their order, and keep it from run to run."""
    old, new = placement([[0, 1, 2, 3]], layer_ids=[7]), placement([[3, 1, 2, 0]], layer_ids=[7])
    rows = {number: [[0, 1, 2, 3], [1, 0, 3, 2], [2, 3, 0, 1]][number % 3] for number in (0, 1, 2, 10)}

    def shards(content):
        ranks = stacked(content)
        for number, held in rows.items():
            one = {**content, "layer_ids": [SEED + number], "physical_to_logical_map": [held]}
            more = stacked(one, prefix=f"mtp.layers.{number}.mlp.experts")
            ranks = [{**first, **second} for first, second in zip(ranks, more, strict=True)]
        return ranks

    case.write(shards(old))
    case.old(old)
    case.new(new)
    case.reshard()
    assert ranks_of(case.dst) == shards(new)
    found = case.eplb("inspect", case.src, "--format", "json").json
    assert found["layers"] == [7, 8, 9, 10, 11]
    assert found["further_layers"] == {
        str(8 + at): f"{8 + at} (mtp.layers.{number}.mlp.experts)" for at, number in enumerate(rows)
    }


def test_a_map_inside_of_an_mtp_layer(beside):
    """VLLM's buffer says it of MTP's experts too: OLD is read of all layers, and NEW may leave MTP out."""
    old = placement([[2, 0, 3, 1], [0, 1, 2, 3]], layer_ids=[0, 1])
    rows = [3, 1, 0, 2]

    def shards(content, mtp_rows):
        ranks = both(content, mtp_rows)
        prefixes = ["model.layers.0.mlp.experts", "model.layers.1.mlp.experts", MTP]
        maps = dict(zip(prefixes, [*content["physical_to_logical_map"], mtp_rows], strict=True))
        for tensors, slots in zip(ranks, slots_of_rank(content), strict=True):
            for prefix, experts in maps.items():
                held = [experts[slot] for slot in slots]
                ids = [held.index(expert) if expert in held else -1 for expert in range(4)]
                tensors[f"{prefix}.expert_map"] = Tensor("I32", (4,), struct.pack("<4i", *ids))
        return ranks

    new = placement([[1, 0, 3, 2], [3, 0, 1, 2]], layer_ids=[0, 1])
    beside.write(shards(old, rows))
    for count, written in enumerate((new, {key: value for key, value in new.items() if key != "layer_ids"})):
        beside.new(written)
        dst = beside.home / str(count)
        beside.reshard(dst=dst, old=None)
        assert ranks_of(dst) == shards(new, rows)
    four = {**new, "num_ranks": 4}
    beside.new(four)
    beside.reshard(old=None)
    expected = shards(four, [0, 1, 2, 3])
    for rank, held in enumerate(ranks_of(beside.dst)):
        assert {key: held[key] for key in held if "experts." in key} == {
            key: at for key, at in expected[rank].items() if "experts." in key
        }
    beside.old(old)
    beside.refuse("EP215", f"({MTP})", dst=beside.home / "x")
