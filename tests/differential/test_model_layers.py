"""Which layers have experts, by a config.json of transformers, against the model that it builds of it."""

from __future__ import annotations

import json
import re

import pytest

from eplb_cli.models.preset import find_model

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5")

SMALL: dict[str, object] = {
    "num_hidden_layers": 6, "hidden_size": 32, "intermediate_size": 16, "moe_intermediate_size": 8,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 64, "q_lora_rank": 8,
    "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8, "pad_token_id": 0,
}  # fmt: skip
OTHER: dict[str, dict[str, object]] = {
    "hunyuan_v1_moe": {"num_experts": 4},
    "llama4_text": {"interleave_moe_layer_step": 2},
    "longcat_flash": {"num_layers": 3},
    "nemotron_h": {"layers_block_type": ["linear_attention", "moe", "full_attention", "mlp", "moe", "moe"]},
    "qwen2_moe": {"decoder_sparse_step": 2, "mlp_only_layers": [3]},
    "qwen3_moe": {"decoder_sparse_step": 3},
    "ernie4_5_moe": {"moe_layer_start_index": 2, "moe_layer_end_index": 4},
    "deepseek_v3": {"first_k_dense_replace": 2},
}
FAMILIES = [
    *("deepseek_v3", "glm4_moe", "glm4_moe_lite", "glm_moe_dsa", "qwen2_moe", "qwen3_moe", "qwen3_next"),
    *(
        "qwen3_vl_moe_text",
        "qwen3_5_moe_text",
        "mixtral",
        "minimax",
        "minimax_m2",
        "phimoe",
        "olmoe",
        "jamba",
    ),
    *("granitemoe", "granitemoeshared", "ernie4_5_moe", "hunyuan_v1_moe", "longcat_flash", "nemotron_h"),
    *("gpt_oss", "llama4_text", "solar_open", "mimo_v2_flash"),
    *("afmoe", "exaone_moe", "hy_v3", "mistral4", "cohere2_moe", "axk1", "flint", "mellum"),
]
"""Those that are known, and in the last line some that are not: keys alone say it."""

EXPERTS = re.compile(r"layers\.(\d+)\..*(?<!shared_)(?:experts|block_sparse_moe)\.")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_layers_of_the_model(tmp_path, family):
    """The keys say the layers in which the model has modules of experts."""
    known = transformers.models.auto.configuration_auto.CONFIG_MAPPING
    if family not in known:
        pytest.skip("transformers does not have it yet")
    config = known[family](**{**SMALL, **OTHER.get(family, {})})
    with torch.device("meta"):
        model = transformers.AutoModel.from_config(config)
    built = sorted({int(found[1]) for key in model.state_dict() if (found := EXPERTS.search(key))})
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(config.to_json_string(use_diff=False))))
    assert list(find_model(str(path)).moe_layers) == built
    assert built
