"""Names of an engine's tensors, and which tensors of a Hugging Face checkpoint each of them is made of.

Names are templates with {layer}, and {expert} or {row} where there is a tensor for each. Tensors that are
joined lie one behind the other: along dim 0, and for experts along dim 0 of each row::

    .self_attn.qkv_proj.weight    q rows, k rows, v rows
    .mlp.experts.w13_weight       gate of row 0, up of row 0, gate of row 1, ...
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, field, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

from eplb_cli.checkpoint.layout import Layout
from eplb_cli.checkpoint.layout_file import layout_from_json, preset
from eplb_cli.checkpoint.layouts import LAYOUTS
from eplb_cli.errors import CheckpointError, did_you_mean
from eplb_cli.formats.reading import read_toml
from eplb_cli.huggingface.engines import AS_THEY_ARE, ENGINES, engine_names
from eplb_cli.huggingface.one_rank import BY_ROW, STACKED, OneRank, by_expert, by_row
from eplb_cli.huggingface.source import ORIGIN_NAME
from eplb_cli.values import dataclass

_OF_LAYER = "model.layers.{layer}"


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
        layout, keys: the layout of the shards, and that of the keys of Hugging Face.
        experts, fused: a template of the engine to those of Hugging Face, in the order they are joined in.
        kept: templates of other tensors that are the same in both.
        constants: templates of tensors without dimensions that only the engine has: dtype and bytes.
    """

    engine: str
    family: str
    layout: Layout
    keys: Layout
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
        return {**asdict(self), "layout": self.layout.as_json(), "keys": self.keys.as_json()}


def names_from_json(raw: Mapping[str, Any]) -> Names:
    """The inverse of `Names.as_json`.

    Raises:
        KeyError, TypeError, AttributeError, CheckpointError: EP206, for anything else.
    """
    joined = {
        field: {str(target): tuple(map(str, sources)) for target, sources in raw[field].items()}
        for field in ("experts", "fused")
    }
    engine, family = (str(raw[key]) for key in ("engine", "family"))
    kept = tuple(map(str, raw["kept"]))
    constants = {str(target): (str(dtype), str(data)) for target, (dtype, data) in raw["constants"].items()}
    layouts = _layout(raw["layout"]), by_expert(_layout(raw.get("keys", BY_ROW)))
    return Names(engine, family, *layouts, joined["experts"], joined["fused"], kept, constants)


def _layout(raw: object) -> Layout:
    """A layout that is said by its name, or whole. Raises EP206."""
    is_name = isinstance(raw, str) and raw in LAYOUTS.names
    return preset(str(raw)) if is_name else layout_from_json(raw, ORIGIN_NAME)


def find_names(engine: str, family: str, checkpoint: OneRank) -> Names:
    """The names of an engine for a family of models.

    Args:
        checkpoint: whose names are kept, by the engine that keeps them.

    Raises:
        CheckpointError: EP224, there is no such engine, or it has no names for the family.
    """
    if engine == AS_THEY_ARE:
        return _as_they_are(family, checkpoint)
    if engine not in engine_names():
        hint = did_you_mean(engine, engine_names(), f"engines: {', '.join(engine_names())}")
        raise CheckpointError("EP224", f"{engine!r} is no engine", hint)
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
    words = {"engine": engine, "family": family, "layout": raw["layout"]}
    constants = {_full(target): value for target, value in table["constants"].items()}
    names = names_from_json({**words, **full, "kept": map(_full, table["kept"]), "constants": constants})
    layout = replace(names.layout, main=checkpoint.layout.main)
    return replace(names, layout=layout, keys=checkpoint.layout)


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


def _as_they_are(family: str, checkpoint: OneRank) -> Names:
    """Every tensor by itself; those of experts by their row, or stacked over the rank's rows."""
    said = checkpoint.keys.values()
    experts = dict.fromkeys(key.template for key in said if key.is_expert)
    has_numbers = any(key.expert is not None for key in said)
    keys = checkpoint.layout
    is_default = keys == by_expert(preset(BY_ROW))
    layout = by_row(keys) if has_numbers or not is_default else preset(STACKED)
    return Names(
        AS_THEY_ARE,
        family,
        layout,
        keys,
        {name.replace("{expert}", "{row}"): (name,) for name in experts},
        {},
        tuple(dict.fromkeys(key.template for key in said if not key.is_expert)),
    )
