"""`inspect --identify` and `verify --against HF_DIR`: the placement told by the bytes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.case import assert_error
from tests.cli.test_shard import REPLICAS, THREE_RANKS, UNEVEN
from tests.cli.tree import Tensor, read_shard, read_tree, tensor, write_json, write_shard
from tests.support.huggingface import MOE_LAYERS, deepseek_v3, gpt_oss, write_checkpoint

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture
def home(eplb, tmp_path):
    """A checkpoint, and its shards without the file that says their placement."""
    write_checkpoint(tmp_path / "hf", deepseek_v3(), "deepseek_v3")

    def shard(content, engine="sglang"):
        write_json(tmp_path / "map.json", content)
        arguments = ["--placement", tmp_path / "map.json", "--engine", engine]
        result = eplb("shard", tmp_path / "hf", tmp_path / "dst", *arguments)
        assert result.code == 0, result.err
        (tmp_path / "dst" / "eplb.json").unlink()
        return tmp_path

    return shard


@pytest.mark.parametrize("engine", ["sglang", "huggingface"])
@pytest.mark.parametrize("content", [REPLICAS, THREE_RANKS, UNEVEN], ids=["replicas", "three", "uneven"])
def test_a_placement_that_nobody_saved(eplb, home, content, engine):
    """Every row is told by its bytes, replicas and empty slots included; the file is a placement."""
    found = home(content, engine) / "old.json"
    result = eplb("inspect", found.parent / "dst", "--identify", found.parent / "hf", "--out", found)
    assert result.code == 0, result.err
    said = json.loads(found.read_text())
    assert said["physical_to_logical_map"] == content["physical_to_logical_map"]
    assert said["layer_ids"] == list(MOE_LAYERS)
    new = write_json(found.parent / "new.json", THREE_RANKS)
    arguments = ["--old", found, "--new", new, "--backend", "file"]
    assert eplb("reshard", found.parent / "dst", found.parent / "again", *arguments).code == 0


@pytest.mark.parametrize("name", ["eplb-replicas", "uneven-ranks"])
def test_shards_that_vllm_wrote(eplb, tmp_path, name):
    """Real shards, and a checkpoint with the experts that they were made of."""
    old = json.loads((DATA / name / "old.json").read_text())
    tensors: dict[str, Tensor] = {}
    slots = old.get("slots_per_rank") or [10, 10]
    for rank, shard in enumerate(read_tree(DATA / name / "src").values()):
        first = sum(slots[:rank])
        for key, at in shard.items():
            if not key.endswith(("w13_weight", "w2_weight")):
                continue
            layer = int(key.split(".")[2])
            experts = old["physical_to_logical_map"][layer - 1][first : first + slots[rank]]
            rows, columns = at.shape[1:]
            nbytes = len(at.data) // at.shape[0]
            for number, expert in enumerate(experts):
                data = at.data[number * nbytes : (number + 1) * nbytes]
                base = f"model.layers.{layer}.mlp.experts.{expert}"
                if key.endswith("w2_weight"):
                    tensors[f"{base}.down_proj.weight"] = Tensor("BF16", (rows, columns), data)
                    continue
                half = nbytes // 2
                tensors[f"{base}.gate_proj.weight"] = Tensor("BF16", (rows // 2, columns), data[:half])
                tensors[f"{base}.up_proj.weight"] = Tensor("BF16", (rows // 2, columns), data[half:])
    write_checkpoint(tmp_path / "hf", tensors, "glm4_moe", 3)
    found = tmp_path / "old.json"
    result = eplb("inspect", DATA / name / "src", "--identify", tmp_path / "hf", "--out", found)
    assert result.code == 0, result.err
    assert json.loads(found.read_text())["physical_to_logical_map"] == old["physical_to_logical_map"]


def test_stacked_checkpoints(eplb, tmp_path):
    """gpt-oss, whose experts are rows of one tensor on both sides."""
    write_checkpoint(tmp_path / "hf", gpt_oss(), "gpt_oss")
    content = {**REPLICAS, "layer_ids": [0, 1]}
    write_json(tmp_path / "map.json", content)
    arguments = ["--placement", tmp_path / "map.json", "--engine", "huggingface"]
    assert eplb("shard", tmp_path / "hf", tmp_path / "dst", *arguments).code == 0
    result = eplb("verify", tmp_path / "dst", "--against", tmp_path / "hf")
    assert result.code == 0, result.err


def test_a_wrong_old_cannot_verify_green(eplb, home):
    """A reshard from the wrong OLD proves itself against SRC, but not against the checkpoint."""
    path = home(REPLICAS)
    wrong = {**REPLICAS, "physical_to_logical_map": [[0, 3, 3, 1, 2, 2], [0, 1, 2, 3, 3, 1]]}
    write_json(path / "wrong.json", wrong)
    new = write_json(path / "new.json", THREE_RANKS)
    arguments = ["--old", path / "wrong.json", "--new", new, "--backend", "file"]
    assert eplb("reshard", path / "dst", path / "again", *arguments).code == 0
    assert eplb("verify", path / "again", "--against", path / "dst").code == 0
    result = eplb("verify", path / "again", "--against", path / "hf")
    assert_error(result, "EP501", "layer 1, slot 0", "says expert 3", "those of expert 0", exit_code=5)
    assert "\n  | EP501: layer 1, slot " in result.err
    assert " differences in all\n" in result.err


def test_rows_that_are_nobodys(eplb, home):
    """A repacked or damaged row, another width, and a tensor that the checkpoint has not."""
    path = home(REPLICAS)
    shard = path / "dst" / "model-rank-1-part-0.safetensors"
    good = read_shard(shard)
    key = "model.layers.2.mlp.experts.w2_weight"
    bad = {**good, key: good[key]._replace(data=bytes([1]) * len(good[key].data))}
    write_shard(shard, bad)
    identify = ["inspect", path / "dst", "--identify", path / "hf"]
    assert_error(eplb(*identify), "EP227", "layer 2, slot 3 (rank 1): the row is none")
    for file in (path / "dst").glob("model-rank-*-part-0.safetensors"):
        tensors = read_shard(file)
        write_shard(file, {**tensors, key: tensor("F8_E4M3", (3, 2, 2), "narrow")})
    assert_error(eplb(*identify), "EP227", "layer 2: a row of", "has 4 bytes, and an expert 24")
    for file in (path / "dst").glob("model-rank-*-part-0.safetensors"):
        tensors = read_shard(file)
        for layer in MOE_LAYERS:
            tensors[f"model.layers.{layer}.mlp.experts.w2_bias"] = tensor("BF16", (3, 2), "bias")
        write_shard(file, tensors)
    assert_error(eplb(*identify), "EP227", "no tensors of", "w2_bias")


def test_layers_that_the_checkpoint_has_not(eplb, home):
    """Shards of another model."""
    path = home(REPLICAS)
    for file in (path / "dst").glob("model-rank-*-part-0.safetensors"):
        tensors = read_shard(file)
        write_shard(file, {key.replace("layers.2", "layers.7"): at for key, at in tensors.items()})
    assert_error(eplb("inspect", path / "dst", "--identify", path / "hf"), "EP227", "layer 7 has no experts")


def test_experts_with_the_same_bytes(eplb, home, tmp_path):
    """The first is taken, and that is said."""
    tensors = deepseek_v3()
    for key in [key for key in tensors if "layers.1.mlp.experts.2." in key]:
        tensors[key] = tensors[key.replace("experts.2.", "experts.1.")]
    for file in (tmp_path / "hf").glob("model*"):
        file.unlink()
    write_shard(tmp_path / "hf" / "model.safetensors", tensors)
    path = home(REPLICAS)
    result = eplb("inspect", path / "dst", "--identify", path / "hf", "--format", "json")
    assert result.code == 0, result.err
    assert result.json["warnings"] == ["layer 1: experts 1 and 2 have the same bytes"]


def test_an_output_that_exists(eplb, home):
    """It is not replaced."""
    path = home(REPLICAS)
    result = eplb("inspect", path / "dst", "--identify", path / "hf", "--out", path / "map.json")
    assert_error(result, "EP601", exit_code=6)
