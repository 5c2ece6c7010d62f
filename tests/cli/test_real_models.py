"""Models as `transformers` saves them, through every step and back: their logits are the same bits."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_shard import assert_same

SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
NUM_EXPERTS = 4


def qwen3_moe():
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    return Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            **{**SMALL, "head_dim": 8},
            num_key_value_heads=2,
            moe_intermediate_size=16,
            intermediate_size=48,
            num_experts=NUM_EXPERTS,
            num_experts_per_tok=2,
            mlp_only_layers=[0],
        )
    )


def mixtral():
    from transformers import MixtralConfig, MixtralForCausalLM

    return MixtralForCausalLM(
        MixtralConfig(**SMALL, num_key_value_heads=2, intermediate_size=16, num_local_experts=NUM_EXPERTS)
    )


def deepseek_v3():
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    return DeepseekV3ForCausalLM(
        DeepseekV3Config(
            **SMALL,
            num_key_value_heads=4,
            intermediate_size=48,
            moe_intermediate_size=16,
            n_routed_experts=NUM_EXPERTS,
            n_group=2,
            topk_group=1,
            num_experts_per_tok=2,
            first_k_dense_replace=1,
            q_lora_rank=16,
            kv_lora_rank=8,
            qk_rope_head_dim=4,
            qk_nope_head_dim=4,
            v_head_dim=8,
        )
    )


def gpt_oss():
    from transformers import GptOssConfig, GptOssForCausalLM

    return GptOssForCausalLM(
        GptOssConfig(
            **SMALL,
            num_key_value_heads=2,
            head_dim=8,
            intermediate_size=32,
            num_local_experts=NUM_EXPERTS,
            max_position_embeddings=131072,
            layer_types=["sliding_attention", "full_attention"],
        )
    )


def glm4_moe():
    from transformers import Glm4MoeConfig, Glm4MoeForCausalLM

    return Glm4MoeForCausalLM(
        Glm4MoeConfig(
            **{**SMALL, "head_dim": 8},
            num_key_value_heads=2,
            intermediate_size=48,
            moe_intermediate_size=16,
            n_routed_experts=NUM_EXPERTS,
            n_group=2,
            topk_group=1,
            num_experts_per_tok=2,
            first_k_dense_replace=1,
        )
    )


MODELS = {
    "qwen3_moe": qwen3_moe,
    "mixtral": mixtral,
    "deepseek_v3": deepseek_v3,
    "gpt_oss": gpt_oss,
    "glm4_moe": glm4_moe,
}
HEADS = {"num_key_value_heads": 2, "head_dim": 8}
LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
}
MIXED = {"intermediate_size": 48, "moe_intermediate_size": 16}
PLAIN = {**HEADS, "intermediate_size": 16}
GROUPS = {"n_group": 2, "topk_group": 1, "n_shared_experts": 1}
INDEXER = {"index_n_heads": 2, "index_head_dim": 8, "index_topk": 16}
ATTENTION = {"layer_types": ["full_attention"] * 2}
BAKED: dict[str, tuple[str, dict[str, Any]]] = {
    "deepseek_v2": (
        "DeepseekV2Config",
        {**LATENT, **MIXED, **GROUPS, "first_k_dense_replace": 1, "topk_method": "group_limited_greedy"},
    ),
    "deepseek_v32": (
        "DeepseekV32Config",
        {**LATENT, **MIXED, **GROUPS, **INDEXER, "first_k_dense_replace": 1},
    ),
    "dots1": ("Dots1Config", {**HEADS, **MIXED, **GROUPS, **ATTENTION, "first_k_dense_replace": 1}),
    "flex_olmo": ("FlexOlmoConfig", {"intermediate_size": 16, "num_key_value_heads": 4, "pad_token_id": 0}),
    "glm4_moe_lite": (
        "Glm4MoeLiteConfig",
        {**LATENT, **MIXED, **GROUPS, "mlp_layer_types": ["dense", "sparse"]},
    ),
    "glm_moe_dsa": (
        "GlmMoeDsaConfig",
        {**LATENT, **MIXED, **GROUPS, **INDEXER, "mlp_layer_types": ["dense", "sparse"]},
    ),
    "jamba": (
        "JambaConfig",
        {
            "intermediate_size": 16,
            "num_key_value_heads": 2,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "attn_layer_period": 1,
            "attn_layer_offset": 0,
        },
    ),
    "mimo_v2_flash": ("MiMoV2FlashConfig", {**HEADS, **MIXED}),
    "minimax": ("MiniMaxConfig", {**PLAIN, **ATTENTION}),
    "minimax_m2": ("MiniMaxM2Config", PLAIN),
    "olmoe": ("OlmoeConfig", {"intermediate_size": 16, "num_key_value_heads": 4}),
    "phimoe": ("PhimoeConfig", {"intermediate_size": 16, "num_key_value_heads": 2}),
    "qwen2_moe": (
        "Qwen2MoeConfig",
        {**MIXED, "num_key_value_heads": 2, "shared_expert_intermediate_size": 24, "mlp_only_layers": [0]},
    ),
    "qwen3_next": (
        "Qwen3NextConfig",
        {
            **HEADS,
            **MIXED,
            "shared_expert_intermediate_size": 24,
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "layer_types": ["linear_attention", "full_attention"],
        },
    ),
    "solar_open": ("SolarOpenConfig", {**HEADS, **GROUPS, "moe_intermediate_size": 16}),
}
"""Families that differ in little but names: the class of the config, and what it is given."""


def baked_model(name: str):
    """A small model of a family that is baked; the number of experts is whatever the family calls it."""
    import transformers

    config_class, values = BAKED[name]
    config = getattr(transformers, config_class)(**SMALL, num_experts_per_tok=2, **values)
    counts = ("num_experts", "n_routed_experts", "num_local_experts")
    for key in [key for key in counts if hasattr(config, key)]:
        setattr(config, key, NUM_EXPERTS)
    return transformers.AutoModelForCausalLM.from_config(config)


CASES = [
    ("qwen3_moe", "sglang", "20KB"),
    ("qwen3_moe", "vllm", "20KB"),
    ("qwen3_moe", "huggingface", "5GB"),
    ("mixtral", "sglang", "20KB"),
    ("mixtral", "huggingface", "5GB"),
    ("deepseek_v3", "sglang", "20KB"),
    ("deepseek_v3", "huggingface", "5GB"),
    ("gpt_oss", "huggingface", "20KB"),
    ("gpt_oss", "huggingface", "5GB"),
]


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    """Neither progress bars nor the network."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def random_placement(seed: int, num_layers: int, num_ranks: int, slots: int) -> dict[str, object]:
    """Every expert in a slot of each layer, and replicas wherever they fall."""
    rng = random.Random(seed)
    rows = []
    for _ in range(num_layers):
        spare = num_ranks * slots - NUM_EXPERTS
        row = [*range(NUM_EXPERTS), *(rng.randrange(NUM_EXPERTS) for _ in range(spare))]
        rng.shuffle(row)
        rows.append(row)
    return {
        "format": "eplb-placement/1",
        "num_ranks": num_ranks,
        "num_logical_experts": NUM_EXPERTS,
        "physical_to_logical_map": rows,
    }


@pytest.mark.filterwarnings("ignore")  # of transformers, about itself
@pytest.mark.parametrize(("name", "engine", "file_size"), CASES)
def test_a_model_survives_the_whole_way(eplb, tmp_path, name, engine, file_size):
    """Shard → reshard → reshard to other ranks → merge → from_pretrained: bit-identical logits."""
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    torch.manual_seed(len(name))
    hf = tmp_path / "hf"
    MODELS[name]().to(torch.bfloat16).save_pretrained(hf, max_shard_size=file_size)
    num_layers = len(moe_layers(hf))
    steps = [(2, 3), (2, 3), (3, 2)]
    for number, (num_ranks, slots) in enumerate(steps):
        content = random_placement(number, num_layers, num_ranks, slots)
        (tmp_path / f"{number}.json").write_text(json.dumps(content))

    def done(*arguments):
        result = eplb(*arguments)
        assert result.code == 0, result.err

    done("shard", hf, tmp_path / "t0", "--placement", tmp_path / "0.json", "--engine", engine)
    for number in (1, 2):
        source, new = tmp_path / f"t{number - 1}", tmp_path / f"{number}.json"
        done("reshard", source, tmp_path / f"t{number}", "--new", new, "--backend", "file")
        done("verify", tmp_path / f"t{number}", "--against", source)
    done("merge", tmp_path / "t2", tmp_path / "merged")
    assert_same(hf, tmp_path / "merged")
    tokens = torch.arange(24).reshape(2, 12)
    with torch.no_grad():
        logits = [
            AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).eval()(tokens).logits
            for path in (hf, tmp_path / "merged")
        ]
    assert torch.equal(*logits)
    assert logits[0].abs().sum() > 0


@pytest.mark.filterwarnings("ignore")  # of transformers, about itself
@pytest.mark.parametrize("name", [*MODELS, *BAKED])
def test_a_baked_model_computes_the_same(eplb, tmp_path, monkeypatch, name):
    """Equal logits in float64 to rounding, and the same experts for every token up to the permutation."""
    torch = pytest.importorskip("torch")
    stay_in_float64(torch, monkeypatch)
    torch.manual_seed(sum(name.encode()))
    hf, out = tmp_path / "hf", tmp_path / "out"
    model = (MODELS[name]() if name in MODELS else baked_model(name)).to(torch.float64)
    with torch.no_grad():
        for key, parameter in [*model.named_parameters(), *model.named_buffers()]:
            if any(part in key for part in (".gate.", ".router.", "correction_bias")):
                scale = 0.3 if "bias" in key else 1.0  # no expert is chosen for its bias alone
                parameter.copy_(scale * torch.randn(parameter.shape, dtype=torch.float64))
    model.save_pretrained(hf)
    layers = sorted(moe_layers(hf))
    orders = {layer: [[3, 2, 0, 1], [1, 0, 3, 2]][number % 2] for number, layer in enumerate(layers)}
    (tmp_path / "new.json").write_text(json.dumps(list(orders.values())))
    result = eplb("bake", hf, out, "--placement", tmp_path / "new.json", "--num-ranks", 2)
    assert result.code == 0, result.err
    before, after = chosen_and_logits(hf), chosen_and_logits(out)
    assert before[0].keys() == after[0].keys() == set(layers)
    for layer, order in orders.items():
        as_before = torch.tensor(order)[after[0][layer]]
        assert torch.equal(as_before.sort(dim=-1).values, before[0][layer].sort(dim=-1).values)
        assert len(before[0][layer].unique()) == NUM_EXPERTS
    assert torch.allclose(before[1], after[1], rtol=1e-9, atol=1e-12)
    assert not all(torch.equal(before[0][layer], after[0][layer]) for layer in layers)


def stay_in_float64(torch, monkeypatch):
    """Routers go down to float32, where a sum depends on the order of the experts: not here."""

    def kept(function):
        def call(values, *arguments, **named):
            if values.dtype is torch.float64 and torch.float32 in arguments:
                return values
            if named.get("dtype") is torch.float32:
                named["dtype"] = torch.float64
            return function(values, *arguments, **named)

        return call

    to_float = torch.Tensor.float
    monkeypatch.setattr(torch.Tensor, "float", lambda at: at if at.dtype is torch.float64 else to_float(at))
    for owner, name in ((torch.nn.functional, "softmax"), (torch.Tensor, "softmax"), (torch.Tensor, "type")):
        monkeypatch.setattr(owner, name, kept(getattr(owner, name)))


def chosen_and_logits(path: Path):
    """By layer, the experts that each token was sent to; and the logits."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float64, experts_implementation="eager"
    ).eval()
    chosen = {}

    def watch(layer):
        def hook(module, arguments, named):
            values = [*arguments, *named.values()]
            (chosen[layer],) = [
                at for at in values if isinstance(at, torch.Tensor) and not at.is_floating_point()
            ]

        return hook

    for key, module in model.named_modules():
        if key.endswith(".experts"):
            module.register_forward_pre_hook(watch(int(key.split(".")[2])), with_kwargs=True)
    with torch.no_grad():
        logits = model(torch.arange(2, 50).reshape(2, 24)).logits  # 0 or 1 pads: its embedding is 0
    return chosen, logits


def moe_layers(path: Path) -> set[int]:
    """The layers of which a checkpoint has experts, told from its keys alone."""
    from safetensors import safe_open

    found = set()
    for file in path.glob("*.safetensors"):
        with safe_open(file, framework="numpy") as opened:
            found |= {int(key.split(".")[2]) for key in opened.keys() if ".experts." in key}  # noqa: SIM118
    return found
