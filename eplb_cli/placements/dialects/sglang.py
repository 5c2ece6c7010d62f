"""SGLang's `--init-expert-location`: one key, and a row for every hidden layer, dense ones too.

SGLang itself refuses a file with more keys; people add them, and its own dumps have them.
Rows of dense layers mean nothing; they are written as SGLang's own default, slot `i` holding expert `i % E`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from eplb_cli.errors import PlacementError
from eplb_cli.placements.dialects.dialect import (
    Dialect,
    Note,
    content,
    json_rows,
    layer_numbers,
    moe_table,
    require_even,
    require_full,
)
from eplb_cli.placements.dialects.other_keys import has_map, read_beside
from eplb_cli.placements.hints import Hints
from eplb_cli.placements.keys import MAP
from eplb_cli.placements.placement import Placement

_NAME = "sglang"


def _fits(value: object) -> bool:
    return has_map(value)


def _read(value: Any, hints: Hints, note: Note) -> dict[str, Any]:  # noqa: ANN401 - fits has seen it
    beside = read_beside(_NAME, value, note)
    rows = value[MAP]
    if not isinstance(rows, list):
        return content(rows)
    hidden = None if hints.model is None else hints.model.num_hidden_layers
    if hidden not in (None, len(rows)):
        problem = f"{len(rows):,} rows for the {hidden:,} hidden layers of the model"
        raise PlacementError("EP109", f"a map of sglang has {problem}")
    layers = hints.own_layers
    if layers is None:
        raise PlacementError(
            "EP116",
            "a map of sglang has a row for each hidden layer, and which of them have experts nothing says",
            "say it with --model PRESET|config.json, or with a checkpoint",
        )
    # Without a model, what is numbered right behind the rows are layers that SGLang does not count (MTP).
    beyond = [layer for layer in layers if layer >= len(rows)]
    if beyond != list(range(len(rows), len(rows) + len(beyond))):
        raise PlacementError(
            "EP109", f"a map of sglang has {len(rows):,} rows, and none for layer {beyond[0]}"
        )
    layers = [layer for layer in layers if layer < len(rows)]
    return content([rows[layer] for layer in layers], layers, **beside)


def _write(placement: Placement, hints: Hints, suffix: str) -> str:
    del suffix
    require_even(placement, _NAME)
    require_full(placement, _NAME)
    model = hints.model
    if model is None or model.num_hidden_layers is None:
        raise PlacementError(
            "EP117",
            "sglang has a row for each hidden layer, and how many there are nothing says",
            "say it with --model PRESET|config.json, or --checkpoint DIR with a config.json",
        )
    layers = sorted(layer_numbers(placement, hints, _NAME))
    rows = moe_table(placement, hints, _NAME)
    default = np.arange(placement.num_slots) % placement.num_logical_experts
    table = np.tile(default, (model.num_hidden_layers, 1))
    table[layers] = rows
    return f'{{"{MAP}": [\n  {json_rows(table)}]}}\n'


DIALECT = Dialect(_NAME, (".json",), _fits, _read, _write)
