"""Layout files: presets, and those of users; read with suspicion."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from eplb_cli.checkpoint.layout import FORMAT, Layout, is_any
from eplb_cli.checkpoint.layouts import LAYOUTS
from eplb_cli.errors import CheckpointError, did_you_mean
from eplb_cli.formats.reading import read_toml
from eplb_cli.models.names import split_expert_key

MAX_PATTERNS = 32
"""Patterns of files, and of experts: every key is tried with each of them."""

MAX_NAMES = 1000
"""Tensors, input scales, others and scales of a layout."""

_HUGGING_FACE = re.compile(r"(?:model|pytorch_model)(?:-[0-9]+-of-[0-9]+)?\.safetensors")
_LISTS = ("files", "experts", "tensors", "input_scales", "others", "maps")
_NUMBERS = ("", "row", "expert")
_MAPS = {"expert_map", "_expert_map"}
"""What vLLM calls the buffer that says which experts a rank has."""

_OPTIONAL: Mapping[str, Any] = {
    **{key: [] for key in _LISTS if key != "files"},
    "scales": {},
    "description": "",
    "numbers": "",
    "main": "",
}


def presets() -> list[Layout]:
    """All presets, by name."""
    return [preset(name) for name in LAYOUTS.names]


def preset(name: str) -> Layout:
    """The layout of this name that comes with eplb."""
    return read_layout(LAYOUTS.path(name))


def find_layout(name: str, shard_names: Iterable[str], keys: Iterable[str]) -> Layout:
    """The layout called `name`, the one in the file `name`, or for "auto" the one that fits.

    Raises:
        CheckpointError: EP206, there is none, or "auto" finds several.
    """
    if name in LAYOUTS.names:
        return preset(name)
    if name != "auto":
        if not Path(name).exists():
            names = ["auto", *LAYOUTS.names]
            hint = did_you_mean(name, names, f"layouts: {', '.join(names)}")
            raise CheckpointError("EP206", f"{name} is neither a layout nor a file", hint)
        return read_layout(Path(name))
    names, all_keys, known = list(shard_names), list(keys), presets()
    fitting = [layout for layout in known if _fits(layout, names, all_keys)]
    telling = [layout for layout in fitting if layout.tensors] or fitting
    if len(telling) == 1:
        return telling[0]
    raise _unfit(telling, known, names, all_keys)


def _fits(layout: Layout, names: list[str], keys: list[str]) -> bool:
    """Whether all files, and the tensors under modules of experts, may be of a layout."""
    if not all(layout.match_file(name) for name in names):
        return False
    taken_apart = (name for key in keys if (name := split_expert_key(key)))
    if any(name.number is not None for name in taken_apart) != bool(layout.numbers):
        return False
    found = (expert for key in keys if (expert := layout.match_key(key)))
    return any(not layout.tensors or is_any(expert.tensor, layout.tensors) for expert in found)


def _unfit(fitting: list[Layout], known: list[Layout], names: list[str], keys: list[str]) -> CheckpointError:
    """EP206 with a file and a key that say what the shards look like instead."""
    strange = [name for name in names if not any(layout.match_file(name) for layout in known)]
    strange_keys = [key for key in keys if not any(layout.is_known_other(key) for layout in known)]
    tensor = f"an expert tensor {strange_keys[0]!r}" if strange_keys else "and no tensor is an expert's"
    said = f"a file is named {min(strange or names, default='')!r}, {tensor}"
    found = " and ".join(layout.name for layout in fitting) or "no layout"
    hint = "name one with --layout, or describe yours in a TOML file: see docs/layouts.md"
    if any(_HUGGING_FACE.fullmatch(name) for name in strange):
        hint = "this looks like a Hugging Face checkpoint: `eplb shard` makes shards of it"
    return CheckpointError("EP206", f"{found} fits the shards: {said}", hint)


def read_layout(path: Path) -> Layout:
    """Read a layout file. Raises EP206 where it is malformed, EP201 or EP204 where it cannot be read."""
    return layout_from_json(read_toml(path, partial(malformed_layout, path)), path)


def layout_from_json(raw: object, where: object) -> Layout:
    """A layout from what `Layout.as_json` or a TOML file gives. Raises EP206."""
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise malformed_layout(where, f'it does not say format = "{FORMAT}"')
    fields: dict[str, Any] = {key: value for key, value in raw.items() if key != "format"}
    if unknown := fields.keys() - Layout.__dataclass_fields__.keys():
        raise malformed_layout(where, f"unknown key {min(unknown)!r}")
    fields = {**_OPTIONAL, **fields}
    for key in _LISTS:
        value = fields.get(key)
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) and item for item in value):
            raise malformed_layout(where, f"{key} is not a list of strings")
        fields[key] = tuple(value)
    scales = fields["scales"]
    if not isinstance(scales, dict) or not all(isinstance(weight, str) for weight in scales.values()):
        raise malformed_layout(where, "scales does not map scales to weights")
    if max(len(fields["files"]), len(fields["experts"])) > MAX_PATTERNS:
        raise malformed_layout(where, f"more than {MAX_PATTERNS} patterns of files or of experts")
    if sum(len(fields[key]) for key in ("tensors", "input_scales", "others", "scales", "maps")) > MAX_NAMES:
        raise malformed_layout(where, f"more than {MAX_NAMES:,} names")
    if not all(isinstance(fields.get(key), str) for key in ("name", "description", "main")):
        raise malformed_layout(where, "name, description or main is not a string")
    if fields["numbers"] not in _NUMBERS or (fields["numbers"] and fields["experts"]):
        raise malformed_layout(where, 'numbers is not "row" or "expert", or experts say it')
    _check_tensors(fields, where)
    _check_patterns(fields, where)
    return Layout(**fields)


def _check_tensors(fields: Mapping[str, Any], where: object) -> None:
    """Every name says one thing, and scales are only of tensors that there are."""
    if fields["experts"] and not fields["tensors"]:
        raise malformed_layout(where, "tensors is empty")
    if not fields["experts"] and (fields["input_scales"] or fields["scales"]):
        raise malformed_layout(where, "input_scales and scales are of tensors that experts have patterns for")
    names = [name for key in ("tensors", "input_scales", "others", "maps") for name in fields[key]]
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise malformed_layout(
            where, f"{repeated[0]!r} is named more than once in tensors, input_scales, others and maps"
        )
    if maps := _MAPS & {*fields["others"], *fields["tensors"]}:
        problem = f"{min(maps)!r} says which experts a rank has, and would go on saying it of OLD"
        raise malformed_layout(where, problem, f'name it in maps = ["{min(maps)}"]: it is written anew')
    scaled = {name for scale, weights in fields["scales"].items() for name in (scale, *weights.split())}
    if unknown := scaled - set(fields["tensors"]):
        raise malformed_layout(where, f"{min(unknown)!r} in scales is not one of the tensors")


def _check_patterns(fields: Mapping[str, Any], where: object) -> None:
    """Each placeholder once, the needed ones there, and one way of numbering for all patterns."""
    for pattern in fields["files"]:
        found = re.findall(r"\{(\w*)\}", pattern)
        if "/" in pattern or not _once(found, {"rank"}, {"rank", "part", "stage", "world"}):
            raise malformed_layout(where, f"{pattern!r} is no pattern of a file name with {{rank}}")
        if not pattern.endswith(".safetensors"):
            raise malformed_layout(where, f"{pattern!r} does not end in .safetensors")
    numberings = set()
    for pattern in fields["experts"]:
        found = re.findall(r"\{(\w*)\}", pattern)
        if not _once(found, {"layer", "tensor"}, {"layer", "tensor", "row", "expert"}) or len(found) > 3:  # noqa: PLR2004
            raise malformed_layout(where, f"{pattern!r} is no pattern of a key with {{layer}} and {{tensor}}")
        numberings.add(frozenset(found))
    if len(numberings) > 1 or not fields["files"]:
        raise malformed_layout(where, "files is empty, or the experts are numbered in two ways")
    starred = [*fields["others"], *(() if fields["experts"] else fields["tensors"])]
    if any(name.count("*") > 1 or name.find("*") not in (-1, len(name) - 1) for name in starred):
        raise malformed_layout(where, "in names, * stands only at the end")


def _once(found: list[str], needed: set[str], allowed: set[str]) -> bool:
    return needed <= set(found) <= allowed and len(set(found)) == len(found)


def malformed_layout(where: object, reason: str, hint: str = "see docs/layouts.md") -> CheckpointError:
    """EP206."""
    return CheckpointError("EP206", f"{where} is not a layout: {reason[:300]}", hint)
