"""What the tensors of an expert are where its weights are stored in fewer bits, as far as that is certain.

::

    out, in = 2048, 7168
    bf16      weight BF16 (2048, 7168)
    fp8       weight F8_E4M3 (2048, 7168)       weight_scale_inv F32 (16, 56)
    NVFP4     weight U8 (2048, 3584)            weight_scale F8_E4M3 (2048, 448)
              weight_scale_2 F32 ()             input_scale F32 ()

The files that say it may contradict each other: `hf_quant_config.json` is written last, by whoever made the
weights, over a config.json that still speaks of the ones before; and `moe_quant_algo` is about experts alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from eplb_cli.models.exclusions import may_exclude
from eplb_cli.models.families import Family
from eplb_cli.models.model import ModelTensor

Tensors = dict[str, tuple[str, tuple[int, ...]]]
"""Dtypes and shapes by what stands behind the projection."""

Form = Callable[[int, int], Tensors | None]
"""The tensors of a projection to so many outputs from so many inputs; None where these do not divide."""

_PLAIN = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
_EXCLUSIONS = (
    "ignore",
    "exclude_modules",
    "modules_to_not_convert",
    "ignored_layers",
    "modules_to_not_quantize",
)
_BIASES = ("mlp_bias", "use_bias", "moe_bias", "use_mlp_bias")
"""With one of these an expert may have tensors that are not counted here."""

_NVFP4_GROUP, _MXFP4_GROUP = 16, 32
_ONE = ("F32", ())


def expert_tensors(
    config: Mapping[str, Any], family: Family, shape: tuple[int, int], layers: Iterable[int], beside: object
) -> dict[str, ModelTensor]:
    """What an expert consists of; nothing where that is not certain.

    Args:
        config: the keys of config.json about the text model.
        shape: the width of what an expert gets, and its own.
        layers: that have experts.
        beside: what hf_quant_config.json holds, None where there is none.
    """
    if not family.projections or not family.key or any(config.get(key) for key in _BIASES):
        return {}
    quantizations = [
        _inner(value) for value in (config.get("quantization_config"), beside) if value is not None
    ]
    form = _form(config, family, quantizations)
    names = [family.block.replace("{layer}", str(layer)) + "experts.0." for layer in layers]
    modules = [name + projection for name in names for projection in family.projections]
    excluded = (said.get(key) for said in quantizations for key in _EXCLUSIONS)
    if form is None or any(may_exclude(patterns, modules) for patterns in excluded):
        return {}
    tensors: dict[str, ModelTensor] = {}
    for name in family.projections:
        width = shape if name == family.projections[-1] else shape[::-1]
        found = form(*width)
        if found is None:
            return {}
        tensors |= {f"{name}.{end}": ModelTensor(*tensor) for end, tensor in found.items()}
    return tensors


def _inner(value: object) -> dict[str, Any]:
    """What is said of a quantization, which hf_quant_config.json has one level down; nothing in no object."""
    found = value.get("quantization", value) if isinstance(value, dict) else None
    return found if isinstance(found, dict) else {}


def _form(config: Mapping[str, Any], family: Family, quantizations: list[dict[str, Any]]) -> Form | None:
    for said in (config, *quantizations):
        if said.get("moe_quant_algo") is not None:
            return _of_modelopt({**said, "quant_algo": said["moe_quant_algo"]})
    dtypes = [
        said["expert_dtype"] for said in (config, *quantizations) if said.get("expert_dtype") is not None
    ]
    if dtypes:
        return _fp4_of_deepseek if family.own_fp4 and dtypes == ["fp4"] else None
    if not quantizations:
        dtype = _PLAIN.get(str(config.get("dtype") or config.get("torch_dtype")))
        return None if dtype is None else _plain(dtype)
    said = quantizations[-1]
    if "quant_algo" in said:
        return _of_modelopt(said)
    if said.get("quant_method") == "fp8":
        return _of_blocks(said.get("weight_block_size"), family.block_scale)
    return _of_compressed_tensors(said) if said.get("quant_method") == "compressed-tensors" else None


def _of_modelopt(said: Mapping[str, Any]) -> Form | None:
    """The forms of NVIDIA's ModelOpt; None for mixed ones, and for those nobody has looked at."""
    group = said.get("group_size")
    if said["quant_algo"] == "NVFP4":
        return _nvfp4 if group in (None, _NVFP4_GROUP) else None
    return _fp8_of_modelopt if said["quant_algo"] == "FP8" else None


def _of_blocks(block: object, scale: str | None) -> Form | None:
    if (
        scale is None
        or not isinstance(block, list)
        or not all(type(size) is int and size > 0 for size in block)
    ):
        return None
    return _blocks(block, scale) if len(block) == 2 else None  # noqa: PLR2004 - out and in


def _of_compressed_tensors(said: Mapping[str, Any]) -> Form | None:
    """The 4-bit floats of compressed-tensors, where one group of rules is for all linear layers.

    Not int4: some of its files have the shape of a weight as I32, others as I64.
    """
    groups = said.get("config_groups")
    group = next(iter(groups.values())) if isinstance(groups, dict) and len(groups) == 1 else None
    weights = group.get("weights") if isinstance(group, dict) else None
    if not isinstance(group, dict) or not isinstance(weights, dict) or group.get("targets") != ["Linear"]:
        return None
    kind = (said.get("format"), weights.get("num_bits"), weights.get("type"), weights.get("group_size"))
    if kind == ("nvfp4-pack-quantized", 4, "float", _NVFP4_GROUP):
        return _nvfp4_with_inputs if group.get("input_activations") else _nvfp4_weights
    return _mxfp4 if kind == ("mxfp4-pack-quantized", 4, "float", _MXFP4_GROUP) else None


def _plain(dtype: str) -> Form:
    return lambda rows, columns: {"weight": (dtype, (rows, columns))}


def _blocks(block: list[int], scale: str) -> Form:
    def form(rows: int, columns: int) -> Tensors:
        scales = (-(-rows // block[0]), -(-columns // block[1]))
        return {"weight": ("F8_E4M3", (rows, columns)), "weight_scale_inv": (scale, scales)}

    return form


def _fp8_of_modelopt(rows: int, columns: int) -> Tensors:
    return {"weight": ("F8_E4M3", (rows, columns)), "weight_scale": _ONE, "input_scale": _ONE}


def _halves(name: str, dtype: str, scale: tuple[str, str, int], rows: int, columns: int) -> Tensors | None:
    """Two weights in a byte, and a scale for each group in a row."""
    scale_name, scale_dtype, group = scale
    if columns % group:
        return None
    return {name: (dtype, (rows, columns // 2)), scale_name: (scale_dtype, (rows, columns // group))}


def _nvfp4(rows: int, columns: int) -> Tensors | None:
    found = _halves("weight", "U8", ("weight_scale", "F8_E4M3", _NVFP4_GROUP), rows, columns)
    return found and {**found, "weight_scale_2": _ONE, "input_scale": _ONE}


def _nvfp4_weights(rows: int, columns: int) -> Tensors | None:
    found = _halves("weight_packed", "U8", ("weight_scale", "F8_E4M3", _NVFP4_GROUP), rows, columns)
    return found and {**found, "weight_global_scale": ("F32", (1,))}


def _nvfp4_with_inputs(rows: int, columns: int) -> Tensors | None:
    found = _nvfp4_weights(rows, columns)
    return found and {**found, "input_global_scale": ("F32", (1,))}


def _mxfp4(rows: int, columns: int) -> Tensors | None:
    return _halves("weight_packed", "U8", ("weight_scale", "U8", _MXFP4_GROUP), rows, columns)


def _fp4_of_deepseek(rows: int, columns: int) -> Tensors | None:
    return _halves("weight", "I8", ("scale", "F8_E8M0", _MXFP4_GROUP), rows, columns)
