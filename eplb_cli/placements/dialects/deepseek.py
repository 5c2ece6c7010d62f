"""DeepSeek's `rebalance_experts`: `phy2log` with its inverses, or the bare array.

Rows are MoE layers. `log2phy` (L, E, max) lists the slots of each expert, -1 at the end; `logcnt` (L, E)
counts them. What follows from `phy2log` has to agree with it.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eplb_cli.placements.dialects.dialect import (
    Dialect,
    Note,
    by_moe_index,
    json_rows,
    moe_table,
    not_this,
    require_even,
    require_full,
)
from eplb_cli.placements.hints import Hints
from eplb_cli.placements.placement import Placement

_NAME = "deepseek"
_KEYS = {"phy2log", "log2phy", "logcnt"}


def _fits(value: object) -> bool:
    if isinstance(value, dict):
        return "phy2log" in value and value.keys() <= _KEYS
    return isinstance(value, list) and bool(value) and all(isinstance(row, list) for row in value)


def _read(value: Any, hints: Hints, note: Note) -> dict[str, Any]:  # noqa: ANN401 - fits has seen it
    del note
    if isinstance(value, list):
        value = _named(value)
    rows = value["phy2log"]
    if len(value) == 1:
        return by_moe_index(rows, hints)
    try:
        table = _integers(rows)
        said = {key: _integers(value[key]) for key in value.keys() - {"phy2log"}}
    except (ValueError, TypeError, OverflowError) as error:
        raise not_this(_NAME, "one of its arrays is none of integers") from error
    num_experts = len(next(iter(said.values()))[0]) if all(array.ndim > 1 for array in said.values()) else 0
    if table.ndim != 2 or not num_experts or not 0 <= table.min() <= table.max() < num_experts:  # noqa: PLR2004
        raise not_this(_NAME, "phy2log does not number the experts that the other arrays count")
    slots, counts = inverse(table, num_experts)
    for key, expected in (("logcnt", counts), ("log2phy", slots)):
        if key in said and not _agree(said[key], expected):
            raise not_this(_NAME, f"{key} is not what follows from phy2log")
    return by_moe_index(rows, hints, num_logical_experts=num_experts)


def _integers(value: object) -> NDArray[np.int64]:
    """Lists of integers as an array. Raises ValueError or TypeError for anything else."""
    array = np.array(value)
    if array.dtype.kind != "i":
        raise TypeError(f"an array of {array.dtype}")
    return array.astype(np.int64)


def _named(value: list[Any]) -> dict[str, Any]:
    """The three arrays that `rebalance_experts` returns, or the first alone."""
    if len(value) == 3 and isinstance(value[1], list) and _depth(value[1]) == 3:  # noqa: PLR2004
        return dict(zip(("phy2log", "log2phy", "logcnt"), value, strict=True))
    return {"phy2log": value}


def _depth(value: object) -> int:
    return 1 + _depth(value[0]) if isinstance(value, list) and value else 0


def _agree(said: NDArray[np.int64], expected: NDArray[np.int64]) -> bool:
    """Whether both list the same slots of each expert, in any order and with any padding."""
    if expected.ndim == 2:  # noqa: PLR2004
        return np.array_equal(said, expected)
    if said.ndim != 3 or said.shape[:2] != expected.shape[:2] or said.shape[2] < expected.shape[2]:  # noqa: PLR2004
        return False
    padding = ((0, 0), (0, 0), (said.shape[2] - expected.shape[2], 0))
    return np.array_equal(np.sort(said), np.sort(np.pad(expected, padding, constant_values=-1)))


def inverse(table: NDArray[np.int64], num_experts: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """`log2phy` (L, E, max), padded with -1, and `logcnt` (L, E) of a map (L, P) without empty slots."""
    num_layers, num_slots = table.shape
    key = (np.arange(num_layers)[:, None] * num_experts + table).ravel()
    counts = np.bincount(key, minlength=num_layers * num_experts)
    order = np.argsort(key, kind="stable")
    within = np.arange(key.size) - np.repeat(np.cumsum(counts) - counts, counts)
    slots = np.full((num_layers * num_experts, counts.max(initial=1)), -1)
    slots[key[order], within] = order % num_slots
    return slots.reshape(num_layers, num_experts, -1), counts.reshape(num_layers, num_experts)


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
