"""Which row of a load is which layer of a placement."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np

from eplb_cli.arrays import Int, without
from eplb_cli.errors import PlacementError
from eplb_cli.models.counted import Counts, Load
from eplb_cli.placements.placement import Placement

_HINT = "both have to be of the same model: --model says which layers and how many experts it has"


def counted(load: Load, placement: Placement, further: Collection[int]) -> Placement:
    """A placement without those of its `further` layers, as of MTP, that the load does not count."""
    if placement.layer_ids is None:
        return placement
    numbers = set(further) - set(() if load.layer_ids is None else load.layer_ids.tolist())
    left_out = np.isin(placement.layer_ids, [*numbers])
    if not left_out.any() or left_out.all():
        return placement
    table, layer_ids = placement.physical_to_logical[~left_out], placement.layer_ids[~left_out]
    return replace(placement, physical_to_logical=table, layer_ids=layer_ids)


def fitted(load: Load, placement: Placement, name: str, of: str) -> Counts:
    """(L, E) tokens of each expert of a placement, all steps together.

    Layers are told by their numbers where both say them; the load may have more of them then. Otherwise both
    have all MoE layers of the model, the load in their order.

    Args:
        name: what the load is called.
        of: what the placement is called.

    Raises:
        PlacementError: EP119, the load is of other layers or experts.
    """
    rows, total = _rows(load, placement), load.total
    if rows is None or total.shape[1] != placement.num_logical_experts:
        problem = (
            f"{name} counts {total.shape[0]:,} layers of {total.shape[1]:,} experts, "
            f"and {of} has {placement.num_layers:,} of {placement.num_logical_experts:,}"
        )
        raise PlacementError("EP119", problem + _first_alone(load, placement, of), _HINT)
    return np.asarray(total[rows])


def _rows(load: Load, placement: Placement) -> Int | None:
    """(L,) the row of the load that is each layer of the placement; None where one of them has none."""
    if load.layer_ids is not None and placement.layer_ids is not None:
        is_that = load.layer_ids == placement.layer_ids[:, None]
        return is_that.argmax(axis=1) if is_that.any(axis=1).all() else None
    if load.counts.shape[1] != placement.num_layers:
        return None
    numbers = np.arange(placement.num_layers) if placement.layer_ids is None else placement.layer_ids
    return np.argsort(np.argsort(numbers))


def _first_alone(load: Load, placement: Placement, of: str) -> str:
    """The first layer that the load does not have, where both say their layers."""
    if load.layer_ids is None or placement.layer_ids is None:
        return ""
    alone = without(placement.layer_ids, load.layer_ids)
    return f"; layer {alone[0]} is in {of} alone" if len(alone) else ""
