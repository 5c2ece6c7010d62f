"""Families of models by `model_type`: how each says what it is, and what its tensors are called.

The one table of them: a new family is one entry of `FAMILIES`. What an entry leaves out is not known of the
family, and whoever needs it refuses the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

_GATED = ("gate_proj", "up_proj", "down_proj")
_NUMBERED = ("w1", "w3", "w2")

Config = Mapping[str, Any]
"""The keys of a config.json that are about the text model."""


def _after_first(config: Config, hidden: int) -> list[int]:
    """The first layers are dense, the others MoE layers, or each `moe_layer_freq`-th of them."""
    first, step = config.get("first_k_dense_replace", 0), config.get("moe_layer_freq", 1)
    return [layer for layer in range(hidden) if layer >= first and layer % step == 0]


def _sparse(config: Config, hidden: int) -> list[int]:
    """Every `decoder_sparse_step`-th layer that is not listed as dense."""
    step, dense = config.get("decoder_sparse_step", 1), set(config.get("mlp_only_layers") or [])
    return [layer for layer in range(hidden) if (layer + 1) % step == 0 and layer not in dense]


def _interleaved(config: Config, hidden: int) -> list[int]:
    """The layers that are listed, or every `interleave_moe_layer_step`-th one."""
    step = config.get("interleave_moe_layer_step", 1)
    return config.get("moe_layers") or list(range(step - 1, hidden, step))


def _every(config: Config, hidden: int) -> list[int]:
    del config
    return list(range(hidden))


@dataclass(frozen=True)
class Family:
    """How models of one `model_type` say what they are.

    Attributes:
        layers: which layers are MoE layers.
        intermediate: the key for the width of an expert.
        key: the key of an expert tensor.
        projections: gate, up and down, as keys call them; none where experts are stacked.
        router: how keys of tensors with a row for each expert end; none where nobody has looked.
        groups: the key for the number of groups of experts that the router chooses first.
    """

    layers: Callable[[Config, int], list[int]]
    intermediate: str
    key: str
    projections: tuple[str, ...] = _GATED
    router: tuple[str, ...] = ()
    groups: str | None = None

    @property
    def block(self) -> str:
        """What the keys of experts, routers and shared experts begin with, with {layer}."""
        return self.key.partition("experts.")[0]

    @property
    def routers(self) -> tuple[str, ...]:
        """The templates of tensors with a row for each expert, with {layer}."""
        return tuple(self.block + end for end in self.router)


_MLP = "model.layers.{layer}.mlp.experts.{expert}.{tensor}"
_SPARSE_MOE = "model.layers.{layer}.block_sparse_moe.experts.{expert}.{tensor}"
_GATE = ("gate.weight",)
_GROUPED = Family(
    _after_first,
    "moe_intermediate_size",
    _MLP,
    router=("gate.weight", "gate.e_score_correction_bias"),
    groups="n_group",
)

FAMILIES = {
    "deepseek_v2": Family(_after_first, "moe_intermediate_size", _MLP),
    "deepseek_v3": _GROUPED,
    "deepseek_v32": Family(_after_first, "moe_intermediate_size", _MLP),
    "kimi_k2": _GROUPED,
    "glm4_moe": _GROUPED,
    "qwen3_moe": Family(_sparse, "moe_intermediate_size", _MLP, router=_GATE),
    "mixtral": Family(_every, "intermediate_size", _SPARSE_MOE, _NUMBERED, router=_GATE),
    "minimax_m2": Family(_every, "intermediate_size", _SPARSE_MOE, _NUMBERED),
    "gpt_oss": Family(
        _every,
        "intermediate_size",
        "model.layers.{layer}.mlp.experts.{tensor}",
        projections=(),
        router=("router.weight", "router.bias"),
    ),
    "llama4_text": Family(
        _interleaved,
        "intermediate_size",
        "language_model.model.layers.{layer}.feed_forward.experts.{tensor}",
        projections=(),
    ),
}
"""By the `model_type` of the text model."""
