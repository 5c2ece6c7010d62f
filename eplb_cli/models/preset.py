"""Models by name: presets, files like them, and config.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from eplb_cli.errors import PlacementError, did_you_mean
from eplb_cli.files import read_small_file
from eplb_cli.formats.budget import MAX_TOML_NBYTES
from eplb_cli.formats.reading import toml_value
from eplb_cli.models.model import (
    MAX_EXPERTS,
    MAX_LAYERS,
    Model,
    ModelTensor,
    malformed,
    number,
    read_model_file,
)
from eplb_cli.models.presets import PRESETS

FORMAT = "eplb-model/1"
_REQUIRED = {"format", "name", "num_hidden_layers", "moe_layers", "num_experts", "experts"}
_OPTIONAL = {
    "tensors",
    "description",
    "source",
    "mtp_layers",
    "hidden_size",
    "moe_intermediate_size",
    "num_groups",
}


def find_model(name: str, read: Callable[[Path, int], bytes] = read_small_file) -> Model:
    """The preset called `name`, or the model that a TOML file or a config.json describes.

    Args:
        read: how a config.json is read, see `eplb_cli.models.config`.

    Raises:
        PlacementError: EP118, there is none of that name, or the file cannot be used.
    """
    if name in PRESETS.names:
        return read_preset(PRESETS.path(name))
    path = Path(name)
    if path.is_dir():
        path /= "config.json"
    if not path.is_file():
        presets_there_are = f"presets: {', '.join(PRESETS.names)}; or name a config.json"
        hint = did_you_mean(name, PRESETS.names, presets_there_are)
        raise PlacementError("EP118", f"{name} is neither a preset nor a file", hint)
    if path.suffix == ".toml":
        return read_preset(path)
    from eplb_cli.models.config import read_model

    return read_model(path, read)


def presets() -> list[Model]:
    """All presets, by name."""
    return [read_preset(PRESETS.path(name)) for name in PRESETS.names]


def read_preset(path: Path) -> Model:
    """The model of a TOML file. Raises EP118."""
    raw = toml_value(read_model_file(path, MAX_TOML_NBYTES), partial(malformed, path))
    if raw.get("format") != FORMAT:
        raise malformed(path, f'it does not say format = "{FORMAT}"')
    if wrong := (_REQUIRED - raw.keys()) or (raw.keys() - _REQUIRED - _OPTIONAL):
        state = "missing" if wrong <= _REQUIRED else "unknown"
        raise malformed(path, f"{min(wrong)!r} is {state}")
    for key in ("name", "experts", "description", "source"):
        if not isinstance(raw.get(key, ""), str):
            raise malformed(path, f"{key!r} is no string")
    hidden = number(path, raw, "num_hidden_layers", MAX_LAYERS)
    layers = _layers(path, raw, "moe_layers")
    if layers[-1] >= hidden:
        raise malformed(path, f"'moe_layers' has {layers[-1]:,}, and there are {hidden:,} layers")
    return Model(
        name=raw["name"],
        num_hidden_layers=hidden,
        moe_layers=layers,
        mtp_layers=_layers(path, raw, "mtp_layers") if "mtp_layers" in raw else (),
        num_logical_experts=number(path, raw, "num_experts", MAX_EXPERTS),
        hidden_size=raw.get("hidden_size"),
        intermediate_size=raw.get("moe_intermediate_size"),
        experts=raw["experts"],
        tensors=_tensors(path, raw["tensors"]) if "tensors" in raw else {},
        description=raw.get("description", ""),
        source=raw.get("source", ""),
        num_groups=number(path, raw, "num_groups", MAX_EXPERTS) if "num_groups" in raw else None,
    )


def _layers(path: Path, raw: Mapping[str, Any], key: str) -> tuple[int, ...]:
    """Layers, ascending: a range, a number, or a list of them."""
    value = raw[key]
    layers = [
        layer for part in (value if isinstance(value, list) else [value]) for layer in _range(path, part, key)
    ]
    if not layers or any(later <= layer for layer, later in pairwise(layers)):
        raise malformed(path, f"{key!r} has no layers, or not in ascending order")
    return tuple(layers)


def _range(path: Path, part: object, key: str) -> range:
    """The layers of a number, or of a table { first, last, step }, both ends included."""
    if type(part) is int:
        part = {"first": part, "last": part}
    if not isinstance(part, dict) or not {"first", "last"} <= part.keys() <= {"first", "last", "step"}:
        raise malformed(path, f"{key!r} is no table of first, last and step, and no list of layers")
    first, last, step = part["first"], part["last"], part.get("step", 1)
    if not all(type(value) is int for value in (first, last, step)) or not (
        0 <= first <= last < MAX_LAYERS and step >= 1
    ):
        raise malformed(path, f"{key!r} has no first, last and step of layers")
    return range(first, last + 1, step)


def _tensors(path: Path, raw: object) -> dict[str, ModelTensor]:
    """Tensors from `name = [dtype, sizes...]`."""
    from eplb_cli.formats.safetensors_header import DTYPE_BITS

    if not isinstance(raw, dict) or not raw:
        raise malformed(path, "'tensors' is no table of tensors")
    found = {}
    for name, value in raw.items():
        if not isinstance(value, list) or not value or str(value[0]) not in DTYPE_BITS:
            raise malformed(path, f"the tensor {name!r} is no list of a dtype and sizes")
        if not all(type(size) is int and 0 < size < 1 << 32 for size in value[1:]):
            raise malformed(path, f"the tensor {name!r} has a size that is none")
        found[name] = ModelTensor(value[0], tuple(value[1:]))
    return found
