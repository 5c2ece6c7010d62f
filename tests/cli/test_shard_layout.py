"""`--layout` of `shard` and `bake`: names whose shape does not say what an expert is."""

from __future__ import annotations

import pytest

from tests.cli.case import assert_error
from tests.cli.test_shard import assert_same
from tests.cli.tree import Rank, Tensor, placement, tensor, write_json
from tests.support.huggingface import write_checkpoint
from tests.support.published import read_rank

EXPERTS = 4
ROWS = [[3, 0, 0, 1, 2, 2], [0, 1, 2, 3, 3, 1]]
NEW = [[1, 2, 3, 0, 1, 2], [3, 3, 0, 1, 2, 0]]

GRANITE = """
format = "eplb-layout/1"
name = "granite"
files = ["model-{rank}.safetensors"]
experts = ["layers.{layer}.block_sparse_moe.{tensor}"]
tensors = ["input_linear.weight", "output_linear.weight"]
others = ["router.*"]
"""
BANK = """
format = "eplb-layout/1"
name = "bank"
files = ["model-{rank}.safetensors"]
experts = ["blocks.{layer}.bank.{NUMBER}.{tensor}"]
tensors = ["w1", "w1_scale"]
others = []

[scales]
w1_scale = "w1"
"""


def granite() -> Rank:
    """Stacked, as transformers has GraniteMoe: no component of a key says "experts"."""
    base = "model.layers.{}.block_sparse_moe.{}"
    kinds = {"input_linear.weight": (EXPERTS, 4, 3), "output_linear.weight": (EXPERTS, 3, 2)}
    kinds["router.layer.weight"] = (EXPERTS, 3)  # type: ignore[assignment]
    keys = {base.format(layer, name): shape for layer in range(2) for name, shape in kinds.items()}
    return {key: tensor("BF16", shape, key) for key, shape in keys.items()}


def bank() -> Rank:
    """Numbered, under a name of its own."""
    keys = [
        f"blocks.{layer}.bank.{expert}.{name}"
        for layer in range(2)
        for expert in range(EXPERTS)
        for name in ("w1", "w1_scale")
    ]
    return {key: tensor("F8_E4M3", (3, 2), key) for key in [*keys, "blocks.0.norm", "blocks.1.norm"]}


def granite_on(experts: list[list[int]]) -> Rank:
    """What a rank has that holds these experts of each layer."""
    return {
        key: at if "router" in key else rows_of(at, experts[int(key.split(".")[2])])
        for key, at in granite().items()
    }


def bank_on(experts: list[list[int]]) -> Rank:
    """Likewise, each under the number of its row."""
    source = bank()
    rows = {
        f"blocks.{layer}.bank.{row}.{name}": source[f"blocks.{layer}.bank.{expert}.{name}"]
        for layer, held in enumerate(experts)
        for row, expert in enumerate(held)
        for name in ("w1", "w1_scale")
    }
    return rows | {key: at for key, at in source.items() if key.endswith("norm")}


def rows_of(at: Tensor, experts: list[int]) -> Tensor:
    """Some rows of a tensor."""
    nbytes = len(at.data) // at.shape[0]
    data = b"".join(at.data[expert * nbytes : (expert + 1) * nbytes] for expert in experts)
    return Tensor(at.dtype, (len(experts), *at.shape[1:]), data)


@pytest.fixture(params=["granite", "expert", "row"])
def home(request, tmp_path):
    """A checkpoint, its layout file (whose numbers may be of rows, as for shards), and maps."""
    tensors, toml = (granite(), GRANITE) if request.param == "granite" else (bank(), BANK)
    write_checkpoint(tmp_path / "hf", tensors, "granitemoe", 1)
    (tmp_path / "own.toml").write_text(toml.replace("NUMBER", request.param))
    write_json(tmp_path / "map.json", placement(ROWS, layer_ids=[0, 1]))
    write_json(tmp_path / "new.json", placement(NEW, 3, layer_ids=[0, 1]))
    on_rank = granite_on if request.param == "granite" else bank_on
    return tmp_path, on_rank


def shard(eplb, path, *options, name="map.json"):
    arguments = ["--placement", path / name, "--engine", "huggingface"]
    return eplb("shard", path / "hf", path / "dst", *arguments, *options)


def test_the_hint_is_followed(eplb, home):
    """Without it there is no expert, and the hint says what to do; with it all goes there and back."""
    path, on_rank = home
    assert_error(shard(eplb, path), "EP224", "has no tensor of an expert", "--layout", "docs/layouts.md")
    result = shard(eplb, path, "--layout", path / "own.toml")
    assert result.code == 0, result.err
    moved = eplb("reshard", path / "dst", path / "moved", "--new", path / "new.json", "--backend", "file")
    assert moved.code == 0, moved.err
    for name, rows, num_ranks in (("dst", ROWS, 2), ("moved", NEW, 3)):
        size = len(rows[0]) // num_ranks
        for rank in range(num_ranks):
            expected = on_rank([row[size * rank : size * (rank + 1)] for row in rows])
            assert read_rank(path / name, rank) == expected
        result = eplb("verify", path / name, "--against", path / "hf")
        assert result.code == 0, result.err
        assert eplb("merge", path / name, path / f"merged-{name}").code == 0
        assert_same(path / "hf", path / f"merged-{name}")


def test_a_layout_that_is_none(eplb, home):
    """As everywhere."""
    path, _ = home
    assert_error(shard(eplb, path, "--layout", path / "none.toml"), "EP206", "neither a layout nor a file")
    assert not (path / "dst").exists()


def test_experts_that_only_a_layout_file_knows_have_no_known_router(eplb, tmp_path):
    """`bake` reads the file too, and refuses what it finds there."""
    key = "model.layers.0.bank.{}.up_proj.weight"
    tensors = {key.format(number): tensor("BF16", (2, 2), str(number)) for number in range(EXPERTS)}
    tensors["model.layers.0.mlp.gate.weight"] = tensor("BF16", (EXPERTS, 2), "gate")
    write_checkpoint(tmp_path / "hf", tensors, "qwen3_moe")
    toml = BANK.replace("blocks", "layers").replace("NUMBER", "expert").partition("[scales]")[0]
    (tmp_path / "own.toml").write_text(toml.replace('"w1", "w1_scale"', '"up_proj.weight"'))
    arguments = [tmp_path / "hf", tmp_path / "out", "--placement", "linear", "--num-ranks", 2]
    assert_error(eplb("bake", *arguments), "EP224", "has no tensor of an expert", "--layout")
    result = eplb("bake", *arguments, "--layout", tmp_path / "own.toml")
    assert_error(result, "EP226", "'model.layers.0.bank.0.up_proj.weight' is of experts with another router")
    assert not (tmp_path / "out").exists()
