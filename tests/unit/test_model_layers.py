"""Which layers have experts, as a config.json says it: thirty families, and what is not said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eplb_cli.errors import PlacementError
from eplb_cli.models.model import Model
from eplb_cli.models.preset import find_model

NANO = "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME"
MOE_OF_NANO = [layer for layer, letter in enumerate(NANO) if letter == "E"]


def first(model_type: str, layers: int, dense: int, experts: int, **more: object) -> dict[str, Any]:
    """A family whose first layers are dense."""
    config = {"model_type": model_type, "num_hidden_layers": layers, "first_k_dense_replace": dense}
    return {**config, "n_routed_experts": experts, **more}


def text(outer: str, **values: object) -> dict[str, Any]:
    """A composite model."""
    return {"model_type": outer, "num_hidden_layers": 7, "num_experts": 3, "text_config": values}


FAMILIES: dict[str, tuple[dict[str, Any], int, list[int], int]] = {
    "qwen2_moe": (
        {"num_hidden_layers": 28, "num_experts": 64, "decoder_sparse_step": 1, "mlp_only_layers": []},
        28, list(range(28)), 64,
    ),
    "qwen3_next": (
        {"num_hidden_layers": 48, "num_experts": 512, "decoder_sparse_step": 1, "mlp_only_layers": []},
        48, list(range(48)), 512,
    ),
    "qwen3_5_moe": (
        text(
            "qwen3_5_moe", model_type="qwen3_5_moe_text", num_hidden_layers=40, num_experts=256,
            mtp_num_hidden_layers=1,
        ),
        40, list(range(40)), 256,
    ),
    "qwen3_vl_moe": (
        text(
            "qwen3_vl_moe", model_type="qwen3_vl_moe_text", num_hidden_layers=48, num_experts=128,
            decoder_sparse_step=1, mlp_only_layers=[],
        ),
        48, list(range(48)), 128,
    ),
    "qwen3_omni": (
        {"model_type": "qwen3_omni_moe", "thinker_config": text(
            "thinker", model_type="qwen3_omni_moe_text", num_hidden_layers=48, num_experts=128,
            decoder_sparse_step=1, mlp_only_layers=[],
        )},
        48, list(range(48)), 128,
    ),
    "glm_moe_dsa": (first("glm_moe_dsa", 78, 3, 256), 78, list(range(3, 78)), 256),
    "glm4_moe_lite": (first("glm4_moe_lite", 47, 1, 64), 47, list(range(1, 47)), 64),
    "glm4_moe": (first("glm4_moe", 46, 1, 128), 46, list(range(1, 46)), 128),
    "deepseek_v2": (first("deepseek_v2", 27, 1, 64, moe_layer_freq=1), 27, list(range(1, 27)), 64),
    "deepseek_v3": (
        first("deepseek_v3", 4, 1, 8, moe_layer_freq=[0, 1, 1, 1]), 4, [1, 2, 3], 8,
    ),
    "deepseek_v32": (first("deepseek_v32", 61, 3, 256, moe_layer_freq=1), 61, list(range(3, 61)), 256),
    "deepseek_v4": (
        {"num_hidden_layers": 43, "n_routed_experts": 256, "num_hash_layers": 3, "layer_types": ["a"] * 43},
        43, list(range(43)), 256,
    ),
    "ernie4_5_moe": (
        {
            "num_hidden_layers": 54, "moe_num_experts": 64, "moe_layer_start_index": 3,
            "moe_layer_end_index": 53, "moe_layer_interval": 1,
        },
        54, list(range(3, 54)), 64,
    ),
    "hunyuan_v1_moe": (
        {"num_hidden_layers": 32, "num_experts": [64] * 32, "moe_layer_num_skipped": 0},
        32, list(range(32)), 64,
    ),
    "dots1": (first("dots1", 62, 1, 128, moe_layer_freq=1), 62, list(range(1, 62)), 128),
    "bailing_moe_v2": (
        {"num_hidden_layers": 32, "first_k_dense_replace": 4, "num_experts": 256},
        32, list(range(4, 32)), 256,
    ),
    "longcat_flash": (
        {"num_layers": 28, "num_hidden_layers": 56, "n_routed_experts": 512, "zero_expert_num": 256},
        28, list(range(28)), 512,
    ),
    "step3_vl": (
        text(
            "step3_vl", model_type="step3_text", num_hidden_layers=61, moe_num_experts=48,
            moe_layers_enum="4,5,6,7",
        ),
        61, [4, 5, 6, 7], 48,
    ),
    "kimi_linear": (
        {"num_hidden_layers": 27, "num_experts": 256, "first_k_dense_replace": 1, "moe_layer_freq": 1},
        27, list(range(1, 27)), 256,
    ),
    "kimi_k25": (
        text("kimi_k25", **first("kimi_k2", 61, 1, 384, moe_layer_freq=1)), 61, list(range(1, 61)), 384,
    ),
    "granitemoe": ({"num_hidden_layers": 32, "num_local_experts": 40}, 32, list(range(32)), 40),
    "olmoe": ({"num_hidden_layers": 16, "num_experts": 64}, 16, list(range(16)), 64),
    "phimoe": ({"num_hidden_layers": 32, "num_local_experts": 16}, 32, list(range(32)), 16),
    "mixtral": ({"num_hidden_layers": 32, "num_local_experts": 8}, 32, list(range(32)), 8),
    "minimax_m2": (
        {"num_hidden_layers": 62, "num_local_experts": 256, "use_mtp": True, "num_mtp_modules": 3},
        62, list(range(62)), 256,
    ),
    "jamba": (
        {"num_hidden_layers": 32, "num_experts": 16, "expert_layer_period": 2, "expert_layer_offset": 1},
        32, list(range(1, 32, 2)), 16,
    ),
    "dbrx": (
        {"n_layers": 40, "d_model": 6144, "ffn_config": {"moe_num_experts": 16}}, 40, list(range(40)), 16,
    ),
    "nemotron_h": (
        {"num_hidden_layers": 52, "hybrid_override_pattern": NANO, "n_routed_experts": 128},
        52, MOE_OF_NANO, 128,
    ),
    "mimo_v2_flash": (
        {"num_hidden_layers": 48, "moe_layer_freq": [0] + [1] * 47, "n_routed_experts": 256},
        48, list(range(1, 48)), 256,
    ),
    "llama4_maverick": (
        text(
            "llama4", model_type="llama4_text", num_hidden_layers=48, interleave_moe_layer_step=2,
            num_local_experts=128,
        ),
        48, list(range(1, 48, 2)), 128,
    ),
    "llama4_scout": (
        text(
            "llama4", model_type="llama4_text", num_hidden_layers=48, interleave_moe_layer_step=1,
            moe_layers=list(range(48)), num_local_experts=16,
        ),
        48, list(range(48)), 16,
    ),
}  # fmt: skip
"""The keys of published models that say it, with the layers, those with experts, and E."""


def read(path: Path, config: dict[str, Any]) -> Model:
    """The model of a config.json."""
    (path / "config.json").write_text(json.dumps(config))
    return find_model(str(path))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_read(tmp_path, name):
    """Its layers, those that have experts, and how many."""
    config, hidden, layers, experts = FAMILIES[name]
    model = read(tmp_path, {"model_type": name, **config})
    assert (model.num_hidden_layers, model.num_logical_experts) == (hidden, experts)
    assert list(model.moe_layers) == layers


NEW: dict[str, Any] = {"model_type": "unheard_of", "num_hidden_layers": 6, "num_experts": 4}
"""A model of a family that nobody has looked at."""


@pytest.mark.parametrize(
    ("keys", "layers"),
    [
        ({"first_k_dense_replace": 2}, [2, 3, 4, 5]),
        ({"num_dense_layers": 5}, [5]),
        ({"first_k_dense_replace": 1, "moe_layer_freq": 1}, [1, 2, 3, 4, 5]),
        ({"decoder_sparse_step": 1, "mlp_only_layers": [3]}, [0, 1, 2, 4, 5]),
        ({"moe_layer_start_index": 1, "moe_layer_end_index": -1, "moe_layer_interval": 1}, [1, 2, 3, 4, 5]),
        ({"moe_layer_freq": [0, 0, 1, 1, 0, 1]}, [2, 3, 5]),
        ({"is_moe_layer": [False] + [True] * 5, "first_last_k_dense_replace": 1}, [1, 2, 3, 4, 5]),
        ({"moe_layers_enum": [4, 5], "moe_every_n_layer": 1, "moe_layer_offset": 0}, [4, 5]),
        ({"mlp_layer_types": ["dense", *["sparse"] * 5]}, [1, 2, 3, 4, 5]),
        ({"mlp_layer_types": ["dense", *["sparse"] * 5], "first_k_dense_replace": 1}, [1, 2, 3, 4, 5]),
        ({"layers_block_type": ["mamba", "moe", "attention", "moe", "mlp", "moe"]}, [1, 3, 5]),
        ({"first_k_dense_replace": 0, "layer_types": ["full_attention"] * 6}, [0, 1, 2, 3, 4, 5]),
        ({"num_layers": 6, "first_k_dense_replace": 5}, [5]),
        ({"first_k_dense_replace": 5, "num_local_experts": 4}, [5]),
        ({"first_k_dense_replace": 5, "moe_layer_period": None, "expert_interval": 0}, [5]),
        ({"first_k_dense_replace": 5, "mtp_moe_layers": 3, "sparse_attention_layers": [1, 2]}, [5]),
    ],
)
def test_a_model_of_no_family(tmp_path, keys, layers):
    """Keys that mean the same in all families say it for any model."""
    model = read(tmp_path, {**NEW, **keys})
    assert list(model.moe_layers) == layers
    assert model.expert_nbytes is None


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({}, "'unheard_of', and that is no family that is known; no key says which of its layers"),
        ({"mlp_only_layers": []}, "no key says which of its layers"),
        ({"moe_frequency": 2}, "nobody has looked what 'moe_frequency' says"),
        ({"first_k_dense_replace": 1, "moe_every_n_layer": 2}, "what 'moe_every_n_layer' says"),
        ({"first_k_dense_replace": 1, "moe_layer_freq": 2}, "what 'moe_layer_freq' says"),
        ({"decoder_sparse_step": 2, "mlp_only_layers": []}, "what 'decoder_sparse_step' says"),
        ({"decoder_sparse_step": 1}, "what 'decoder_sparse_step' says"),
        ({"first_k_dense_replace": 1, "dense_ids": [1, 2]}, "what 'dense_ids' says"),
        ({"first_k_dense_replace": 1, "moe_config": {"layers": 2}}, "what 'moe_config' says"),
        ({"first_k_dense_replace": 1, "num_experts": None}, "how many experts"),
        ({"first_k_dense_replace": 1, "n_routed_experts": 8}, "say different numbers"),
        ({"first_k_dense_replace": 1, "num_layers": 12}, "say different numbers"),
        ({"first_k_dense_replace": 1, "num_experts": [4] * 5}, "'num_experts' is no number"),
        ({"first_k_dense_replace": 1, "num_experts": [4, 4, 4, 4, 4, 8]}, "what 'num_experts' says"),
        ({"first_k_dense_replace": 2, "mlp_layer_types": ["dense", *["moe"] * 5]}, "say different layers"),
        ({"moe_layers": [2, 3], "moe_layers_enum": "2,4"}, "say different layers"),
    ],
)
def test_what_is_not_said_is_not_guessed(tmp_path, keys, says):
    """EP118 names the key."""
    with pytest.raises(PlacementError, match=says) as caught:
        read(tmp_path, {**NEW, **keys})
    assert caught.value.code == "EP118"


@pytest.mark.parametrize(
    "name", ["deepseek_v3", "qwen3_moe", "jamba", "nemotron_h", "llama4_text", "mimo_v2_flash"]
)
def test_a_family_needs_its_key(tmp_path, name):
    """What the family's own code would take for it is not the same in all its versions."""
    with pytest.raises(PlacementError, match="it has none of the keys") as caught:
        read(tmp_path, {**NEW, "model_type": name})
    assert caught.value.code == "EP118"


@pytest.mark.parametrize(
    "keys",
    [
        {"first_k_dense_replace": True},
        {"first_k_dense_replace": -1},
        {"first_k_dense_replace": 10**30},
        {"decoder_sparse_step": 0},
        {"moe_layer_end_index": -2},
        {"moe_layer_freq": [0, 1]},
        {"moe_layer_freq": [0, 1, 2, 1, 1, 1]},
        {"moe_layer_freq": [0.0, 1, 1, 1, 1, 1]},
        {"is_moe_layer": [False, True]},
        {"moe_layers": [1, 2, 6]},
        {"moe_layers": [-1]},
        {"moe_layers": "all"},
        {"moe_layers_enum": "1,2,x"},
        {"moe_layers_enum": "9" * 5000},
        {"moe_layers_enum": {"1": 1}},
        {"mlp_layer_types": ["dense", "sparse"]},
        {"mlp_layer_types": ["dense", "sparse", "sparse", "sparse", "sparse", "other"]},
        {"mlp_layer_types": [1] * 6},
        {"hybrid_override_pattern": "MEMEMX"},
        {"hybrid_override_pattern": "MEM"},
        {"hybrid_override_pattern": 5},
        {"expert_layer_period": 0, "expert_layer_offset": 0},
        {"expert_layer_period": 2},
        {"expert_layer_period": 2, "expert_layer_offset": "1"},
        {"mlp_only_layers": [[0]], "decoder_sparse_step": 1},
        {"mlp_only_layers": list(range(6)), "decoder_sparse_step": 1},
    ],
    ids=str,
)
def test_values_that_say_no_layers(tmp_path, keys):
    """EP118, whatever stands there."""
    with pytest.raises(PlacementError) as caught:
        read(tmp_path, {**NEW, **keys})
    assert caught.value.code == "EP118"
    assert len(caught.value.message) < 600


def test_layers_that_only_a_list_counts(tmp_path):
    """Nemotron, as version 5 of transformers saves it."""
    config = {"model_type": "nemotron_h", "n_routed_experts": 4, "layers_block_type": ["mamba", "moe", "moe"]}
    model = read(tmp_path, config)
    assert (model.num_hidden_layers, model.moe_layers) == (3, (1, 2))


def test_a_preset_lists_its_layers(tmp_path):
    """Numbers, ranges, or both."""
    lines = (
        'format = "eplb-model/1"', 'name = "mine"', "num_hidden_layers = 8", "num_experts = 4",
        'experts = "backbone.layers.{layer}.mixer.experts.{expert}.{tensor}"',
        "moe_layers = LAYERS", "[tensors]", '"up_proj.weight" = ["BF16", 4, 8]',
    )  # fmt: skip
    path = tmp_path / "mine.toml"
    for said, layers in (
        ("[1, 3, 6]", (1, 3, 6)),
        ("[{ first = 1, last = 3 }, 6]", (1, 2, 3, 6)),
        ("{ first = 1, last = 7, step = 3 }", (1, 4, 7)),
    ):
        path.write_text("\n".join(lines).replace("LAYERS", said))
        assert find_model(str(path)).moe_layers == layers
    for said in ("[]", "[3, 1]", "[1, 1]", "[-1]", "[true]", "[[1]]", '["1"]', "[8]", "5000000"):
        path.write_text("\n".join(lines).replace("LAYERS", said))
        with pytest.raises(PlacementError) as caught:
            find_model(str(path))
        assert caught.value.code == "EP118"
