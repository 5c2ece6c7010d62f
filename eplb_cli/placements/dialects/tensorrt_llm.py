"""TensorRT-LLM's `moe_load_balancer.yaml`: assignments by the model's own layer number, MTP layers too.

Its loader rejects unknown keys. Ranks are not in the file, and there is no empty slot. The same keys may
stand inside the options of the engine (`extra_llm_api_options.yaml`), or those name the file that has them.
"""

from __future__ import annotations

from typing import Any

from eplb_cli.errors import PlacementError
from eplb_cli.formats.json_text import shown
from eplb_cli.placements.dialects.dialect import (
    Dialect,
    Note,
    content,
    layer_numbers,
    not_this,
    require_even,
    require_full,
)
from eplb_cli.placements.hints import Hints
from eplb_cli.placements.placement import Placement

_NAME = "tensorrt-llm"
_ASSIGNMENTS = "initial_global_assignments"
_KEYS = {_ASSIGNMENTS, "num_slots", "layer_updates_per_iter"}


_INSIDE = (
    ("moe_config", "load_balancer"),
    ("moe_load_balancer",),
    ("pytorch_backend_config", "moe_load_balancer"),
)
"""Where the options of the engine have the keys, the newest first."""

_EP_SIZE = "moe_expert_parallel_size"


def _fits(value: object) -> bool:
    if not isinstance(value, dict) or "record_type" in value:
        return False
    is_balancer = _ASSIGNMENTS in value or (bool(value) and value.keys() <= _KEYS)
    return is_balancer or _inside(value) is not None


def _inside(options: dict[str, Any]) -> tuple[str, Any] | None:
    """Where the options of the engine have a load balancer, and what they have there."""
    for place in _INSIDE:
        found: Any = options
        for key in place:
            found = found.get(key) if isinstance(found, dict) else None
        if isinstance(found, dict | str):
            return ".".join(place), found
    return None


def _read(value: Any, hints: Hints, note: Note) -> dict[str, Any]:  # noqa: ANN401 - fits has seen it
    del hints, note
    inside = None if _ASSIGNMENTS in value else _inside(value)
    if inside is None:
        return _read_balancer(value)
    place, balancer = inside
    if isinstance(balancer, str):
        problem = f"no map is in the file, and {place} names one that has it: {shown(balancer)}"
        raise PlacementError("EP103", problem, "give that file")
    ranks = value.get(_EP_SIZE)
    said = _read_balancer(balancer)
    return {**said, "num_ranks": ranks} if type(ranks) is int and ranks > 0 else said


def _read_balancer(value: dict[str, Any]) -> dict[str, Any]:
    if _ASSIGNMENTS not in value:
        raise PlacementError(
            "EP103",
            f"no map is in the file: an online load balancer of {_NAME}, which makes its map as it runs",
            f"give a file with {_ASSIGNMENTS}, as TensorRT-LLM's generate_eplb_config.py writes it",
        )
    if unknown := value.keys() - _KEYS:
        raise not_this(_NAME, f"the key {shown(str(min(map(str, unknown))))} is unknown, and rejected there")
    assignments = value[_ASSIGNMENTS]
    if not isinstance(assignments, dict) or not assignments:
        raise not_this(_NAME, f"{_ASSIGNMENTS} is no map from layers to slots")
    layers = [_layer(key) for key in assignments]
    if len(set(layers)) < len(layers):
        raise not_this(_NAME, "a layer is there more than once")
    rows = list(assignments.values())
    num_slots = value.get("num_slots")
    if num_slots is not None and any(isinstance(row, list) and len(row) != num_slots for row in rows):
        raise not_this(_NAME, f"num_slots is {shown(num_slots)}, and a layer has another number of slots")
    return content(rows, layers)


def _layer(key: object) -> int:
    """A layer number; JSON can only spell it."""
    if isinstance(key, str) and key.isascii() and key.isdecimal() and len(key) < 10:  # noqa: PLR2004
        return int(key)
    if type(key) is int:
        return key
    raise not_this(_NAME, f"{shown(key)} is no layer number")


def _write(placement: Placement, hints: Hints, suffix: str) -> str:
    del suffix
    require_even(placement, _NAME)
    require_full(placement, _NAME)
    layers = layer_numbers(placement, hints, _NAME)
    rows = zip(layers, placement.physical_to_logical.tolist(), strict=True)
    lines = "".join(f"  {layer}: {row}\n" for layer, row in sorted(rows))
    return f"{_ASSIGNMENTS}:\n{lines}num_slots: {placement.num_slots}\nlayer_updates_per_iter: 0\n"


DIALECT = Dialect(_NAME, (".yaml", ".yml"), _fits, _read, _write, has_mtp=True)
