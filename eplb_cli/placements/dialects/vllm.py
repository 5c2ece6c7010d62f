"""vLLM: `physical_to_logical_map`, bare or under its name, and the records of `initial_mapping_path`.

Rows are MoE layers, counted from 0; a single row is for all layers. Ranks are not in the file. The
record form says how many slots are redundant, and so how many experts there are; it has no empty slot.
Two forms that were proposed have ranks: `by_rank` reads them.
"""

from __future__ import annotations

import json
from typing import Any

from eplb_cli.errors import PlacementError
from eplb_cli.placements.dialects.by_rank import (
    EXPERT_TO_RANK,
    is_expert_map,
    read_expert_map,
    read_expert_to_rank,
)
from eplb_cli.placements.dialects.dialect import (
    Dialect,
    Note,
    by_moe_index,
    depth,
    for_all_layers,
    json_rows,
    moe_table,
    not_this,
    require_even,
    require_full,
)
from eplb_cli.placements.dialects.other_keys import has_map, note_ignored, read_beside
from eplb_cli.placements.hints import Hints
from eplb_cli.placements.keys import MAP
from eplb_cli.placements.placement import Placement

RECORD = "eplb_initial_mapping"
_NAME = "vllm"
_ASSIGNMENTS = "initial_global_assignments"
_RECORD_KEYS = {"record_type", "version", "num_redundant_experts", "num_slots", _ASSIGNMENTS}


def _fits(value: object) -> bool:
    if isinstance(value, dict):
        return has_map(value) or EXPERT_TO_RANK in value or value.get("record_type") == RECORD
    return isinstance(value, list) and (_is_row(value) or is_expert_map(value) or _records(value) != [])


def _is_row(value: list[Any]) -> bool:
    """Whether a list is a row for all layers, or a list of rows."""
    rows = all(isinstance(item, list) for item in value) and depth(value) <= 2  # noqa: PLR2004
    return bool(value) and (rows or all(type(item) is int for item in value))


def _records(value: list[Any]) -> list[Any]:
    return [item for item in value if isinstance(item, dict) and item.get("record_type") == RECORD]


def _read(value: Any, hints: Hints, note: Note) -> dict[str, Any]:  # noqa: ANN401 - fits has seen it
    if isinstance(value, dict) and MAP in value:
        return by_moe_index(value[MAP], hints, **read_beside(_NAME, value, note))
    if isinstance(value, dict) and EXPERT_TO_RANK in value:
        note_ignored(value, {EXPERT_TO_RANK}, note)
        return read_expert_to_rank(_NAME, value[EXPERT_TO_RANK], hints)
    records = [value] if isinstance(value, dict) else _records(value)
    if records:
        if len(records) > 1:
            raise not_this(_NAME, f"{len(records):,} records of {RECORD} instead of one")
        return _read_record(records[0], hints)
    if is_expert_map(value):
        return read_expert_map(_NAME, value, hints)
    if isinstance(value[0], list):
        return by_moe_index(value, hints)
    _refuse_ranks(value, hints)
    return for_all_layers(value, hints)


def _refuse_ranks(row: list[int], hints: Hints) -> None:
    """EP116 for a row that may as well be the rank of each expert: so few ids that they all are ranks."""
    is_told = hints.dialect is not None or hints.num_logical_experts is not None
    if not is_told and hints.num_ranks is not None and max(row) < hints.num_ranks:
        raise PlacementError(
            "EP116",
            f"{len(row):,} numbers up to {max(row):,}, for {hints.num_ranks:,} ranks: the expert of each "
            "slot in all layers, or the rank of each expert",
            f'say which: --from vllm for slots, {{"{EXPERT_TO_RANK}": [...]}} for ranks',
        )


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
