"""How an engine loads shards that lie under a placement, or that none does."""

from __future__ import annotations

import numpy as np

from eplb_cli.errors import EplbError
from eplb_cli.placements.choice import NAMED_MAPS
from eplb_cli.placements.hints import Hints
from eplb_cli.placements.named_map import named_map
from eplb_cli.placements.placement import EMPTY, Placement

NO_ENGINE = "no stock engine loads this placement from shards; see docs/serving.md"


def serving_notes(placement: Placement, layout_name: str) -> list[str]:
    """A line per engine that loads a tree of this placement, or one line that says that none does."""
    if layout_name != "sharded-state":
        return [f"shards of layout {layout_name}: load them with the program that wrote their like"]
    notes = []
    is_default = _is_named("linear", placement)
    has_replicas = placement.num_slots > placement.num_logical_experts
    if is_default:
        notes.append("vLLM: --load-format sharded_state" + (" --enable-eplb" if has_replicas else ""))
    elif _is_named("round_robin", placement):
        notes.append(
            "vLLM: --load-format sharded_state --expert-placement-strategy round_robin "
            "(where vLLM grants it: models with expert groups, no replicas)"
        )
    even = len(set(placement.slots_per_rank.tolist())) == 1
    if even and not (placement.physical_to_logical == EMPTY).any():
        notes.append(
            "SGLang (DP attention): --load-format sharded_state --init-expert-location FILE, for shards that "
            "SGLang itself had saved"
        )
    return notes if is_default or "vLLM" in "".join(notes) else [*notes, f"vLLM: {NO_ENGINE}"]


def _is_named(name: str, placement: Placement) -> bool:
    """Whether every layer is the named map, with as many redundant experts as there are.

    A rank without a slot has stacked tensors of no element, which vLLM neither saves nor loads.
    """
    redundant = placement.num_slots - placement.num_logical_experts
    hints = Hints(
        num_ranks=placement.num_ranks,
        num_logical_experts=placement.num_logical_experts,
        num_layers=1,
        num_redundant_experts=max(redundant, 0),
    )
    if name not in NAMED_MAPS or redundant < 0 or not placement.slots_per_rank.all():
        return False
    try:
        same = named_map(name, hints)
    except EplbError:
        return False
    return np.array_equal(same.first_slot, placement.first_slot) and bool(
        (placement.physical_to_logical == same.physical_to_logical).all()
    )
