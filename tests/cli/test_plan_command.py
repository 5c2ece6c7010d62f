"""`eplb plan`: what would move, from two placements alone or with shards beside them."""

from __future__ import annotations

import pytest

from tests.cli.case import assert_error
from tests.cli.tree import NEW, OLD, placement, stacked, tensor, write_json, write_tree

OPTIONS = ("--format", "json")


@pytest.fixture
def old(tmp_path):
    return write_json(tmp_path / "old.json", OLD)


@pytest.fixture
def new(tmp_path):
    return write_json(tmp_path / "new.json", NEW)


def test_without_sizes(eplb, old, new):
    """Rows are counted, bytes are null; exactly the keys of the design."""
    found = eplb("plan", old, new, *OPTIONS).json
    assert list(found) == ["format", "totals", "ranks", "traffic"]
    assert found["totals"]["remote_bytes"] is None
    assert found["totals"]["remote_rows"] == sum(entry[3] for entry in found["traffic"]) > 0
    assert all(entry[2] is None for entry in found["traffic"])


def test_with_the_bytes_of_an_expert(eplb, old, new):
    """Every row is so many bytes; what a tree has besides stays unknown."""
    found = eplb("plan", old, new, "--expert-bytes", "1KiB", *OPTIONS).json
    assert found["totals"]["remote_bytes"] == 1024 * found["totals"]["remote_rows"]
    assert found["totals"]["cross_node_bytes"] == 0
    assert found["totals"]["output_bytes"] is None
    found = eplb("plan", old, new, "--expert-bytes", "1KiB", "--ranks-per-node", 1, *OPTIONS).json
    assert found["totals"]["cross_node_bytes"] == found["totals"]["remote_bytes"]


def test_the_largest_sizes_do_not_overflow(eplb, tmp_path):
    """1 TiB for each expert of the largest models is a number like any other."""
    rows = [[(slot + layer) % 64 for slot in range(64)] for layer in range(10)]
    big = write_json(tmp_path / "big.json", placement(rows, 64, layer_ids=None))
    found = eplb("plan", "linear", big, "--expert-bytes", "1024GiB", *OPTIONS).json
    rows_of = found["totals"]
    assert rows_of["remote_bytes"] == rows_of["remote_rows"] << 40


def test_a_model_with_its_quantization_beside_it(eplb, tmp_path):
    """hf_quant_config.json says how large an expert is, or that nobody knows; never what was before it."""
    config = {
        "model_type": "deepseek_v3", "num_hidden_layers": 4, "first_k_dense_replace": 1,
        "n_routed_experts": 4, "hidden_size": 64, "moe_intermediate_size": 32, "torch_dtype": "bfloat16",
        "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    }  # fmt: skip
    write_json(tmp_path / "config.json", config)
    new = write_json(tmp_path / "new.json", placement([[3, 2, 1, 0]] * 3, 2, layer_ids=[1, 2, 3]))
    plan = ("plan", "linear", new, "--model", tmp_path, *OPTIONS)
    found = eplb(*plan).json["totals"]
    assert found["remote_bytes"] == found["remote_rows"] * 3 * (64 * 32 + 4)
    write_json(tmp_path / "hf_quant_config.json", {"quantization": {"quant_algo": "NVFP4", "group_size": 16}})
    found = eplb(*plan).json["totals"]
    assert found["remote_bytes"] == found["remote_rows"] * 3 * (64 * 32 // 2 + 64 * 32 // 16 + 8)
    write_json(tmp_path / "hf_quant_config.json", {"quantization": {"quant_algo": "MIXED_PRECISION"}})
    assert eplb(*plan).json["totals"]["remote_bytes"] is None
    write_json(tmp_path / "config.json", {**config, "num_experts": 8})
    assert_error(eplb(*plan), "EP118", "n_routed_experts and num_experts say different numbers")


def test_with_shards(eplb, old, new, tmp_path):
    """Sizes of everything, and what looks sharded, before any data is read."""
    ranks = stacked(OLD)
    ranks[0]["lm_head.weight"], ranks[1]["lm_head.weight"] = tensor("U8", (3,), ""), tensor("U8", (2,), "")
    src = write_tree(tmp_path / "src", ranks)
    result = eplb("plan", old, new, "--checkpoint", src, *OPTIONS)
    assert result.json["totals"]["output_bytes"] > 0
    assert "'lm_head.weight'" in result.err
    three = write_json(tmp_path / "three.json", {**NEW, "num_ranks": 3})
    assert_error(eplb("plan", old, three, "--checkpoint", src), "EP213", "lm_head.weight")


def test_named_maps(eplb, new):
    """They take experts, layers and ranks from the other side, or from options."""
    assert eplb("plan", "linear", "round_robin", "--num-ranks", 4, "--num-logical-experts", 8).code == 0
    assert eplb("plan", "linear", new, "--num-redundant-experts", 2, *OPTIONS).code == 0
    assert_error(eplb("plan", "linear", "round_robin", "--num-ranks", 4), "EP114", "--num-logical-experts")
    assert_error(eplb("plan", "linear", "round_robin", "--num-logical-experts", 4), "EP114", "--num-ranks")


def test_placements_without_ranks(eplb, tmp_path):
    """--old-num-ranks and --num-ranks say them."""
    bare = {"format": OLD["format"], "num_logical_experts": 4}
    old = write_json(tmp_path / "old.json", {**bare, "physical_to_logical_map": [[0, 1, 2, 3]]})
    new = write_json(tmp_path / "new.json", {**bare, "physical_to_logical_map": [[3, 2, 1, 0, 1, 1]]})
    assert_error(eplb("plan", old, new), "EP103", "old.json")
    found = eplb("plan", old, new, "--old-num-ranks", 4, "--ep-size", 2, *OPTIONS).json
    assert len(found["ranks"]) == 4


def test_a_guess_is_a_warning(eplb, tmp_path):
    """EP111 on stderr: without any source E is the largest id + 1."""
    rows = {"format": OLD["format"], "num_ranks": 2, "physical_to_logical_map": [[0, 1, 2, 3]]}
    file = write_json(tmp_path / "p.json", rows)
    result = eplb("plan", file, file, *OPTIONS)
    assert result.code == 0
    assert "warning" in result.err
    assert "taken to be 4" in result.err


def test_dry_run_changes_nothing(eplb, old, new):
    """A plan is one anyway."""
    assert eplb("plan", old, new, "--dry-run").out == eplb("plan", old, new).out
