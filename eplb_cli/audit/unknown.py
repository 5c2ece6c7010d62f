"""A placement for shards of which nothing says any: enough to find their rows."""

from __future__ import annotations

import numpy as np

from eplb_cli.checkpoint.shards import Shards
from eplb_cli.errors import CheckpointError
from eplb_cli.placements.placement import MAX_ENTRIES, Placement


def unknown_placement(shards: Shards) -> Placement:
    """A placement with the shape of the shards, in which every slot holds an expert of its own.

    Where keys name experts, they are in ascending order on each rank.

    Raises:
        CheckpointError: EP217, a rank has more experts in one layer than in another; EP208, the shards claim
            more rows than any placement has.
    """
    slots = shards.slots_per_rank
    layers = _alike_layers(shards)
    if len(layers) * int(slots.sum()) > MAX_ENTRIES:
        rows = f"{len(layers):,} layers of {int(slots.sum()):,} rows"
        raise CheckpointError("EP208", f"{shards.path} has {rows}; more than {MAX_ENTRIES:,} are too many")
    first_slot = np.concatenate([[0], np.cumsum(slots)])
    layer_ids = np.array(layers, np.int64)
    if not shards.layout.names_experts:
        row = np.arange(int(first_slot[-1]))
        return Placement(np.tile(row, (len(layer_ids), 1)), first_slot, len(row), layer_ids)
    named = {layer: shards.named_experts(layer) for layer in layers}
    for layer, ranks in named.items():
        for rank, experts in enumerate(ranks):
            if len(experts) != slots[rank]:
                raise CheckpointError(
                    "EP217",
                    f"rank {rank} has {len(experts)} experts in layer {layer}, and {slots[rank]} in layer "
                    f"{layers[0]}",
                    "are all files of the rank there?",
                )
    table = np.array([[expert for rank in ranks for expert in rank] for ranks in named.values()], np.int64)
    return Placement(table, first_slot, int(table.max()) + 1, layer_ids)


def _alike_layers(shards: Shards) -> list[int]:
    """The layers that placements speak of, and of the others those with as many rows on each rank."""
    slots = shards.slots_per_rank
    beside = [layer for layer in shards.layers.beside if np.array_equal(shards.rows_of(layer), slots)]
    return sorted({*shards.layers.placed, *beside} or {*shards.moe_layers})
