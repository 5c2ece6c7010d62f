"""The ways in which engines write placements down: found by content, read into one form, and written.

::

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

from eplb_cli.dialects.ascend import ASCEND
from eplb_cli.dialects.deepseek import DEEPSEEK
from eplb_cli.dialects.dialect import Dialect, Note, known_layers
from eplb_cli.dialects.eplb import EPLB
from eplb_cli.dialects.sglang import SGLANG
from eplb_cli.dialects.tensorrt_llm import TENSORRT_LLM
from eplb_cli.dialects.vllm import VLLM
from eplb_cli.errors import PlacementError
from eplb_cli.placement import MAX_ENTRIES, Hints
from eplb_cli.placement_keys import MAP

__all__ = ["DIALECTS", "Dialect", "content_of", "find_dialect"]

DIALECTS = {dialect.name: dialect for dialect in (EPLB, VLLM, SGLANG, TENSORRT_LLM, ASCEND, DEEPSEEK)}

_DEPTH = 3
"""How deep in objects and lists a map may be an array."""


def find_dialect(value: object, hints: Hints) -> Dialect:
    """The dialect that the hints name, or the one that the value is of; eplb's own where it is of none.

    Raises:
        PlacementError: EP116, it is not of the dialect that is named, or of several with other layers.
    """
    value = _as_lists(value)
    if hints.dialect is not None:
        dialect = DIALECTS[hints.dialect]
        if dialect is not EPLB and not dialect.fits(value):
            others = [name for name, other in DIALECTS.items() if other.fits(value)]
            looks = f"; it looks like one of {' or '.join(others)}" if others else ""
            raise PlacementError("EP116", f"not a placement of {dialect.name}{looks}", "see docs/dialects.md")
        return dialect
    fitting = [dialect for dialect in DIALECTS.values() if dialect.fits(value)]
    if isinstance(value, dict) and fitting == [VLLM, SGLANG]:
        return _vllm_or_sglang(value[MAP], hints)
    return fitting[0] if fitting else EPLB  # vllm's and deepseek's bare lists of rows mean the same


def _vllm_or_sglang(rows: object, hints: Hints) -> Dialect:
    """Told apart by the number of rows: MoE layers, or all hidden layers."""
    layers = known_layers(hints)
    counted = hints.num_layers if layers is None else len(layers)
    hidden = None if hints.model is None else hints.model.num_hidden_layers
    if not isinstance(rows, list) or len(rows) == counted:
        return VLLM
    if len(rows) == hidden or (hidden is None and counted is not None and len(rows) > counted):
        return SGLANG
    if counted is not None:
        of_model = "" if hidden is None else f" or {hidden:,} hidden"
        raise PlacementError("EP109", f"the map has {len(rows):,} rows, for {counted:,} MoE{of_model} layers")
    raise PlacementError(
        "EP116",
        f'{len(rows):,} rows under only "{MAP}": vllm means MoE layers with them, sglang all hidden layers',
        "say which: --from vllm or --from sglang, or the model with --model PRESET|config.json",
    )


def content_of(dialect: Dialect, value: object, hints: Hints, note: Note) -> Mapping[str, Any]:
    """The content of an eplb-placement/1 file that says what `value` says. Raises PlacementError."""
    return dialect.read(_as_lists(value), hints, note)


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
