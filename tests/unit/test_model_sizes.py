"""How large an expert is, as config.json and hf_quant_config.json say it: what is unknown is unknown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eplb_cli.errors import PlacementError
from eplb_cli.models.preset import find_model

H, I = 7168, 2048  # noqa: E741 - as papers call them
V3: dict[str, Any] = {
    "model_type": "deepseek_v3",
    "num_hidden_layers": 4,
    "first_k_dense_replace": 1,
    "n_routed_experts": 8,
    "hidden_size": H,
    "moe_intermediate_size": I,
    "torch_dtype": "bfloat16",
}
FP8 = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}
NVFP4 = {"quant_algo": "NVFP4", "group_size": 16, "exclude_modules": ["*self_attn*", "lm_head", "*router*"]}
INT4 = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "ignore": ["re:.*mlp\\.(gate|up|gate_up|down)_proj.*"],
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "group_size": 32}}},
}

WEIGHTS = 3 * H * I
OF_BF16, OF_FP8 = 2 * WEIGHTS, WEIGHTS + 3 * 4 * 16 * 56
OF_NVFP4 = WEIGHTS // 2 + WEIGHTS // 16 + 3 * 8
OF_MXFP4 = WEIGHTS // 2 + WEIGHTS // 32


def nbytes(path: Path, config: dict[str, Any], quantized: object = None) -> int | None:
    """Bytes of an expert, from these files in one directory."""
    (path / "config.json").write_text(json.dumps(config))
    if quantized is not None:
        (path / "hf_quant_config.json").write_text(json.dumps(quantized))
    return find_model(str(path)).expert_nbytes


@pytest.mark.parametrize(
    ("config", "quantized", "expected"),
    [
        ({}, None, OF_BF16),
        ({"quantization_config": FP8}, None, OF_FP8),
        ({}, {"producer": {"name": "modelopt"}, "quantization": NVFP4}, OF_NVFP4),
        ({"quantization_config": FP8}, {"quantization": NVFP4}, OF_NVFP4),
        ({"quantization_config": INT4}, {"quantization": NVFP4}, OF_NVFP4),
        ({"quantization_config": FP8}, {"quantization": {"quant_algo": "FP8"}}, WEIGHTS + 3 * 8),
        ({"quantization_config": {"quant_method": "modelopt", **NVFP4}}, None, OF_NVFP4),
        ({"quantization_config": {"quant_method": "modelopt", "quantization": NVFP4}}, None, OF_NVFP4),
        ({"quantization_config": {**FP8, "moe_quant_algo": "NVFP4"}}, None, OF_NVFP4),
        ({"quantization_config": FP8, "moe_quant_algo": "NVFP4"}, None, OF_NVFP4),
        (
            {"quantization_config": {**FP8, "moe_quant_algo": "NVFP4"}},
            {"quantization": {"quant_algo": "MIXED_PRECISION", "exclude_modules": ["mtp.*"]}},
            OF_NVFP4,
        ),
    ],
)
def test_who_decides(tmp_path, config, quantized, expected):
    """What the makers of the weights wrote last, and of that what is about experts."""
    assert nbytes(tmp_path, {**V3, **config}, quantized) == expected


def compressed(form: str, **group: object) -> dict[str, Any]:
    """A quantization by compressed-tensors."""
    weights = {"num_bits": 4, "type": "float", "group_size": 16}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights, **group}}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": groups}


OF_32 = {"num_bits": 4, "type": "float", "group_size": 32}


@pytest.mark.parametrize(
    ("quantization", "expected"),
    [
        (compressed("nvfp4-pack-quantized"), OF_NVFP4 - 3 * 4),
        (compressed("nvfp4-pack-quantized", input_activations={"num_bits": 4}), OF_NVFP4),
        (compressed("mxfp4-pack-quantized", weights=OF_32), OF_MXFP4),
        (compressed("nvfp4-pack-quantized", weights=OF_32), None),
        (compressed("nvfp4-pack-quantized", targets=["re:.*self_attn.*"]), None),
        (compressed("nvfp4-pack-quantized", weights=None), None),
        ({**compressed("nvfp4-pack-quantized"), "config_groups": {}}, None),
        ({**compressed("nvfp4-pack-quantized"), "config_groups": [1]}, None),
        ({**compressed("nvfp4-pack-quantized"), "config_groups": {"a": {}, "b": {}}}, None),
        (INT4, None),
        ({"quant_method": "fp8"}, None),
        ({**FP8, "weight_block_size": [128]}, None),
        ({**FP8, "weight_block_size": [128, 0]}, None),
        ({**FP8, "moe_quant_algo": "MXFP8"}, None),
        ({**FP8, "expert_dtype": "fp4"}, None),
        ({"quant_method": "awq", "bits": 4}, None),
        ({"quant_algo": "MIXED_PRECISION", "quantized_layers": {"a": {"quant_algo": "NVFP4"}}}, None),
        ({"quant_algo": "W4A16_NVFP4"}, None),
        ({"quant_algo": ["NVFP4"]}, None),
        ({"quant_algo": "NVFP4", "group_size": 32}, None),
        ({}, None),
        ("fp8", None),
        ([], None),
    ],
    ids=str,
)
def test_forms(tmp_path, quantization, expected):
    """Bytes where the tensors are certain; nothing where some are not."""
    assert nbytes(tmp_path, {**V3, "quantization_config": quantization}) == expected


def test_scales_of_blocks_are_not_of_one_dtype(tmp_path):
    """Qwen's are BF16 and DeepSeek's F32, and config.json does not say it."""
    qwen = {**V3, "model_type": "qwen3_moe", "decoder_sparse_step": 1, "num_experts": 8}
    del qwen["n_routed_experts"], qwen["first_k_dense_replace"]
    assert nbytes(tmp_path, qwen) == OF_BF16
    assert nbytes(tmp_path, {**qwen, "quantization_config": FP8}) is None


def test_deepseek_v4(tmp_path):
    """Its experts are of 4 bits, whatever the rest is."""
    config = {**V3, "model_type": "deepseek_v4", "expert_dtype": "fp4", "quantization_config": FP8}
    assert nbytes(tmp_path, config) == OF_MXFP4
    assert nbytes(tmp_path, {**config, "expert_dtype": "fp8"}) is None
    assert nbytes(tmp_path, {**config, "expert_dtype": None}) is None
    nvidia = {**FP8, "moe_quant_algo": "NVFP4", "quant_algo": "MIXED_PRECISION"}
    assert nbytes(tmp_path, {**config, "quantization_config": nvidia}) == OF_NVFP4


def test_experts_that_get_less(tmp_path):
    """Kimi-K3 and Nemotron 3 Super have experts that work on fewer dimensions than the model."""
    kimi = {**V3, "model_type": "kimi_linear", "routed_expert_hidden_size": 512}
    assert nbytes(tmp_path, kimi) == 2 * 3 * 512 * I
    nemotron = {"model_type": "nemotron_h", "hybrid_override_pattern": "ME*E", "moe_latent_size": 256}
    assert nbytes(tmp_path, {**V3, **nemotron, "first_k_dense_replace": None}) == 2 * 2 * 256 * I


@pytest.mark.parametrize(
    ("patterns", "certain"),
    [
        (["lm_head", "model.layers.3.mlp.gate", "model.layers.0.mlp.up_proj", "model.norm"], True),
        (["*self_attn*", "*.mlp.gate", "*shared_experts*", "model.layers.61*", "model.layers.0*"], True),
        (["re:.*self_attn.*", "re:.*mlp\\.(gate|up|gate_up|down)_proj.*", "re:.*shared_experts.*"], True),
        (["re:.*lm_head", "re:model\\.layers\\.0\\..*", "re:^model.*gate$"], True),
        ([], True),
        (["model.layers.3.mlp"], False),
        (["model.layers.3"], False),
        (["mlp"], False),
        (["model.layers.3*"], False),
        (["language_model.model.layers.3.*"], False),
        (["*mlp*"], False),
        (["*"], False),
        (["*.experts.*"], False),
        (["model.layers.1.mlp.experts.7.up_proj"], False),
        (["re:.*mlp.*"], False),
        (["re:.*layers\\.3\\..*"], False),
        (["re:model\\.language_model\\.layers\\.2\\.mlp"], False),
        (["re:("], False),
        (["re:(a*)*b"], False),
        (["re:" + "a?" * 60], False),
        (["re:.*x.*y.*z"], False),
        (["a" * 10_000], False),
        (["re:a"] * 100, False),
        (["a"] * 10_000, False),
        ([5], False),
        ("lm_head", False),
        ({"a": 1}, False),
    ],
    ids=lambda value: str(value)[:40],
)
@pytest.mark.parametrize("key", ["ignore", "exclude_modules", "modules_to_not_convert", "ignored_layers"])
def test_lists_of_what_is_not_quantized(tmp_path, key, patterns, certain):
    """Where experts may be in them, nothing is certain; and no list takes its reader long."""
    found = nbytes(tmp_path, {**V3, "quantization_config": {**FP8, key: patterns}})
    assert found == (OF_FP8 if certain else None)


@pytest.mark.parametrize("key", ["hidden_size", "moe_intermediate_size", "torch_dtype"])
def test_sizes_that_are_missing(tmp_path, key):
    """The layers are known all the same."""
    assert nbytes(tmp_path, {name: value for name, value in V3.items() if name != key}) is None


@pytest.mark.parametrize("key", ["mlp_bias", "use_bias", "moe_bias", "use_mlp_bias"])
def test_biases(tmp_path, key):
    """Whose they are is not said, so nothing is certain."""
    assert nbytes(tmp_path, {**V3, key: False}) == OF_BF16
    assert nbytes(tmp_path, {**V3, key: True}) is None


@pytest.mark.parametrize("value", [0, -1, "7168", 1 << 40, True, [7168]])
def test_sizes_that_are_none(tmp_path, value):
    """EP118."""
    with pytest.raises(PlacementError) as caught:
        nbytes(tmp_path, {**V3, "hidden_size": value})
    assert caught.value.code == "EP118"


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"quantization": {"a": 1, "a": 2}}'])
def test_a_quantization_that_cannot_be_read(tmp_path, text):
    """EP118: sizes without it would be wrong."""
    (tmp_path / "hf_quant_config.json").write_text(text)
    with pytest.raises(PlacementError, match=r"hf_quant_config\.json") as caught:
        nbytes(tmp_path, V3)
    assert caught.value.code == "EP118"


@pytest.mark.parametrize("value", [[], 3, {}, {"quantization": None}, {"quantization": {"quant_algo": None}}])
def test_a_quantization_that_says_nothing(tmp_path, value):
    """The file is there for a reason, so nothing is certain."""
    assert nbytes(tmp_path, V3, value) is None


def test_a_file_of_another_name_is_asked_alone(tmp_path):
    """Only config.json belongs to what lies beside it."""
    (tmp_path / "hf_quant_config.json").write_text("{")
    (tmp_path / "v3.json").write_text(json.dumps(V3))
    assert find_model(str(tmp_path / "v3.json")).expert_nbytes == OF_BF16
