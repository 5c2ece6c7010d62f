"""Names of an engine's tensors, and which tensors of a Hugging Face checkpoint each of them is made of.

Names are templates with {layer}, and {expert} or {row} where there is a tensor for each. Tensors that are
joined lie one behind the other: along dim 0, and for experts along dim 0 of each row::

    .self_attn.qkv_proj.weight    q rows, k rows, v rows
    .mlp.experts.w13_weight       gate of row 0, up of row 0, gate of row 1, ...
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple

from eplb_cli.checkpoint.layout import Layout
from eplb_cli.checkpoint.layout_file import preset
from eplb_cli.errors import CheckpointError
from eplb_cli.formats.reading import read_toml
from eplb_cli.huggingface.engines import AS_THEY_ARE, ENGINES, engine_names

_LAYER = re.compile(r"(?<=\blayers\.)(0|[1-9][0-9]{0,8})(?=\.)")
_EXPERT = re.compile(r"(?<=\bexperts\.)(0|[1-9][0-9]{0,8})(?=\.)")
_OF_LAYER = "model.layers.{layer}"


class Key(NamedTuple):
    """A key taken apart; None where it has no such number."""

    template: str
    layer: int | None
    expert: int | None


class Goal(NamedTuple):
    """Where a Hugging Face tensor goes: into which tensor of the engine, and as which part of it."""

    template: str
    part: int
    is_expert: bool


@dataclass(frozen=True)
class Names:
    """An engine's names for one family of models.

    Attributes:
        engine, family: what the two are called.
        layout: the layout of the shards.
        experts, fused: a template of the engine to those of Hugging Face, in the order they are joined in.
        kept: templates of other tensors that are the same in both.
        constants: templates of tensors without dimensions that only the engine has: dtype and bytes.
    """

    engine: str
    family: str
    layout: str
    serving: str
    experts: Mapping[str, tuple[str, ...]]
    fused: Mapping[str, tuple[str, ...]]
    kept: tuple[str, ...]
    constants: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    @cached_property
    def goals(self) -> dict[str, Goal]:
        """By the template of a Hugging Face tensor, where it goes."""
        found = {template: Goal(template, 0, is_expert=False) for template in self.kept}
        for joined, is_expert in ((self.fused, False), (self.experts, True)):
            for target, sources in joined.items():
                found |= {source: Goal(target, part, is_expert) for part, source in enumerate(sources)}
        return found

    def as_json(self) -> dict[str, Any]:
        """The names as a record of the checkpoint holds them."""
        return asdict(self)

    def find_layout(self) -> Layout:
        """The layout of the shards."""
        return preset(self.layout)


def split_key(key: str) -> Key:
    """The template of a Hugging Face key, and its numbers."""
    layer, expert = _LAYER.search(key), _EXPERT.search(key)
    template = _LAYER.sub("{layer}", key, 1)
    template = _EXPERT.sub("{expert}", template, 1)
    return Key(template, layer and int(layer[0]), expert and int(expert[0]))


def names_from_json(raw: Mapping[str, Any]) -> Names:
    """The inverse of `Names.as_json`. Raises KeyError, TypeError or AttributeError for anything else."""
    joined = {
        field: {str(target): tuple(map(str, sources)) for target, sources in raw[field].items()}
        for field in ("experts", "fused")
    }
    engine, family, layout, serving = (str(raw[key]) for key in ("engine", "family", "layout", "serving"))
    kept = tuple(map(str, raw["kept"]))
    constants = {str(target): (str(dtype), str(data)) for target, (dtype, data) in raw["constants"].items()}
    return Names(engine, family, layout, serving, joined["experts"], joined["fused"], kept, constants)


def find_names(engine: str, family: str, keys: Iterable[str]) -> Names:
    """The names of an engine for a family of models.

    Args:
        keys: of the checkpoint, for the engine that keeps them.

    Raises:
        CheckpointError: EP224, there is no such engine, or it has no names for the family.
    """
    if engine == AS_THEY_ARE:
        return _as_they_are(family, keys)
    if engine not in engine_names():
        raise CheckpointError("EP224", f"{engine!r} is no engine", f"engines: {', '.join(engine_names())}")
    raw = read_toml(ENGINES.path(engine), partial(CheckpointError, "EP224"))
    families = [name for name, table in raw.items() if isinstance(table, dict)]
    if family not in families:
        problem = f"no names of {engine} are known for models of type {family!r}"
        hint = f"known are {', '.join(families)}; --engine {AS_THEY_ARE} keeps all names"
        raise CheckpointError("EP224", problem, hint)
    table = _with_like(raw, raw[family])
    full = {
        field: {_full(target): list(map(_full, sources)) for target, sources in table[field].items()}
        for field in ("experts", "fused")
    }
    words = {"engine": engine, "family": family, "layout": raw["layout"], "serving": raw["serving"]}
    constants = {_full(target): value for target, value in table["constants"].items()}
    return names_from_json({**words, **full, "kept": map(_full, table["kept"]), "constants": constants})


def _with_like(raw: Mapping[str, Any], table: Mapping[str, Any]) -> dict[str, Any]:
    """What a family's table says, after all that the family says which it is `like`."""
    said = [raw[table["like"]], table] if "like" in table else [table]
    kept = [name for part in said for name in part.get("kept", ())]
    joined = ("experts", "fused", "constants")
    return {"kept": kept} | {
        field: {target: value for part in said for target, value in part.get(field, {}).items()}
        for field in joined
    }


def _full(name: str) -> str:
    return _OF_LAYER + name if name.startswith(".") else name


def _as_they_are(family: str, keys: Iterable[str]) -> Names:
    """Every tensor by itself; those of experts by their row, or stacked over the rank's rows."""
    templates = dict.fromkeys(split_key(key).template for key in keys)
    by_expert = [template for template in templates if "experts.{expert}." in template]
    layout = "per-row" if by_expert else AS_THEY_ARE
    stacked = preset(layout)
    experts = by_expert or [name for name in templates if stacked.match_key(name.replace("{layer}", "0"))]
    return Names(
        AS_THEY_ARE,
        family,
        layout,
        "",
        {name.replace("{expert}", "{row}"): (name,) for name in experts},
        {},
        tuple(name for name in templates if name not in experts),
    )
