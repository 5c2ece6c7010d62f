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


MODELS = {"qwen3_moe": qwen3_moe, "mixtral": mixtral, "deepseek_v3": deepseek_v3, "gpt_oss": gpt_oss}
CASES = [
    ("qwen3_moe", "sglang", "20KB"),
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
    import torch
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


def moe_layers(path: Path) -> set[int]:
    """The layers of which a checkpoint has experts, told from its keys alone."""
    from safetensors import safe_open

    found = set()
    for file in path.glob("*.safetensors"):
        with safe_open(file, framework="numpy") as opened:
            found |= {int(key.split(".")[2]) for key in opened.keys() if ".experts." in key}  # noqa: SIM118
    return found
