"""Slices of experts, as plain tensor parallelism leaves them: every rank has all experts, and none whole.

To a placement they look like replicas, and all but one of the slices would be dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np

from eplb_cli.arrays import Digests
from eplb_cli.checkpoint.sharded import ShardedCheckpoint
from eplb_cli.checkpoint.shards import Shards
from eplb_cli.digests import DIGEST_NBYTES
from eplb_cli.errors import CheckpointError
from eplb_cli.placements.placement import EMPTY

Union = Callable[[Digests], Digests]
_SAMPLE_NBYTES = 4096
_WIDTHS = {"w13_weight": 2, "w2_weight": 1, "gate_up_proj": 2, "down_proj": 1}
"""Stacked weights that have a dimension of so many times the width of an expert."""


def slices_in(shards: Shards) -> str | None:
    """A sentence where the shapes of shards, with config.json beside them, say that these have slices."""
    config, num_ranks = shards.config, shards.num_ranks
    if config is None or num_ranks == 1 or not shards.layers.placed:
        return None
    experts, width = config.num_logical_experts, config.intermediate_size
    layer = shards.layers.placed[0]
    if width is None or experts is None or (shards.rows_of(layer) != experts).any():
        return None
    said = None
    for key, at in sorted(shards.tensors[0].items()):
        found = shards.expert_keys.get(key)
        times = None if found is None or found.layer != layer else _WIDTHS.get(found.tensor)
        if times is None:
            continue
        whole, sizes = times * width, _sizes(at.entry.shape[1:], config.hidden_size)
        if whole in sizes:  # packed, the other weight is narrower too
            return None
        part = next((size for size in sizes if whole % size == 0 and num_ranks % (whole // size) == 0), None)
        if part is not None and said is None:
            said = (
                f"{shards.path}: each of the {num_ranks} ranks has rows of all {experts:,} experts, and in "
                f"{key!r} {list(at.entry.shape)} they are {part:,} wide instead of {whole:,}: "
                "slices of tensor parallelism"
            )
    return said


def _sizes(row_shape: tuple[int, ...], hidden: int | None) -> list[int]:
    """The dimensions of a row that may be the width of an expert: those but one of the model's width."""
    sizes = [size for size in row_shape if size]
    if hidden in sizes:
        sizes.remove(hidden)
    return sizes


def require_no_slices(shards: Shards) -> None:
    """EP232 where the shapes say that every rank has a slice of each expert."""
    if problem := slices_in(shards):
        raise CheckpointError("EP232", problem)


def require_replicas(checkpoint: ShardedCheckpoint, union: Union = lambda digests: digests) -> None:
    """EP232 where all ranks hold all experts, and the replicas of every expert differ: these are none.

    A sample of one tensor of one layer is read.

    Args:
        union: puts together what several hosts have read, each of the files that it sees; zero for the rest.

    Raises:
        CheckpointError: EP201 or EP220, a shard cannot be read, or has changed.
    """
    require_no_slices(checkpoint.shards)
    old, sizes = checkpoint.placement, checkpoint.row_nbytes
    if old.num_ranks == 1 or not sizes.any():
        return
    table = old.physical_to_logical[0]
    held = [set(table[first:last].tolist()) for first, last in pairwise(old.first_slot)]
    if EMPTY in table or any(experts != held[0] for experts in held) or len(held[0]) == 1:
        return
    tensor = int(sizes[0].argmax())
    samples = union(_samples(checkpoint, tensor))
    for expert in held[0]:
        of_expert = samples[table == expert]
        if (of_expert == of_expert[0]).all():
            return
    template = checkpoint.expert_tensors[tensor].template
    problem = (
        f"each of the {old.num_ranks} ranks has all {len(held[0]):,} experts, and of no expert they have "
        f"the same {template!r}"
    )
    raise CheckpointError("EP232", f"{checkpoint.shards.path}: {problem}")


def _samples(checkpoint: ShardedCheckpoint, tensor: int) -> Digests:
    """(P, 16) digests of the first bytes of rows of the first layer, zero for those not read here."""
    import xxhash

    shards, where = checkpoint.shards, checkpoint.extents
    nbytes = min(_SAMPLE_NBYTES, int(checkpoint.row_nbytes[0, tensor]))
    file, offset = where.file[0, tensor], where.offset[0, tensor]
    digests = np.zeros((len(file), DIGEST_NBYTES), np.uint8)
    for slot in np.flatnonzero(shards.is_read_here[file]).tolist():
        content = shards.read(int(file[slot]), int(offset[slot]), nbytes)
        digests[slot] = np.frombuffer(xxhash.xxh3_128_digest(content), np.uint8)
    return digests
