"""The ways in which engines write placements down: found by content, read into one form, and written.

A file of eplb's own format says so itself; the others are imported only for a file that is none.

::

    registry       all of them by name; which of them a value is of
    dialect        what the package calls a dialect; layer numbers; what cannot be said
    eplb           eplb-placement/1
    vllm           physical_to_logical_map, initial_expert_map_path, initial_mapping_path
    sglang         --init-expert-location
    tensorrt_llm   moe_load_balancer.yaml
    ascend         expert_map_path
    deepseek       rebalance_experts
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from eplb_cli.dialects.dialect import Dialect, Note
from eplb_cli.dialects.eplb import EPLB
from eplb_cli.errors import PlacementError
from eplb_cli.placement import MAX_ENTRIES, Hints

__all__ = ["Dialect", "find_and_read"]

_DEPTH = 3
"""How deep in objects and lists a map may be an array."""


def find_and_read(value: object, hints: Hints, note: Note) -> tuple[Dialect, Mapping[str, Any]]:
    """The dialect of a value, and the content of an eplb-placement/1 file that says the same.

    Raises:
        PlacementError: EP116, it is not of the dialect that is named, or of several with other layers; EP103,
            EP104 or EP109, it is not well-formed.
    """
    if hints.dialect in {None, EPLB.name} and EPLB.fits(value):
        return EPLB, EPLB.read(value, hints, note)
    from eplb_cli.dialects.registry import find_dialect

    value = _as_lists(value)
    dialect = find_dialect(value, hints)
    return dialect, dialect.read(value, hints, note)


def _as_lists(value: Any, depth: int = 0) -> Any:  # noqa: ANN401 - whatever a document holds
    """Arrays as lists, as JSON has them. Raises EP104 where they are larger than any map."""
    if isinstance(value, np.ndarray):
        if value.size > MAX_ENTRIES:
            raise PlacementError("EP104", f"an array of {value.size:,} numbers is no map")
        return value.tolist()
    if isinstance(value, dict) and depth < _DEPTH:
        return {key: _as_lists(item, depth + 1) for key, item in value.items()}
    if isinstance(value, list) and depth < _DEPTH and any(isinstance(item, np.ndarray) for item in value):
        return [_as_lists(item, depth + 1) for item in value]
    return value
