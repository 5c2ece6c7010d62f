"""config.json: read in one way, and what it says of a model's layers and experts.

Which layers are MoE layers follows from other keys in each family, so only known families describe a model.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from eplb_cli.errors import CheckpointError, EplbError, PlacementError
from eplb_cli.files import read_small_file
from eplb_cli.formats.reading import json_value
from eplb_cli.models.families import FAMILIES, Config, Family
from eplb_cli.models.model import MAX_EXPERTS, MAX_LAYERS, Model, ModelTensor, malformed, number

MAX_CONFIG_NBYTES = 1 << 24
_MAX_SIZE = 1 << 24
_DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
_EXPERTS = ("n_routed_experts", "num_experts", "num_local_experts", "moe_num_experts")
"""How families, and versions of transformers, call E."""

_OF_ALL = ("quantization_config", "dtype", "torch_dtype")
"""What a composite model says once, for all its parts."""


@dataclass(frozen=True)
class ModelConfig:
    """What a config.json says of its text model.

    Attributes:
        path: the file.
        values: its keys; of a composite model those of the text model.
    """

    path: Path
    values: Config

    @property
    def model_type(self) -> str:
        """The family of the model, empty where it is not said."""
        found = self.values.get("model_type")
        return found if isinstance(found, str) else ""

    @property
    def num_hidden_layers(self) -> int | None:
        """Dense and MoE layers, where it is said."""
        return self._number("num_hidden_layers")

    @property
    def num_logical_experts(self) -> int | None:
        """E, where it is said."""
        return self._number(*_EXPERTS)

    @property
    def intermediate_size(self) -> int | None:
        """The width of an expert, where it is said."""
        return self._number("moe_intermediate_size", "intermediate_size")

    @property
    def vocab_size(self) -> int | None:
        """Rows of the embedding, where it is said."""
        return self._number("vocab_size")

    @property
    def quantization(self) -> object:
        """How weights are quantized, whatever stands there; None where they are not."""
        return self.values.get("quantization_config")

    @property
    def dtype(self) -> str | None:
        """The dtype of plain weights as safetensors calls it, where it is a known one."""
        return _DTYPES.get(str(self.values.get("dtype") or self.values.get("torch_dtype")))

    def _number(self, *names: str) -> int | None:
        """The first of these keys that is a positive integer."""
        values = (self.values.get(name) for name in names)
        return next((value for value in values if type(value) is int and value > 0), None)


Read = Callable[[Path, int], bytes]
"""How a file of at most so many bytes is read: some are compared with what is known of them."""


def read_config(path: Path, read: Read = read_small_file) -> ModelConfig:
    """Read a config.json; links are followed, as the cache of Hugging Face has them.

    Raises:
        PlacementError: EP118, it is no JSON object.
        CheckpointError: EP201 or EP204, it cannot be read.
    """
    content = read(Path(os.path.realpath(path)), MAX_CONFIG_NBYTES)
    raw = json_value(content, MAX_CONFIG_NBYTES, partial(malformed, path))
    if not isinstance(raw, dict):
        raise malformed(path, "it is no object")
    return ModelConfig(path, _of_text_model(raw))


def _of_text_model(raw: Config) -> Config:
    """The keys that are about the text model.

    In a composite model, transformers builds the text model from `text_config` and from nothing else: a
    number outside of it, such as a count of layers, may be that of another part (vision, audio). So the text
    model's own values stand, and what it leaves out is not known. Only how weights are stored is said once,
    outside, and holds for the text model too where that does not say it itself.
    """
    text = raw.get("text_config")
    if not isinstance(text, dict):
        return raw
    return {**{key: raw[key] for key in _OF_ALL if key in raw}, **text}


def config_beside(path: Path, read: Read = read_small_file) -> ModelConfig | None:
    """The config.json beside shards; None where there is none to be read, for it is someone else's file.

    Raises:
        CheckpointError: EP220, it changes meanwhile. BytesError: EP506, it is not what its manifest says.
    """
    try:
        return read_config(path / "config.json", read)
    except EplbError as error:
        if error.code in {"EP220", "EP506"}:
            raise
        return None


def read_model(path: Path, read: Read = read_small_file) -> Model:
    """The model that a config.json describes.

    Raises:
        PlacementError: EP118, it describes none, or one of a family that is not known.
        CheckpointError: EP220, it changes meanwhile.
    """
    try:
        config = read_config(path, read)
    except CheckpointError as error:
        if error.code == "EP220":
            raise
        raise malformed(path, str(error)[:300]) from error
    family = FAMILIES.get(config.model_type)
    if family is None:
        problem = f"its model_type is {config.values.get('model_type')!r}; known are {', '.join(FAMILIES)}"
        hint = "describe it in a file like those in eplb_cli/models/presets, and name that with --model"
        raise PlacementError("EP118", f"{path}: {problem}", hint)
    values = config.values
    hidden = number(path, values, "num_hidden_layers", MAX_LAYERS)
    experts = next((key for key in _EXPERTS if key in values), _EXPERTS[0])
    mtp = values.get("num_nextn_predict_layers") or 0
    size, width = (number(path, values, key, _MAX_SIZE) for key in ("hidden_size", family.intermediate))
    return Model(
        name=config.model_type,
        num_hidden_layers=hidden,
        moe_layers=_moe_layers(config, family, hidden),
        mtp_layers=tuple(range(hidden, hidden + mtp)) if type(mtp) is int and mtp < MAX_LAYERS else (),
        num_logical_experts=number(path, values, experts, MAX_EXPERTS),
        hidden_size=size,
        intermediate_size=width,
        experts=family.key,
        tensors=_tensors(config, family, size, width),
    )


def _moe_layers(config: ModelConfig, family: Family, hidden: int) -> tuple[int, ...]:
    try:
        layers = tuple(family.layers(config.values, hidden))
    except (TypeError, ZeroDivisionError) as error:
        raise malformed(config.path, f"its layers cannot be told: {error}") from error
    if not layers or not all(type(layer) is int and 0 <= layer < hidden for layer in layers):
        raise malformed(config.path, "it has no MoE layers, or some that are no layers")
    return layers


def _tensors(config: ModelConfig, family: Family, hidden: int, width: int) -> dict[str, ModelTensor]:
    """What an expert consists of, for plain weights and fp8 blocks; nothing where that is not known."""
    quantization = config.quantization
    tensors = {}
    for name in family.projections:
        shape = (hidden, width) if name == family.projections[-1] else (width, hidden)
        if quantization is None and config.dtype:
            tensors[f"{name}.weight"] = ModelTensor(config.dtype, shape)
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
