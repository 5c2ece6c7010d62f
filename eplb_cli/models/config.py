"""config.json: read in one way, and what it says of a model's layers and experts with the files beside it.

Where tensors are beside it, their names say which layers have experts, and how many; the keys of the file may
not contradict them. Without tensors the keys have to say it (`eplb_cli.models.layers`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from eplb_cli.errors import CheckpointError, EplbError, PlacementError
from eplb_cli.files import read_small_file
from eplb_cli.formats.reading import json_value
from eplb_cli.models.families import FAMILIES, Family
from eplb_cli.models.forms import expert_tensors
from eplb_cli.models.layers import moe_layers
from eplb_cli.models.model import MAX_EXPERTS, MAX_LAYERS, Model, ModelTensor, malformed, number
from eplb_cli.models.weights import Weights, weights_beside
from eplb_cli.values import dataclass

CONFIG_NAME = "config.json"
MAX_CONFIG_NBYTES = 1 << 24
_QUANTIZATION_NAME = "hf_quant_config.json"
_MAX_SIZE = 1 << 24
_EXPERTS = ("n_routed_experts", "num_experts", "num_local_experts", "moe_num_experts")
"""How families, and versions of transformers, call E."""

_LAYERS = ("num_hidden_layers", "n_layers", "num_layers", "n_layer")
_MTP = ("num_nextn_predict_layers", "mtp_num_hidden_layers")
_TEXT_MODELS = ("thinker_config", "text_config", "language_config", "llm_config")
"""Where composite models have their text model, from the outside in."""

_OF_ALL = ("quantization_config", "moe_quant_algo", "expert_dtype", "dtype", "torch_dtype")
"""What a composite model says once, for all its parts."""

Config = Mapping[str, Any]


@dataclass(frozen=True)
class ModelConfig:
    """What a config.json says of its text model.

    Attributes:
        path: the file.
        values: its keys; of a composite model those of the text model.
        quantized: what hf_quant_config.json beside it holds; None where nobody has asked, or there is none.
    """

    path: Path
    values: Config
    quantized: object = None

    @property
    def model_type(self) -> str:
        """The family of the model, empty where it is not said."""
        found = self.values.get("model_type")
        return found if isinstance(found, str) else ""

    @property
    def family(self) -> Family | None:
        """What is known of the family."""
        return FAMILIES.get(self.model_type)

    @property
    def num_hidden_layers(self) -> int | None:
        """Dense and MoE layers, where it is said; None where two keys say different numbers."""
        return self._agreed(*(_LAYERS if self.family is None else (self.family.hidden,)))

    @property
    def num_logical_experts(self) -> int | None:
        """E, where it is said; None where two keys say different numbers."""
        return self._agreed(*_EXPERTS)

    @property
    def intermediate_size(self) -> int | None:
        """The width of an expert, where it is said."""
        if self.family is not None:
            return self._agreed(self.family.intermediate)
        return self._agreed("moe_intermediate_size") or self._agreed("intermediate_size")

    @property
    def hidden_size(self) -> int | None:
        """The width of the model, where it is said."""
        return self._agreed("hidden_size")

    @property
    def num_expert_groups(self) -> int | None:
        """Groups of experts that the router chooses first: 1 where it has none, None if nobody has looked."""
        if self.family is None:
            return None
        count = self.values.get(self.family.groups) if self.family.groups else None
        return count if type(count) is int else 1

    @property
    def vocab_size(self) -> int | None:
        """Rows of the embedding, where it is said."""
        return self._agreed("vocab_size")

    def _agreed(self, *names: str) -> int | None:
        """The positive integer that these keys say."""
        values = {value for name in names if type(value := self.values.get(name)) is int and value > 0}
        return values.pop() if len(values) == 1 else None


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
    for key in _TEXT_MODELS:
        text = raw.get(key)
        if isinstance(text, dict):
            raw = {**{key: raw[key] for key in _OF_ALL if key in raw}, **text}
    inner = raw.get("ffn_config")  # DBRX
    return {**inner, **raw} if isinstance(inner, dict) else raw


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
    """The model that a config.json describes, together with the tensors and hf_quant_config.json beside it.

    Raises:
        PlacementError: EP118, it describes none, says not which layers have experts, or contradicts tensors.
        CheckpointError: EP220, a file changes meanwhile. BytesError: EP506, it is not what its manifest says.
    """
    try:
        config, weights = read_config(path, read), None
        if path.name == CONFIG_NAME:
            config = replace(config, quantized=_quantized(path.with_name(_QUANTIZATION_NAME), read))
            weights = weights_beside(path, read)
    except CheckpointError as error:
        if error.code == "EP220":
            raise
        raise malformed(path, str(error)[:300]) from error
    if weights is None and config.family is None and not any(key in config.values for key in _EXPERTS):
        raise _unsaid(config, f"it has none of {', '.join(_EXPERTS)}")
    hidden = _hidden(config)
    said = _said_layers(config, hidden)
    if weights is not None:
        return replace(_of_weights(config, weights, hidden, said), family=config.model_type)
    if isinstance(said, str):
        raise _unsaid(config, said)
    return replace(_of_keys(config, hidden, said), family=config.model_type)


def _unsaid(config: ModelConfig, reason: str) -> PlacementError:
    """EP118 for a file that leaves open what the model is."""
    kind = repr(config.values.get("model_type"))[:80]
    what = f"its model_type is {kind}" + ("" if config.family else ", and that is no family that is known")
    hint = "name a directory that has its weights or their index too, or describe it in a file like those in "
    return PlacementError("EP118", f"{config.path}: {what}; {reason}", f"{hint}eplb_cli/models/presets")


def _quantized(path: Path, read: Read) -> object:
    """What hf_quant_config.json holds, None where there is none. Raises EP118."""
    if not os.path.lexists(path):
        return None
    return json_value(
        read(Path(os.path.realpath(path)), MAX_CONFIG_NBYTES), MAX_CONFIG_NBYTES, partial(malformed, path)
    )


def _hidden(config: ModelConfig) -> int:
    """Dense and MoE layers. Raises EP118."""
    keys = _LAYERS if config.family is None else (config.family.hidden,)
    there = [key for key in keys if config.values.get(key) is not None]
    blocks = config.values.get("layers_block_type")  # Nemotron, saved by transformers 5, has no number
    if not there and isinstance(blocks, list):
        return number(config.path, {"layers_block_type": len(blocks)}, "layers_block_type", MAX_LAYERS)
    return _one_number(config, there or list(keys[:1]), MAX_LAYERS)


def _one_number(config: ModelConfig, keys: list[str], most: int) -> int:
    """The number that these keys say. Raises EP118 where one is none, or they differ."""
    values = {key: number(config.path, config.values, key, most) for key in keys}
    if len(set(values.values())) > 1:
        raise malformed(config.path, f"{' and '.join(values)} say different numbers")
    return next(iter(values.values()))


def _said_layers(config: ModelConfig, hidden: int) -> tuple[int, ...] | str:
    """The MoE layers by the keys, or why they say none. Raises EP118."""
    try:
        return moe_layers(config.values, hidden, None if config.family is None else config.family.needs)
    except ValueError as error:
        raise malformed(config.path, f"its layers cannot be told: {str(error)[:300]}") from error


def _said_experts(config: ModelConfig, hidden: int) -> int | None:
    """E by the keys, None where there is none of them. Raises EP118."""
    there = {
        key: _uniform(config.values[key], hidden) for key in _EXPERTS if config.values.get(key) is not None
    }
    return _one_number(ModelConfig(config.path, there), list(there), MAX_EXPERTS) if there else None


def _uniform(value: object, hidden: int) -> object:
    """A number that a list says for every layer, as Hunyuan has it."""
    alike = isinstance(value, list) and len(value) == hidden and all(entry == value[0] for entry in value)
    return value[0] if alike and isinstance(value, list) else value


def _of_keys(config: ModelConfig, hidden: int, layers: tuple[int, ...]) -> Model:
    """The model that the keys alone describe. Raises EP118."""
    experts = _said_experts(config, hidden)
    if experts is None:
        raise malformed(config.path, f"none of {', '.join(_EXPERTS)} says how many experts it has")
    counts = (config.values.get(key) for key in _MTP)
    mtp = next((count for count in counts if type(count) is int and 0 < count < MAX_LAYERS), 0)
    return _model(config, hidden, layers, tuple(range(hidden, hidden + mtp)), experts)


def _of_weights(config: ModelConfig, weights: Weights, hidden: int, said: tuple[int, ...] | str) -> Model:
    """The model that the tensors describe. Raises EP118 where the keys say something else."""
    names = weights.layers(hidden)
    layers = tuple(names.placed)
    if isinstance(said, tuple) and said != layers:
        different = min(set(said) ^ set(layers))
        raise _contradiction(config, f"layer {different} has experts in only one of the two")
    experts, found = _said_experts(config, hidden), weights.num_experts(names)
    if None not in (experts, found) and experts != found:
        raise _contradiction(config, f"it says {experts:,} experts, and there are {found:,}")
    count = found or experts
    if count is None:
        raise malformed(config.path, "neither its keys nor the tensors beside it say how many experts it has")
    model = _model(config, hidden, layers, tuple(names.beside), count)
    tensors = weights.tensors(names, count) if weights.entries else model.tensors
    return replace(model, experts=weights.template(names), tensors=tensors)


def _contradiction(config: ModelConfig, problem: str) -> PlacementError:
    hint = "are the weights beside it those of this model?"
    return PlacementError("EP118", f"{config.path} contradicts the tensors beside it: {problem}", hint)


def _model(
    config: ModelConfig, hidden: int, layers: tuple[int, ...], mtp: tuple[int, ...], experts: int
) -> Model:
    family = config.family or Family(projections=())
    inputs = next((key for key in family.inputs if config.values.get(key) is not None), None)
    size = None if inputs is None else number(config.path, config.values, inputs, _MAX_SIZE)
    width = _uniform(config.values.get(family.intermediate), hidden)
    if width is not None:
        width = number(config.path, {family.intermediate: width}, family.intermediate, _MAX_SIZE)
    return Model(
        name=config.model_type,
        num_hidden_layers=hidden,
        moe_layers=layers,
        mtp_layers=mtp,
        num_logical_experts=experts,
        hidden_size=size,
        intermediate_size=width,
        experts=family.key,
        tensors=_tensors(config, family, (size, width), layers),
        num_groups=config.num_expert_groups,
    )


def _tensors(
    config: ModelConfig, family: Family, shape: tuple[int | None, int | None], layers: tuple[int, ...]
) -> dict[str, ModelTensor]:
    """What an expert consists of by the keys; nothing where that is not certain."""
    hidden, width = shape
    if hidden is None or width is None:
        return {}
    return expert_tensors(config.values, family, (hidden, width), layers, config.quantized)
