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
    if len(shards.moe_layers) * int(slots.sum()) > MAX_ENTRIES:
        rows = f"{len(shards.moe_layers):,} layers of {int(slots.sum()):,} rows"
        raise CheckpointError("EP208", f"{shards.path} has {rows}; more than {MAX_ENTRIES:,} are too many")
    first_slot = np.concatenate([[0], np.cumsum(slots)])
    layer_ids = np.array(shards.moe_layers, np.int64)
    row = np.arange(int(first_slot[-1]))
    if shards.layout.numbering != "expert":
        return Placement(np.tile(row, (len(layer_ids), 1)), first_slot, len(row), layer_ids)
    named = _named_experts(shards)
    for layer, ranks in zip(shards.moe_layers, named, strict=True):
        for rank, experts in enumerate(ranks):
            if len(experts) != slots[rank]:
                raise CheckpointError(
                    "EP217",
                    f"rank {rank} has {len(experts)} experts in layer {layer}, and {slots[rank]} in layer "
                    f"{shards.moe_layers[0]}",
                    "are all files of the rank there?",
                )
    table = np.array([[expert for rank in ranks for expert in rank] for ranks in named], np.int64)
    return Placement(table, first_slot, int(table.max()) + 1, layer_ids)


def _named_experts(shards: Shards) -> list[list[list[int]]]:
    """Per layer and rank, the experts that the keys name, ascending."""
    found: dict[tuple[int, int], set[int]] = {}
    for rank, tensors in enumerate(shards.tensors):
        for key in tensors:
            expert = shards.layout.match_key(key)
            if expert is not None and expert.number is not None:
                found.setdefault((expert.layer, rank), set()).add(expert.number)
    return [
        [sorted(found.get((layer, rank), set())) for rank in range(shards.num_ranks)]
        for layer in shards.moe_layers
    ]
