"""Loads that are written down as text, expert by expert.

::

    sglang          before May 2025, .csv: layer_id,expert_id,count of what got tokens, by hidden layer
    msit            .csv: a line for each MoE layer, a column for each expert
    mindspeed-rl    .json: {MoE layer: {expert: tokens}}
"""

from __future__ import annotations

from typing import Any

import numpy as np

from eplb_cli.formats.csv_text import Table
from eplb_cli.models.counted import Load, counts_of, no_counts, no_load, of_hidden_layers, of_moe_layers
from eplb_cli.models.model import Model

_SGLANG_COLUMNS = ("layer_id", "expert_id", "count")
_MAX_DIGITS = 9
_ONE_RANK = "MindIE's decode_N.csv and prefill_N.csv have the slots of rank N alone"


def read_table(name: str, table: Table, model: Model | None) -> Load:
    """The load in a table. Raises EP119."""
    if table.columns == _SGLANG_COLUMNS:
        return _read_triples(name, table, model)
    if table.columns:
        columns = ", ".join(table.columns)[:80]
        raise no_load(
            name, f"its columns are {columns}, neither {','.join(_SGLANG_COLUMNS)} nor experts without names"
        )
    notes = (
        () if model is not None else (f"each column is taken for an expert: {_ONE_RANK}; --model says which",)
    )
    return of_moe_layers(name, "msit", counts_of(name, table.numbers), model, notes, hint=_ONE_RANK)


def _read_triples(name: str, table: Table, model: Model | None) -> Load:
    """SGLang's lines of layer, expert and count; a pair without a line got nothing."""
    numbers = counts_of(name, table.numbers)[0]
    pairs = numbers[:, :2].astype(np.int64)
    if (pairs != numbers[:, :2]).any() or len(np.unique(pairs, axis=0)) < len(pairs):
        raise no_load(name, "a layer and an expert are no integers, or are there more than once")
    num_layers, num_experts = (int(most) + 1 for most in pairs.max(axis=0))
    known = model or Model("", None, ())
    counts = no_counts(
        name,
        1,
        max(num_layers, known.num_hidden_layers or 0),
        max(num_experts, known.num_logical_experts or 0),
    )
    counts[0, pairs[:, 0], pairs[:, 1]] = numbers[:, 2]
    notes = ["SGLang wrote a file for each rank, and this is one of them"]
    if known.num_logical_experts is None:
        notes.append(f"the number of experts is taken to be {num_experts:,}, the largest id + 1")
    return of_hidden_layers(name, counts, model, tuple(notes))


def is_nested(value: object) -> bool:
    """Whether a value is an object of numbered objects of numbered counts."""
    return _is_numbered(value) and all(map(_is_numbered, value.values()))  # type: ignore[attr-defined]


def _is_numbered(value: object) -> bool:
    if not isinstance(value, dict) or not value:
        return False
    keys = list(map(str, value))
    return all(key.isdecimal() and key.isascii() and len(key) <= _MAX_DIGITS for key in keys)


def read_nested(name: str, value: dict[str, dict[str, Any]], model: Model | None) -> Load:
    """MindSpeed-RL's counts, of experts that have no slots yet. Raises EP119."""
    layers = {int(layer): {int(expert): count for expert, count in value[layer].items()} for layer in value}
    if sorted(layers) != list(range(len(value))):
        raise no_load(name, "its layers are not numbered from 0 on")
    if sum(map(len, layers.values())) < sum(map(len, value.values())):
        raise no_load(name, "an expert is in a layer more than once")
    counts = no_counts(name, 1, len(layers), 1 + max(map(max, layers.values())))
    for layer, experts in layers.items():
        counts[0, layer, list(experts)] = counts_of(name, [list(experts.values())])[0, 0]
    notes = ("eplb_token_collects_RANK.json has the tokens of one rank alone",)
    return of_moe_layers(name, "mindspeed-rl", counts, model, notes)
