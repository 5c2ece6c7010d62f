"""Names of vLLM by family, a part of serve-check: `scripts/serve-check --only names`.

For each family of `eplb_cli/huggingface/engines/vllm.toml`: vLLM loads a tiny model on two ranks of data
parallelism and saves what they hold; `shard --engine vllm` has to write the same tensors, and stock vLLM has
to answer from those, to the bit, what it answers from the Hugging Face checkpoint.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file

import eplb_cli
from scripts.serving.bench import compare
from scripts.serving.mended_cpu import MENDS
from scripts.serving.served import MENDED, Answer, Job, serve
from scripts.serving.tiny_models import EXPERTS, GROUPED, Family, write_model
from scripts.serving.trees import WORK

NUM_RANKS = 2
LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 32,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 64,
    "v_head_dim": 64,
    "first_k_dense_replace": 1,
}
"""Latent attention, of a size that vLLM has."""

SHARED = {"shared_expert_intermediate_size": 96, "num_experts": EXPERTS, "decoder_sparse_step": 1}
V3 = {**GROUPED, **LATENT, "topk_method": "noaux_tc"}
FAMILIES = {
    "deepseek_v2": Family(
        transformers.DeepseekV2Config, {**GROUPED, **LATENT, "topk_method": "group_limited_greedy"}
    ),
    "deepseek_v3": Family(transformers.DeepseekV3Config, V3),
    "glm4_moe": Family(
        transformers.Glm4MoeConfig,
        {**GROUPED, "first_k_dense_replace": 1, "use_qk_norm": True, "attention_bias": True},
    ),
    "mixtral": Family(transformers.MixtralConfig, {"num_local_experts": EXPERTS}),
    "olmoe": Family(transformers.OlmoeConfig, {"num_experts": EXPERTS, "num_attention_heads": 2}),
    "qwen2_moe": Family(
        transformers.Qwen2MoeConfig, {**SHARED, "num_attention_heads": 2, "mlp_only_layers": [1]}
    ),
    "qwen3_moe": Family(
        transformers.Qwen3MoeConfig,
        {"num_experts": EXPERTS, "decoder_sparse_step": 1, "mlp_only_layers": [1]},
    ),
    "qwen3_next": Family(
        transformers.Qwen3NextConfig,
        {
            **SHARED,
            "mlp_only_layers": [],
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 128,
            "linear_value_head_dim": 128,
            "layer_types": ["linear_attention", "linear_attention", "full_attention", "full_attention"],
        },
        "bfloat16",  # vLLM's linear attention knows no other on the CPU
    ),
}


def save_by_rank() -> None:
    """`--load-format saving`, into a directory for each rank: all are rank 0 of tensor parallelism."""
    os.environ["SAVE_TO"] += f"/{os.environ['RANK']}"
    MENDS["saving"]()


MENDS[save_by_rank.__name__] = save_by_rank
DP = (*MENDED, "data_parallelism")


def tensors_of(files: list[Path]) -> dict[str, torch.Tensor]:
    """All tensors of some files."""
    return {key: tensor for file in files for key, tensor in load_file(file).items()}


def differing(ours: dict[str, torch.Tensor], saved: dict[str, torch.Tensor]) -> list[str]:
    """Keys that only one has, or of other shapes or values; like vLLM's loader this converts dtypes."""
    both = ours.keys() & saved.keys()
    unlike = [
        key
        for key in both
        if ours[key].shape != saved[key].shape or not torch.equal(ours[key].to(saved[key].dtype), saved[key])
    ]
    return sorted([*(ours.keys() ^ saved.keys()), *unlike])


def check(name: str, family: Family) -> str:
    """Why a family is not right; nothing where it is."""
    home = WORK / "families" / name
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    hf, dst = write_model(home / "hf", family), home / "dst"
    eplb_cli.shard(hf, dst, "linear", "vllm", eplb_cli.PlacementOptions(num_ranks=NUM_RANKS), durable=False)
    said: dict[str, Any] = {"tp": 1, "dp": NUM_RANKS, "dtype": family.dtype}
    saving: dict[str, Any] = {
        "environment": {"SAVE_TO": str(home / "saved")},
        "options": {"load_format": "saving"},
    }
    first = _answer(Job(f"{name}-saves", hf, mends=(*DP, save_by_rank.__name__), **said, **saving))
    for rank in range(NUM_RANKS):
        ours = tensors_of(sorted(dst.glob(f"model-rank-{rank}-part-*.safetensors")))
        saved = tensors_of(sorted((home / "saved" / str(rank)).glob("*.safetensors")))
        if unlike := differing(ours, saved):
            return f"rank {rank}: {len(unlike)} of {len(saved)} tensors are not vLLM's, {unlike[0]} for one"
    stock: dict[str, Any] = {
        "options": {"load_format": "sharded_state"},
        "pattern": "model-rank-RANK-part-{part}.safetensors",
    }
    likeness = compare(first, _answer(Job(f"{name}-stock", dst, mends=DP, **said, **stock)))
    return "" if likeness.is_identical else str(likeness)


def _answer(job: Job) -> Answer:
    answer = serve(job, WORK / "answers")[0]
    if answer.error:
        raise RuntimeError(f"{job.name}: {answer.error}")
    return answer


def outcome(name: str) -> tuple[str, bool]:
    """What came of a family, and whether that is right."""
    try:
        problem = check(name, FAMILIES[name])
    except (RuntimeError, eplb_cli.EplbError) as error:
        problem = str(error)
    return problem or "vLLM's own tensors; identical answers from them", not problem
