"""What SRC's own manifest says of its bytes, and whether that is so."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from eplb_cli import files
from eplb_cli.arrays import Digests
from eplb_cli.checkpoint.known import named_layers
from eplb_cli.checkpoint.places import other_numbers
from eplb_cli.checkpoint.sharded import ShardedCheckpoint
from eplb_cli.checkpoint.shards import ShardFile, TensorAt, unlike_manifest
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
    _require_whole_tensors(checkpoint)
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
    rank, shards = int(old.rank_of_slot[slot]), checkpoint.shards
    if rank >= len(shards.recorded_ranks) and shards.missing_from is not None:
        shards = replace(shards, path=shards.missing_from)
    raise unlike_manifest(
        shards,
        f"layer {old.layer_number(layer)}, slot {slot} (rank {rank}, "
        f"row {old.row_of_slot[slot]}) of {checkpoint.expert_tensors[tensor].template!r}",
    )


def _require_whole_tensors(checkpoint: ShardedCheckpoint) -> None:
    """EP506 where a tensor that has rows now, and had none to the manifest, is not as that says.

    Those are tensors of layers that it does not name. They are read once more: from the digest of a tensor
    nothing follows for its rows. Each of several hosts reads what it sees, and fails for all of them.
    """
    shards, manifest = checkpoint.shards, checkpoint.shards.manifest
    ids = checkpoint.placement.layer_ids
    if manifest is None or ids is None:
        return
    unnamed = set(ids.tolist()) - set(named_layers(shards, manifest))
    ranks = shards.tensors[: len(shards.recorded_ranks)]
    for rank, tensors in enumerate(ranks if unnamed else ()):
        for key, at in tensors.items():
            found, file = shards.expert_keys.get(key), shards.files[at.file]
            digest = manifest.files[file.path.name]["others"].get(key)
            if found is None or found.layer not in unnamed or not digest or not at.entry.nbytes:
                continue
            if shards.is_read_here[at.file] and _digest_of(file, at) != digest:
                raise unlike_manifest(shards, f"{key!r} of rank {rank}")


def _digest_of(file: ShardFile, at: TensorAt) -> str:
    import xxhash

    state = xxhash.xxh3_128()
    with files.opened_source(file.path, file.stamp) as descriptor:
        for _, view in files.read_blocks(descriptor, at.entry.nbytes, file.path, at.offset):
            state.update(view)
    return state.hexdigest()


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
