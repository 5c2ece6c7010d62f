"""Layout files: presets, and those of users; read with suspicion."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from eplb_cli.checkpoint.layout import FORMAT, Layout
from eplb_cli.checkpoint.layouts import LAYOUTS
from eplb_cli.errors import CheckpointError
from eplb_cli.formats.reading import read_toml

MAX_PATTERNS = 32
"""Patterns of files, and of experts: every key is tried with each of them."""

MAX_NAMES = 1000
"""Tensors, input scales, others and scales of a layout."""

_HUGGING_FACE = re.compile(r"(?:model|pytorch_model)(?:-[0-9]+-of-[0-9]+)?\.safetensors")
_LISTS = ("files", "experts", "tensors", "input_scales", "others")


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
            hint = f"layouts: auto, {', '.join(LAYOUTS.names)}"
            raise CheckpointError("EP206", f"{name} is neither a layout nor a file", hint)
        return read_layout(Path(name))
    names, all_keys, known = list(shard_names), list(keys), presets()
    fitting = [layout for layout in known if _fits(layout, names, all_keys)]
    if len(fitting) == 1:
        return fitting[0]
    raise _unfit(fitting, known, names, all_keys)


def _fits(layout: Layout, names: list[str], keys: list[str]) -> bool:
    return all(layout.match_file(name) for name in names) and any(layout.match_key(key) for key in keys)


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
    fields = {"input_scales": [], "others": [], "scales": {}, "description": "", **fields}
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
    if sum(len(fields[key]) for key in ("tensors", "input_scales", "others", "scales")) > MAX_NAMES:
        raise malformed_layout(where, f"more than {MAX_NAMES:,} names")
    if not isinstance(fields.get("name"), str) or not isinstance(fields["description"], str):
        raise malformed_layout(where, "name or description is not a string")
    _check_tensors(fields, where)
    _check_patterns(fields, where)
    return Layout(**fields)


def _check_tensors(fields: Mapping[str, Any], where: object) -> None:
    """Every name says one thing, and scales are only of tensors that there are."""
    if not fields["tensors"]:
        raise malformed_layout(where, "tensors is empty")
    names = [*fields["tensors"], *fields["input_scales"], *fields["others"]]
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise malformed_layout(
            where, f"{repeated[0]!r} is named more than once in tensors, input_scales and others"
        )
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
    if len(numberings) != 1 or not fields["files"]:
        raise malformed_layout(where, "files or experts is empty, or the experts are numbered in two ways")
    if any(
        pattern.count("*") > 1 or pattern.find("*") not in (-1, len(pattern) - 1)
        for pattern in fields["others"]
    ):
        raise malformed_layout(where, "in others, * stands only at the end")


def _once(found: list[str], needed: set[str], allowed: set[str]) -> bool:
    return needed <= set(found) <= allowed and len(set(found)) == len(found)


def malformed_layout(where: object, reason: str) -> CheckpointError:
    """EP206."""
    return CheckpointError("EP206", f"{where} is not a layout: {reason[:300]}", "see docs/layouts.md")
