"""vLLM: `physical_to_logical_map`, bare or under its name, and the records of `initial_mapping_path`.

Rows are MoE layers, counted from 0; a single row is for all layers. Ranks are not in the file. The
record form says how many slots are redundant, and so how many experts there are; it has no empty slot.
"""

from __future__ import annotations

import json
from typing import Any

from eplb_cli.placements.dialects.dialect import (
    Dialect,
    Note,
    by_moe_index,
    json_rows,
    known_layers,
    moe_table,
    not_this,
    require_even,
    require_full,
)
from eplb_cli.placements.hints import Hints
from eplb_cli.placements.keys import MAP
from eplb_cli.placements.placement import Placement

RECORD = "eplb_initial_mapping"
_NAME = "vllm"
_ASSIGNMENTS = "initial_global_assignments"
_RECORD_KEYS = {"record_type", "version", "num_redundant_experts", "num_slots", _ASSIGNMENTS}


def _fits(value: object) -> bool:
    if isinstance(value, dict):
        return value.keys() == {MAP} or value.get("record_type") == RECORD
    return isinstance(value, list) and bool(value) and (_is_row(value) or _records(value) != [])


def _is_row(value: list[Any]) -> bool:
    """Whether a list is a row for all layers, or a list of rows."""
    return all(isinstance(item, list) for item in value) or all(type(item) is int for item in value)


def _records(value: list[Any]) -> list[Any]:
    return [item for item in value if isinstance(item, dict) and item.get("record_type") == RECORD]


def _read(value: Any, hints: Hints, note: Note) -> dict[str, Any]:  # noqa: ANN401 - fits has seen it
    del note
    records = [value] if isinstance(value, dict) else _records(value)
    if isinstance(value, dict) and MAP in value:
        return by_moe_index(value[MAP], hints)
    if records:
        if len(records) > 1:
            raise not_this(_NAME, f"{len(records):,} records of {RECORD} instead of one")
        return _read_record(records[0], hints)
    if all(isinstance(item, list) for item in value):
        return by_moe_index(value, hints)
    layers = known_layers(hints)
    count = len(layers) if layers is not None else hints.num_layers or 1
    return by_moe_index([value] * count, hints)


def _read_record(record: dict[str, Any], hints: Hints) -> dict[str, Any]:
    if record.keys() != _RECORD_KEYS or record["version"] != 1:
        wrong = sorted(record.keys() ^ _RECORD_KEYS) or ["version"]
        raise not_this(_NAME, f"{wrong[0]!r} in a record is missing, unknown or not 1")
    redundant, num_slots, assignments = (
        record[key] for key in ("num_redundant_experts", "num_slots", _ASSIGNMENTS)
    )
    if not isinstance(assignments, dict) or not all(type(count) is int for count in (redundant, num_slots)):
        raise not_this(_NAME, f"{_ASSIGNMENTS} is no object, or a number of slots none")
    expected = [str(layer) for layer in range(len(assignments))]
    if sorted(assignments) != sorted(expected):
        raise not_this(_NAME, f"the keys of {_ASSIGNMENTS} do not count MoE layers from 0")
    rows = [assignments[layer] for layer in expected]
    if any(isinstance(row, list) and len(row) != num_slots for row in rows):
        raise not_this(_NAME, f"num_slots is {num_slots:,}, and a layer has another number of slots")
    return by_moe_index(rows, hints, num_logical_experts=num_slots - redundant)


def _write(placement: Placement, hints: Hints, suffix: str) -> str:
    table = moe_table(placement, hints, _NAME)
    require_even(placement, _NAME)
    require_full(placement, _NAME)
    if suffix != ".jsonl":
        return f"[\n  {json_rows(table)}]\n"
    record = {
        "record_type": RECORD,
        "version": 1,
        "num_redundant_experts": placement.num_slots - placement.num_logical_experts,
        "num_slots": placement.num_slots,
        _ASSIGNMENTS: {str(layer): row for layer, row in enumerate(table.tolist())},
    }
    return json.dumps(record) + "\n"


DIALECT = Dialect(
    _NAME,
    (".json", ".jsonl"),
    _fits,
    _read,
    _write,
)
