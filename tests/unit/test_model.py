"""Model presets, and what a config.json says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from eplb_cli.errors import PlacementError
from eplb_cli.formats.safetensors_header import DTYPE_BITS
from eplb_cli.models.config import config_beside, read_config
from eplb_cli.models.families import FAMILIES
from eplb_cli.models.preset import find_model, presets
from eplb_cli.models.presets import PRESETS

TABLE = [
    # Layers, first and last MoE layer, their number, experts, bytes per expert: as published.
    ("deepseek-v3", 61, 3, 60, 58, 256, 44_050_944),
    ("kimi-k2", 61, 1, 60, 60, 384, 44_050_944),
    ("kimi-k2-thinking", 61, 1, 60, 60, 384, 24_772_632),
    ("kimi-k3", 93, 1, 92, 92, 896, 17_547_264),
    ("qwen3-30b-a3b", 48, 0, 47, 48, 128, 9_437_184),
    ("qwen3-235b-a22b", 94, 0, 93, 94, 128, 37_748_736),
    ("glm-4.5", 92, 3, 91, 89, 160, 47_185_920),
    ("mixtral-8x7b", 32, 0, 31, 32, 8, 352_321_536),
    ("minimax-m2", 62, 0, 61, 62, 256, 14_159_232),
    ("gpt-oss-120b", 36, 0, 35, 36, 128, 13_236_480),
    ("gpt-oss-20b", 24, 0, 23, 24, 32, 13_236_480),
    ("llama4-maverick", 48, 1, 47, 24, 128, 251_658_240),
    ("deepseek-v2", 60, 1, 59, 59, 160, 47_185_920),
    ("deepseek-v2-lite", 27, 1, 26, 26, 64, 17_301_504),
    ("deepseek-v3.2", 61, 3, 60, 58, 256, None),
    ("deepseek-v4.1-flash", 40, 0, 39, 40, 384, None),
    ("qwen3-omni-30b-a3b", 48, 0, 47, 48, 128, 9_437_184),
    ("deepseek-v4-flash", 43, 0, 42, 43, 256, 13_369_344),
    ("deepseek-v4-pro", 61, 0, 60, 61, 384, 35_094_528),
    ("kimi-k2.5", 61, 1, 60, 60, 384, 24_772_632),
    ("kimi-linear-48b-a3b", 27, 1, 26, 26, 256, 14_155_776),
    ("glm-4.5-air", 46, 1, 45, 45, 128, 34_603_008),
    ("glm-4.7", 92, 3, 91, 89, 160, 47_185_920),
    ("glm-4.7-flash", 47, 1, 46, 46, 64, 18_874_368),
    ("glm-5", 78, 3, 77, 75, 256, 75_497_472),
    ("qwen2-57b-a14b", 28, 0, 27, 28, 64, 55_050_240),
    ("qwen3-coder-480b-a35b", 62, 0, 61, 62, 160, 94_371_840),
    ("qwen3-next-80b-a3b", 48, 0, 47, 48, 512, 6_291_456),
    ("qwen3-vl-235b-a22b", 94, 0, 93, 94, 128, 37_748_736),
    ("qwen3.5-35b-a3b", 40, 0, 39, 40, 256, 6_291_456),
    ("qwen3.5-397b-a17b", 60, 0, 59, 60, 512, 25_165_824),
    ("ernie-4.5-21b-a3b", 28, 1, 27, 27, 64, 23_592_960),
    ("hunyuan-a13b", 32, 0, 31, 32, 64, 75_497_472),
    ("dots.llm1", 62, 1, 61, 61, 128, 34_603_008),
    ("longcat-flash", 28, 0, 27, 28, 512, 75_497_472),
    ("mimo-v2-flash", 48, 1, 47, 47, 256, None),
    ("step-3.5-flash", 45, 3, 44, 42, 288, None),
    ("nemotron-3-nano-30b-a3b", 52, 1, 51, 23, 128, 19_955_712),
    ("phi-3.5-moe", 32, 0, 31, 32, 16, 157_286_400),
    ("olmoe-1b-7b", 16, 0, 15, 16, 64, 12_582_912),
    ("jamba-v0.1", 32, 1, 31, 16, 16, 352_321_536),
    ("mixtral-8x22b", 56, 0, 55, 56, 8, 603_979_776),
    ("llama4-scout", 48, 0, 47, 48, 16, 251_658_240),
]


@pytest.mark.parametrize(("name", "hidden", "first", "last", "count", "experts", "nbytes"), TABLE)
def test_a_preset_is_the_model(name, hidden, first, last, count, experts, nbytes):
    """Layers, experts and bytes are those of the published checkpoint."""
    model = find_model(name)
    assert (model.name, model.num_hidden_layers, model.num_logical_experts) == (name, hidden, experts)
    assert (model.moe_layers[0], model.moe_layers[-1], len(model.moe_layers)) == (first, last, count)
    assert model.expert_nbytes == nbytes


def test_every_preset_is_in_the_table():
    """None without numbers to hold it to."""
    assert sorted(name for name, *_ in TABLE) == PRESETS.names


@pytest.mark.parametrize("model", presets(), ids=lambda model: model.name)
def test_presets_say_all_that_there_is(model):
    """Known dtypes, whole bytes, MTP layers after the hidden ones, and a key with all placeholders."""
    assert {"{layer}", "{tensor}"} <= set(re.findall(r"\{\w+\}", model.experts))
    assert all(layer >= model.num_hidden_layers for layer in model.mtp_layers)
    assert all(tensor.dtype in DTYPE_BITS for tensor in model.tensors.values())
    assert not model.tensors or model.expert_nbytes
    assert model.description
    assert re.fullmatch(r"https://huggingface\.co/.+/config\.json", model.source)
    assert PRESETS.path(model.name).exists()


CONFIGS = [
    (
        "deepseek-v3",
        {
            "model_type": "deepseek_v3",
            "num_hidden_layers": 61,
            "first_k_dense_replace": 3,
            "moe_layer_freq": 1,
            "num_nextn_predict_layers": 1,
            "n_routed_experts": 256,
            "hidden_size": 7168,
            "moe_intermediate_size": 2048,
            "torch_dtype": "bfloat16",
            "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
        },
    ),
    (
        "qwen3-30b-a3b",
        {
            "model_type": "qwen3_moe",
            "num_hidden_layers": 48,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "num_experts": 128,
            "hidden_size": 2048,
            "moe_intermediate_size": 768,
            "dtype": "bfloat16",
        },
    ),
    (
        "mixtral-8x7b",
        {
            "model_type": "mixtral",
            "num_hidden_layers": 32,
            "num_local_experts": 8,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "torch_dtype": "bfloat16",
        },
    ),
    (
        "minimax-m2",
        {
            "model_type": "minimax_m2",
            "num_hidden_layers": 62,
            "num_local_experts": 256,
            "hidden_size": 3072,
            "intermediate_size": 1536,
            "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
        },
    ),
    (
        "glm-4.5",
        {
            "model_type": "glm4_moe",
            "num_hidden_layers": 92,
            "first_k_dense_replace": 3,
            "num_nextn_predict_layers": 1,
            "n_routed_experts": 160,
            "hidden_size": 5120,
            "moe_intermediate_size": 1536,
            "torch_dtype": "bfloat16",
        },
    ),
]


FIRST, SPARSE = {"first_k_dense_replace": 1}, {"decoder_sparse_step": 1, "mlp_only_layers": []}
NANO = "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME"
MORE = [
    ("deepseek-v2", "deepseek_v2", FIRST, {}),
    ("deepseek-v2-lite", "deepseek_v2", FIRST, {}),
    ("deepseek-v4-flash", "deepseek_v4", {"expert_dtype": "fp4", "num_nextn_predict_layers": 1}, {}),
    ("deepseek-v4-pro", "deepseek_v4", {"expert_dtype": "fp4", "num_nextn_predict_layers": 1}, {}),
    ("kimi-linear-48b-a3b", "kimi_linear", FIRST, {}),
    ("glm-4.5-air", "glm4_moe", {**FIRST, "num_nextn_predict_layers": 1}, {}),
    ("glm-4.7-flash", "glm4_moe_lite", {**FIRST, "num_nextn_predict_layers": 1}, {}),
    ("glm-5", "glm_moe_dsa", {"first_k_dense_replace": 3, "num_nextn_predict_layers": 1}, {}),
    ("qwen2-57b-a14b", "qwen2_moe", SPARSE, {}),
    ("qwen3-coder-480b-a35b", "qwen3_moe", SPARSE, {}),
    ("qwen3-next-80b-a3b", "qwen3_next", {**SPARSE, "mtp_num_hidden_layers": 1}, {}),
    ("qwen3-vl-235b-a22b", "qwen3_vl_moe_text", SPARSE, {}),
    ("qwen3.5-35b-a3b", "qwen3_5_moe_text", {"mtp_num_hidden_layers": 1}, {}),
    ("qwen3.5-397b-a17b", "qwen3_5_moe_text", {"mtp_num_hidden_layers": 1}, {}),
    ("ernie-4.5-21b-a3b", "ernie4_5_moe", {"moe_layer_start_index": 1, "moe_layer_end_index": -1}, {}),
    ("hunyuan-a13b", "hunyuan_v1_moe", {"moe_layer_num_skipped": 0}, {}),
    ("dots.llm1", "dots1", FIRST, {}),
    ("longcat-flash", "longcat_flash", {}, {"layers": "num_layers", "width": "expert_ffn_hidden_size"}),
    ("mimo-v2-flash", "mimo_v2_flash", {"moe_layer_freq": [0] + [1] * 47, "quantization_config": {}}, {}),
    ("nemotron-3-nano-30b-a3b", "nemotron_h", {"hybrid_override_pattern": NANO}, {}),
    ("phi-3.5-moe", "phimoe", {}, {"width": "intermediate_size"}),
    ("olmoe-1b-7b", "olmoe", {}, {"width": "intermediate_size"}),
    (
        "jamba-v0.1",
        "jamba",
        {"expert_layer_period": 2, "expert_layer_offset": 1},
        {"width": "intermediate_size"},
    ),
    ("mixtral-8x22b", "mixtral", {}, {"width": "intermediate_size"}),
    ("llama4-scout", "llama4_text", {"interleave_moe_layer_step": 1}, {"width": "intermediate_size"}),
]
"""Presets with the family, what says their layers, and keys that are called otherwise."""


@pytest.fixture
def config(tmp_path):
    """A config.json."""

    def write(content: object) -> str:
        path = tmp_path / "config.json"
        path.write_text(json.dumps(content))
        return str(path)

    return write


@pytest.mark.parametrize(("name", "content"), CONFIGS)
def test_a_config_says_what_the_preset_says(config, name, content):
    """Layers, experts and every tensor; of the whole file or of its text model."""
    preset = find_model(name)
    for model in (find_model(config(content)), find_model(config({"text_config": content}))):
        assert model.moe_layers == preset.moe_layers
        assert model.mtp_layers == preset.mtp_layers
        assert model.num_logical_experts == preset.num_logical_experts
        assert dict(model.tensors) == dict(preset.tensors)
        assert model.experts == preset.experts


@pytest.mark.parametrize(("name", "family", "keys", "other"), MORE, ids=[name for name, *_ in MORE])
def test_a_family_says_what_its_preset_says(config, name, family, keys, other):
    """Layers and experts; tensors too, but for those that are stacked."""
    preset = find_model(name)
    sizes = {
        other.get("layers", "num_hidden_layers"): preset.num_hidden_layers,
        other.get("width", "moe_intermediate_size"): preset.intermediate_size,
        "hidden_size": preset.hidden_size,
        "num_experts": preset.num_logical_experts,
        "dtype": "bfloat16",
    }
    model = find_model(config({"model_type": family, **sizes, **keys}))
    assert (model.moe_layers, model.mtp_layers) == (preset.moe_layers, preset.mtp_layers)
    assert (model.num_hidden_layers, model.num_logical_experts) == (
        preset.num_hidden_layers,
        preset.num_logical_experts,
    )
    assert model.experts == preset.experts
    assert dict(model.tensors) == ({} if "{expert}" not in preset.experts else dict(preset.tensors))


def test_the_number_of_experts_has_several_names(config):
    """Version 5 of transformers saves Qwen's `num_experts` as `num_local_experts`."""
    content = dict(CONFIGS[1][1])
    content["num_local_experts"] = content.pop("num_experts")
    assert find_model(config(content)).num_logical_experts == 128


def test_dense_layers_between(config):
    """Qwen lists them, Llama 4 counts steps."""
    qwen = {**CONFIGS[1][1], "num_hidden_layers": 6, "decoder_sparse_step": 2, "mlp_only_layers": [3]}
    assert find_model(config(qwen)).moe_layers == (1, 5)
    llama = {
        "model_type": "llama4_text",
        "num_hidden_layers": 48,
        "interleave_moe_layer_step": 2,
        "num_local_experts": 128,
        "hidden_size": 5120,
        "intermediate_size": 8192,
    }
    model = find_model(config({"model_type": "llama4", "text_config": llama}))
    assert model.moe_layers == find_model("llama4-maverick").moe_layers
    assert model.expert_nbytes is None  # stacked: only a preset knows


NUMBERS = ("model_type", "num_hidden_layers", "num_logical_experts", "vocab_size")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({}, ("", None, None, None)),
        ({"num_experts": 8, "vocab_size": 9, "num_hidden_layers": 7}, ("", 7, 8, 9)),
        (
            {"num_experts": True, "vocab_size": "9", "num_hidden_layers": 0},
            ("", None, None, None),
        ),
        (
            {"num_experts": 8, "num_local_experts": 4, "num_hidden_layers": 7, "n_layers": 9},
            ("", None, None, None),
        ),
        ({"n_routed_experts": None, "moe_num_experts": 4}, ("", None, 4, None)),
        ({"model_type": "a", "text_config": None, "vocab_size": 9}, ("a", None, None, 9)),
        ({"model_type": "a", "text_config": 5, "vocab_size": 9}, ("a", None, None, 9)),
    ],
)
def test_what_a_config_says(config, content, expected):
    """Numbers that are positive integers, where no two names say different ones; nothing else."""
    found = read_config(Path(config(content)))
    assert tuple(getattr(found, name) for name in NUMBERS) == expected


def test_the_values_of_the_text_model_stand(config):
    """What a composite model says outside is of another part, but for how its weights are stored."""
    outside = {
        "model_type": "tower",
        "num_hidden_layers": 7,
        "num_experts": 3,
        "vocab_size": 5,
        "dtype": "float16",
        "quantization_config": {"quant_method": "fp8"},
    }
    found = read_config(Path(config({**outside, "text_config": {"model_type": "text", "num_experts": 8}})))
    values = tuple(getattr(found, name) for name in NUMBERS)
    assert values == ("text", None, 8, None)
    assert found.values["dtype"] == "float16"
    assert found.values["quantization_config"] == {"quant_method": "fp8"}
    text = {"model_type": "text", "dtype": "bfloat16", "quantization_config": None}
    found = read_config(Path(config({**outside, "text_config": text})))
    assert found.values["dtype"] == "bfloat16"
    assert found.values["quantization_config"] is None


def test_a_composite_model_as_transformers_reads_it(config):
    """The same numbers as those of the text model that transformers builds."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoConfig.for_model("llama4", text_config={"num_hidden_layers": 6})
    ours = read_config(Path(config(theirs.to_dict())))
    text = theirs.get_text_config()
    assert (ours.model_type, ours.num_hidden_layers) == (text.model_type, text.num_hidden_layers)
    assert (ours.num_logical_experts, ours.vocab_size) == (text.num_local_experts, text.vocab_size)


@pytest.mark.parametrize("text", ["{", "[]", "3", "[" * 10**5])
def test_a_config_beside_shards_that_cannot_be_read(tmp_path, text):
    """It is someone else's file: what cannot be read is not asked."""
    assert config_beside(tmp_path) is None
    (tmp_path / "config.json").write_text(text)
    assert config_beside(tmp_path) is None


def test_families_are_whole():
    """The key of an expert has its placeholders, and routers lie beside the experts."""
    for family in FAMILIES.values():
        if not family.key:
            continue
        assert {"{layer}", "{tensor}"} <= set(re.findall(r"\{\w+\}", family.key))
        assert family.key.startswith(f"{family.block}experts.")
        assert family.router or family.groups is None


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([], "no object"),
        ({"model_type": "bert"}, "'bert', and that is no family that is known; it has none of"),
        ({**CONFIGS[2][1], "num_hidden_layers": 0}, "'num_hidden_layers' is no number"),
        ({**CONFIGS[2][1], "num_hidden_layers": 10**9}, "'num_hidden_layers' is no number"),
        ({**CONFIGS[2][1], "num_local_experts": "8"}, "'num_local_experts' is no number"),
        ({**CONFIGS[0][1], "first_k_dense_replace": 61}, "no MoE layers"),
        ({**CONFIGS[0][1], "first_k_dense_replace": "x"}, "its layers cannot be told"),
        ({**CONFIGS[0][1], "moe_layer_freq": 0}, "its layers cannot be told"),
        ({**CONFIGS[1][1], "mlp_only_layers": [[0]]}, "its layers cannot be told"),
    ],
)
def test_a_config_that_describes_no_model(config, content, says):
    """EP118 with the key."""
    with pytest.raises(PlacementError, match=re.escape(says)) as caught:
        find_model(config(content))
    assert caught.value.code == "EP118"


MIXTRAL = PRESETS.path("mixtral-8x7b").read_text()


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ("eplb-model/1", "eplb-model/2", "does not say format"),
        ("num_experts", "experts_", "'num_experts' is missing"),
        ("hidden_size", "hidden", "'hidden' is unknown"),
        ("first = 0", "first = 40", "no first, last and step"),
        ("first = 0", "begin = 0", "no table of first, last and step"),
        ('"BF16", 14336', '"BF17", 14336', "no list of a dtype and sizes"),
        ('"BF16", 14336', '"BF16", -1', "a size that is none"),
        ("num_experts = 8", "num_experts = 0", "no number from 1"),
        ("[tensors]", "[tensors", "describes no model"),
    ],
)
def test_a_preset_that_is_none(tmp_path, before, after, says):
    """Anyone can add one, so anything may be in it."""
    path = tmp_path / "m.toml"
    path.write_text(MIXTRAL.replace(before, after))
    with pytest.raises(PlacementError, match=says) as caught:
        find_model(str(path))
    assert caught.value.code == "EP118"


def test_a_preset_of_ones_own(tmp_path):
    """A file like them, named by its path."""
    path = tmp_path / "mine.toml"
    path.write_text(MIXTRAL.replace("mixtral-8x7b", "mine"))
    assert find_model(str(path)).name == "mine"


def test_a_name_that_is_neither():
    """The presets are listed."""
    with pytest.raises(PlacementError, match="neither a preset nor a file") as caught:
        find_model("deepseek-v9")
    assert "deepseek-v3" in caught.value.hint
