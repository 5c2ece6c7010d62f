"""vllm-ascend's `expert_map_path`: per MoE layer and device, the experts of its slots.

The only dialect but eplb's with ranks in it. Its loader goes by position and looks at no id, so position is
what counts here, and an id that says otherwise is a warning. One device cannot hold an expert twice.
OmniPlacement's pattern, which has devices too, is read by `by_rank`.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from eplb_cli.formats.json_text import shown
from eplb_cli.placements.dialects.by_rank import is_pattern, read_pattern
from eplb_cli.placements.dialects.dialect import (
    Dialect,
    Note,
    by_moe_index,
    lossy,
    moe_table,
    not_this,
    require_even,
    require_full,
)
from eplb_cli.placements.dialects.other_keys import note_ignored
from eplb_cli.placements.hints import Hints
from eplb_cli.placements.placement import Placement

_NAME = "ascend"


def _fits(value: object) -> bool:
    is_map = isinstance(value, dict) and "layer_list" in value and "moe_layer_count" in value
    return is_map or is_pattern(value)


def _read(value: Any, hints: Hints, note: Note) -> dict[str, Any]:  # noqa: ANN401 - fits has seen it
    if isinstance(value, list):
        return read_pattern(_NAME, value, hints)
    note_ignored(value, {"layer_list", "moe_layer_count"}, note)
    layers = _list(value, "layer_list", "moe_layer_count", "the file")
    rows, slots = [], []
    for position, layer in enumerate(layers):
        devices = _list(layer, "device_list", "device_count", f"layer {position}")
        _compare(layer, "layer_id", position, note)
        for number, device in enumerate(devices):
            if not isinstance(device, dict) or not isinstance(device.get("device_expert"), list):
                raise not_this(_NAME, f"layer {position}, device {number} has no list device_expert")
            _compare(device, "device_id", number, note)
        rows.append([expert for device in devices for expert in device["device_expert"]])
        slots.append([len(device["device_expert"]) for device in devices])
    if any(counts != slots[0] for counts in slots):
        raise not_this(_NAME, "the devices of a layer have other numbers of experts than those of the first")
    return by_moe_index(rows, hints, slots_per_rank=slots[0])


def _list(value: object, key: str, count_key: str, where: str) -> list[Any]:
    """A list that is not empty, and as long as its count says."""
    found = value.get(key) if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(found, list) or not found:
        raise not_this(_NAME, f"{where} has no {key}")
    if value.get(count_key) != len(found):
        problem = f"{count_key} is {shown(value.get(count_key))} for {len(found):,} entries"
        raise not_this(_NAME, f"{where}: {problem}")
    return found


def _compare(value: dict[str, Any], key: str, position: int, note: Note) -> None:
    if value.get(key) != position:
        said = f"{key} is {shown(value.get(key))} at position {position}"
        note("EP103", f"{said}: vllm-ascend goes by position, and so does eplb")


def _write(placement: Placement, hints: Hints, suffix: str) -> str:
    del suffix
    table = moe_table(placement, hints, _NAME)
    require_even(placement, _NAME)
    require_full(placement, _NAME)
    devices = table.reshape(len(table), placement.num_ranks, -1)
    _refuse_twice(placement, devices)
    layers = [
        {
            "layer_id": number,
            "device_count": len(layer),
            "device_list": [
                {"device_id": device, "device_expert": experts} for device, experts in enumerate(layer)
            ],
        }
        for number, layer in enumerate(devices.tolist())
    ]
    lines = ",\n  ".join(json.dumps(layer) for layer in layers)
    return f'{{"moe_layer_count": {len(layers)}, "layer_list": [\n  {lines}]}}\n'


def _refuse_twice(placement: Placement, devices: np.ndarray[Any, np.dtype[np.int64]]) -> None:
    ordered = np.sort(devices, axis=2)
    twice = np.argwhere(ordered[:, :, 1:] == ordered[:, :, :-1])
    if len(twice):
        layer, rank, place = (int(number) for number in twice[0])
        expert, number = ordered[layer, rank, place], placement.layer_number(layer)
        raise lossy(_NAME, f"layer {number}, rank {rank} holds expert {expert} twice")


DIALECT = Dialect(_NAME, (".json",), _fits, _read, _write)
