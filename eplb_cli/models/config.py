"""What the config.json of a model says of its layers and experts.

Which layers are MoE layers follows from other keys in each family, so only known families are read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eplb_cli.errors import PlacementError
from eplb_cli.models.model import MAX_EXPERTS, MAX_LAYERS, Model, ModelTensor, malformed, number, read_text

_MAX_SIZE = 1 << 24
_DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
_EXPERTS = ("n_routed_experts", "num_experts", "num_local_experts")
"""How families, and versions of transformers, call E."""

_GATED = ("gate_proj", "up_proj", "down_proj")
_NUMBERED = ("w1", "w3", "w2")

Config = Mapping[str, Any]


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
    """

    layers: Callable[[Config, int], list[int]]
    intermediate: str
    key: str
    projections: tuple[str, ...] = _GATED


_MLP = "model.layers.{layer}.mlp.experts.{expert}.{tensor}"
_SPARSE_MOE = "model.layers.{layer}.block_sparse_moe.experts.{expert}.{tensor}"
_DEEPSEEK = Family(_after_first, "moe_intermediate_size", _MLP)

FAMILIES = {
    "deepseek_v2": _DEEPSEEK,
    "deepseek_v3": _DEEPSEEK,
    "kimi_k2": _DEEPSEEK,
    "glm4_moe": _DEEPSEEK,
    "qwen3_moe": Family(_sparse, "moe_intermediate_size", _MLP),
    "mixtral": Family(_every, "intermediate_size", _SPARSE_MOE, _NUMBERED),
    "minimax_m2": Family(_every, "intermediate_size", _SPARSE_MOE, _NUMBERED),
    "gpt_oss": Family(_every, "intermediate_size", "model.layers.{layer}.mlp.experts.{tensor}", ()),
    "llama4_text": Family(
        _interleaved,
        "intermediate_size",
        "language_model.model.layers.{layer}.feed_forward.experts.{tensor}",
        (),
    ),
}


def read_config(path: Path) -> Model:
    """The model of a config.json, of all of it or of its `text_config`.

    Raises:
        PlacementError: EP118, it is none, or of a family that is not known.
    """
    config = read_config_json(path)
    family = FAMILIES.get(str(config.get("model_type")))
    if family is None:
        problem = f"its model_type is {config.get('model_type')!r}; known are {', '.join(FAMILIES)}"
        hint = "describe it in a file like those in eplb_cli/models/presets, and name that with --model"
        raise PlacementError("EP118", f"{path}: {problem}", hint)
    hidden = number(path, config, "num_hidden_layers", MAX_LAYERS)
    try:
        layers = tuple(family.layers(config, hidden))
    except (TypeError, ZeroDivisionError) as error:
        raise malformed(path, f"its layers cannot be told: {error}") from error
    if not layers or not all(type(layer) is int and 0 <= layer < hidden for layer in layers):
        raise malformed(path, "it has no MoE layers, or some that are no layers")
    experts = next((key for key in _EXPERTS if key in config), _EXPERTS[0])
    mtp = config.get("num_nextn_predict_layers") or 0
    return Model(
        name=str(config["model_type"]),
        num_hidden_layers=hidden,
        moe_layers=layers,
        mtp_layers=tuple(range(hidden, hidden + mtp)) if type(mtp) is int and mtp < MAX_LAYERS else (),
        num_logical_experts=number(path, config, experts, MAX_EXPERTS),
        hidden_size=number(path, config, "hidden_size", _MAX_SIZE),
        intermediate_size=number(path, config, family.intermediate, _MAX_SIZE),
        experts=family.key,
        tensors=_tensors(path, config, family),
    )


def read_config_json(path: Path) -> Config:
    """The part of a config.json that describes the language model. Raises EP118."""
    try:
        config = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise malformed(path, f"it is not JSON: {str(error)[:300]}") from error
    if isinstance(config, dict) and isinstance(config.get("text_config"), dict):
        quantization = {key: config[key] for key in ("quantization_config", "dtype") if key in config}
        config = {**quantization, **config["text_config"]}
    if not isinstance(config, dict):
        raise malformed(path, "it is no object")
    return config


def _tensors(path: Path, config: Config, family: Family) -> dict[str, ModelTensor]:
    """What an expert consists of, for plain weights and fp8 blocks; nothing where that is not known."""
    hidden = number(path, config, "hidden_size", _MAX_SIZE)
    width = number(path, config, family.intermediate, _MAX_SIZE)
    quantization = config.get("quantization_config")
    dtype = _DTYPES.get(str(config.get("dtype") or config.get("torch_dtype")))
    tensors = {}
    for name in family.projections:
        shape = (hidden, width) if name == family.projections[-1] else (width, hidden)
        if quantization is None and dtype:
            tensors[f"{name}.weight"] = ModelTensor(dtype, shape)
        elif isinstance(quantization, dict) and quantization.get("quant_method") == "fp8":
            tensors |= _fp8_tensors(name, shape, quantization.get("weight_block_size"))
    return tensors


def _fp8_tensors(name: str, shape: tuple[int, int], block: object) -> dict[str, ModelTensor]:
    if not isinstance(block, list) or not all(type(size) is int and size > 0 for size in block):
        return {}
    scales = tuple(-(-size // part) for size, part in zip(shape, block, strict=False))
    return {
        f"{name}.weight": ModelTensor("F8_E4M3", shape),
        f"{name}.weight_scale_inv": ModelTensor("F32", scales),
    }
