"""Tiny models with random weights, as Hugging Face checkpoints: their answers depend on every expert.

A new family is an entry of `FAMILIES`. Where each token goes to one expert and nothing else is added to that,
the placement changes no bit of an answer (`is_exact`); elsewhere sums are made in another order.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

EXPERTS = 16
SMALL = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "moe_intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "num_experts_per_tok": 2,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "norm_topk_prob": True,
}


@dataclass(frozen=True)
class Family:
    """A kind of model.

    Attributes:
        config: made of the values that differ from `SMALL`.
        dtype: of weights and computation.
        is_exact: whether answers are the same to the bit under every placement.
        can_bake: whether `eplb bake` knows its router.
    """

    config: Callable[..., Any]
    values: dict[str, Any]
    dtype: str = "float32"
    is_exact: bool = False
    can_bake: bool = True

    def make(self) -> Any:
        """The config."""
        return self.config(**{**SMALL, **self.values})


GROUPED = {"n_routed_experts": EXPERTS, "n_shared_experts": 1, "n_group": 4, "topk_group": 2}
FAMILIES = {
    "glm4_moe, top 1": Family(
        transformers.Glm4MoeConfig,
        {**GROUPED, "first_k_dense_replace": 1, "use_qk_norm": True, "num_experts_per_tok": 1},
        "bfloat16",
        is_exact=True,
    ),
    "glm4_moe": Family(
        transformers.Glm4MoeConfig,
        {**GROUPED, "first_k_dense_replace": 1, "use_qk_norm": True, "routed_scaling_factor": 1.5},
    ),
    "qwen3_moe": Family(
        transformers.Qwen3MoeConfig,
        {"num_experts": EXPERTS, "decoder_sparse_step": 1, "mlp_only_layers": [1]},
    ),
}


def write_model(path: Path, family: Family) -> Path:
    """Write a checkpoint, the same each time; shared experts of an exact model add nothing."""
    torch.manual_seed(1)
    models: Any = transformers.AutoModelForCausalLM
    model = models.from_config(family.make(), dtype=torch.float32)
    generator = torch.Generator().manual_seed(2)
    named = dict([*model.named_parameters(), *model.named_buffers()])
    with torch.no_grad():
        for name, tensor in named.items():
            if "inv_freq" in name:
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            tensor.copy_(_value(name, noise))
            if family.is_exact and "shared_expert" in name:
                tensor.zero_()
            if "e_score_correction_bias" not in name:
                tensor.data = tensor.data.to(getattr(torch, family.dtype))
    model.generation_config.do_sample = False
    model.save_pretrained(path)
    return path


def _value(name: str, noise: torch.Tensor) -> torch.Tensor:
    """Values of a size at which routing and answers differ from token to token."""
    if "norm" in name:
        return 1 + noise / 10
    if name.endswith("bias"):
        return noise / 10
    if "embed" in name:
        return noise
    return noise * (1.5 / math.sqrt(noise.shape[-1]))
