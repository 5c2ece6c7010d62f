"""What SRC's own manifest says of its bytes, and whether that is so."""

from __future__ import annotations

import numpy as np

from eplb_cli.arrays import Digests
from eplb_cli.checkpoint.places import other_numbers
from eplb_cli.checkpoint.sharded import ShardedCheckpoint
from eplb_cli.checkpoint.shards import unlike_manifest
from eplb_cli.digests import DIGEST_NBYTES, zero_digests
from eplb_cli.placements.placement import EMPTY


def require_digests(checkpoint: ShardedCheckpoint) -> None:
    """EP214 or EP506 where the digests beside SRC cannot be used, before anything hangs on them."""
    _ = checkpoint.known_digests


def require_as_in_manifest(checkpoint: ShardedCheckpoint, old_digests: Digests) -> None:
    """EP506 where a row or another tensor of SRC is not what its own manifest says; empty rows are zero.

    Raises:
        BytesError: EP506.
        CheckpointError: EP214, the digests beside the shards cannot be used.
    """
    if checkpoint.known_digests is None:
        return
    known = checkpoint.known_digests.copy()
    old, num_rows = checkpoint.placement, checkpoint.extents.file.size
    _know_empty_rows(checkpoint, known[:num_rows])
    wrong = np.flatnonzero((known != old_digests).any(axis=1) & known.any(axis=1))
    if not len(wrong):
        return
    first = int(wrong[0])
    if first >= num_rows:
        rank, key = list(other_numbers(checkpoint.others))[first - num_rows]
        raise unlike_manifest(checkpoint.shards, f"{key!r} of rank {rank}")
    layer, tensor, slot = (int(number) for number in np.unravel_index(first, checkpoint.extents.file.shape))
    raise unlike_manifest(
        checkpoint.shards,
        f"layer {old.layer_number(layer)}, slot {slot} (rank {old.rank_of_slot[slot]}, "
        f"row {old.row_of_slot[slot]}) of {checkpoint.expert_tensors[tensor].template!r}",
    )


def _know_empty_rows(checkpoint: ShardedCheckpoint, known: Digests) -> None:
    """Set the digests of empty rows, of which the manifest has none, to those of zeros."""
    exists = (checkpoint.extents.file >= 0) & (checkpoint.row_nbytes > 0)[:, :, None]
    empty = exists & (checkpoint.placement.physical_to_logical == EMPTY)[:, None, :]
    sizes, which = np.unique(
        np.broadcast_to(checkpoint.row_nbytes[:, :, None], empty.shape)[empty], return_inverse=True
    )
    zero = zero_digests(sizes.tolist())
    digests = np.frombuffer(b"".join(zero[size] for size in sizes.tolist()), np.uint8)
    known[np.flatnonzero(empty)] = digests.reshape(-1, DIGEST_NBYTES)[which]
