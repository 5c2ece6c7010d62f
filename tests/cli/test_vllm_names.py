"""What vLLM itself saved of a small model of each family is what `shard --engine vllm` writes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.cli.case import assert_error
from tests.cli.test_shard import assert_same
from tests.cli.tree import read_tree, tensor, write_json, write_shard

SAVED = json.loads((Path(__file__).parents[1] / "data" / "vllm-names.json").read_text())
"""By family: a config, the tensors of Hugging Face, those of vLLM's rank 1 of 2, and what each is made of."""

NUM_EXPERTS = 8
CONVERTED = "A_log"
"""vLLM keeps it as F32, and its loader converts what it reads."""


def numbered(template: str, numbers: range) -> list[str]:
    """A template for each expert, or once where it is of none."""
    return [template.replace("{expert}", str(n)) for n in (numbers if "{expert}" in template else (0,))]


@pytest.fixture
def written(tmp_path, request):
    """The checkpoint's tensors, with other bytes each."""
    said = SAVED[request.param]
    tensors = {
        key: tensor(dtype, tuple(shape), key)
        for template, (dtype, *shape) in said["huggingface"].items()
        for key in numbered(template, range(NUM_EXPERTS))
    }
    (tmp_path / "hf").mkdir()
    write_shard(tmp_path / "hf" / "model.safetensors", tensors, {"format": "pt"})
    write_json(tmp_path / "hf" / "config.json", said["config"])
    return said, tensors, tmp_path


@pytest.mark.parametrize("written", SAVED, indirect=True)
def test_the_shards_are_those_that_vllm_saved(eplb, written):
    """Names, dtypes, shapes, and which bytes: found by value in vLLM's, where no two tensors were alike."""
    said, tensors, home = written
    arguments = ["--placement", "linear", "--num-ranks", 2, "--engine", "vllm"]
    result = eplb("shard", home / "hf", home / "dst", *arguments)
    assert result.code == 0, result.err
    found = read_tree(home / "dst")["model-rank-1"]
    assert found.keys() == said["vllm"].keys()
    for key, (dtype, *shape) in said["vllm"].items():
        assert found[key].shape == tuple(shape)
        assert found[key].dtype == dtype or key.endswith(CONVERTED)
        layer = re.match(r"model\.layers\.\d+", key)
        parts = said["made of"][key.removeprefix(layer[0]) if layer else key]
        if not shape:
            assert [found[key].dtype, found[key].data.hex()] == parts
            continue
        sources = [(layer[0] if layer and part.startswith(".") else "") + part for part in parts]
        experts = range(NUM_EXPERTS // 2, NUM_EXPERTS) if "{expert}" in parts[0] else range(1)
        data = [tensors[part.replace("{expert}", str(n))].data for n in experts for part in sources]
        assert found[key].data == b"".join(data)
    assert eplb("merge", home / "dst", home / "merged").code == 0
    assert_same(home / "hf", home / "merged")


@pytest.mark.parametrize("written", ["qwen3_moe"], indirect=True)
def test_scales_that_were_not_derived_are_refused(eplb, written):
    """VLLM wants more tensors then than are here: a scale of the key-value cache, for one."""
    _, tensors, home = written
    more = {"model.layers.0.self_attn.q_proj.weight_scale_inv": tensor("F32", (1, 1), "scale")}
    write_shard(home / "hf" / "model.safetensors", {**tensors, **more}, {"format": "pt"})
    arguments = ["--placement", "linear", "--num-ranks", 2, "--engine", "vllm"]
    assert_error(eplb("shard", home / "hf", home / "dst", *arguments), "EP224", "weight_scale_inv")


@pytest.mark.parametrize("written", ["deepseek_v3"], indirect=True)
def test_a_query_that_is_not_compressed_is_refused(eplb, written):
    """In DeepSeek-V2-Lite kv_a_proj_with_mqa stands alone, and half of a tensor is not guessed at."""
    _, tensors, home = written
    rest = {key: at for key, at in tensors.items() if ".q_a_" not in key}
    write_shard(home / "hf" / "model.safetensors", rest, {"format": "pt"})
    arguments = ["--placement", "linear", "--num-ranks", 2, "--engine", "vllm"]
    assert_error(eplb("shard", home / "hf", home / "dst", *arguments), "EP224", "fused_qkv_a_proj")


@pytest.mark.parametrize("family", ["gpt_oss", "ernie4_5_moe", "dots1"])
def test_families_that_were_not_derived_are_refused(eplb, tmp_path, family):
    """Each with the reason in docs/huggingface.md."""
    key = "model.layers.0.mlp.experts.0.up_proj.weight"
    write_shard(tmp_path / "model.safetensors", {key: tensor("F32", (2, 2), key)})
    write_json(tmp_path / "config.json", {"model_type": family})
    arguments = ["--placement", "linear", "--num-ranks", 1, "--engine", "vllm"]
    assert_error(eplb("shard", tmp_path, tmp_path.with_name("dst"), *arguments), "EP224", family)
