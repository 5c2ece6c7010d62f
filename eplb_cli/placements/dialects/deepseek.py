"""DeepSeek's `rebalance_experts`: `phy2log` with its inverses, or the bare array.

Rows are MoE layers. `log2phy` (L, E, max) lists the slots of each expert, -1 at the end; `logcnt` (L, E)
counts them. What follows from `phy2log` has to agree with it.
"""

from __future__ import annotations

import json
from typing import Any

from eplb_cli.placements.dialects.by_rank import is_expert_map
from eplb_cli.placements.dialects.dialect import (
    Dialect,
    Note,
    by_moe_index,
    depth,
    json_rows,
    moe_table,
    require_even,
    require_full,
)
from eplb_cli.placements.dialects.inverse import inverse
from eplb_cli.placements.dialects.other_keys import read_beside
from eplb_cli.placements.hints import Hints
from eplb_cli.placements.placement import Placement

_NAME = "deepseek"
_MAP = "phy2log"
_MAP_DEPTH = 2


def _fits(value: object) -> bool:
    if isinstance(value, dict):
        return _MAP in value
    return isinstance(value, list) and (depth(value) == _MAP_DEPTH or _is_returned(value))


def _is_returned(value: list[Any]) -> bool:
    """Whether a list is what `rebalance_experts` returns, or the first of that alone."""
    depths = [depth(item) for item in value]
    if depths == [_MAP_DEPTH]:
        return not is_expert_map(value)
    return depths == [_MAP_DEPTH, _MAP_DEPTH + 1, _MAP_DEPTH]


def _read(value: Any, hints: Hints, note: Note) -> dict[str, Any]:  # noqa: ANN401 - fits has seen it
    if isinstance(value, list):
        arrays = value if _is_returned(value) else [value]
        value = dict(zip((_MAP, "log2phy", "logcnt"), arrays, strict=False))
    return by_moe_index(value[_MAP], hints, **read_beside(_NAME, value, note, _MAP))


def _write(placement: Placement, hints: Hints, suffix: str) -> str:
    del suffix
    table = moe_table(placement, hints, _NAME)
    require_even(placement, _NAME)
    require_full(placement, _NAME)
    slots, counts = inverse(table, placement.num_logical_experts)
    log2phy = ",\n  ".join(json.dumps(layer) for layer in slots.tolist())
    return (
        f'{{"phy2log": [\n  {json_rows(table)}],\n "log2phy": [\n  {log2phy}],\n'
        f' "logcnt": [\n  {json_rows(counts)}]}}\n'
    )


DIALECT = Dialect(_NAME, (".json",), _fits, _read, _write)
