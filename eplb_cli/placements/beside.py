"""Layers that no map of an engine names, those of MTP and of other modules: engines place them in order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from eplb_cli.placements.placement import Placement


def with_linear_layers(placement: Placement, layer_ids: Sequence[int]) -> Placement:
    """A placement together with further layers, whose slots hold experts 0, 1, ... and after E - 1 again 0.

    Args:
        placement: with layer_ids. layer_ids: of the further layers; those it names already stay as they are.
    """
    named = [] if placement.layer_ids is None else placement.layer_ids.tolist()
    more = [layer for layer in layer_ids if layer not in named]
    if not more:
        return placement
    row = np.arange(placement.num_slots) % placement.num_logical_experts
    table = np.concatenate([placement.physical_to_logical, np.tile(row, (len(more), 1))])
    ids = np.array([*named, *more], np.int64)
    return Placement(table, placement.first_slot, placement.num_logical_experts, ids)
