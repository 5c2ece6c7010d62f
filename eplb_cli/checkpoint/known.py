"""The digests that lie beside the shards of a tree which eplb wrote."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from eplb_cli.arrays import Digests, Int
from eplb_cli.checkpoint.manifest import digest_file, read_digests
from eplb_cli.checkpoint.places import other_numbers
from eplb_cli.checkpoint.shards import Shards, TensorAt
from eplb_cli.digests import DIGEST_NBYTES
from eplb_cli.errors import CheckpointError


def known_digests(
    shards: Shards,
    shape: tuple[int, ...],
    slots_per_rank: Int,
    others: Sequence[Mapping[str, TensorAt]],
) -> Digests | None:
    """(X, 16) digests of the places that the manifest has, zero for the others; None without any.

    Args:
        shape: (L, K), layers and expert tensors.

    Raises:
        BytesError: EP506, the digests beside the shards are not those that the manifest names.
        CheckpointError: EP214, they cannot be used, or are not there.
    """
    if shards.manifest is None or not shards.manifest.digests:
        return None
    num_layers, num_tensors = shape
    parts: list[Digests] = []
    for rank, slots in enumerate(slots_per_rank.tolist()):
        found = read_digests(shards.path, rank, (num_layers, num_tensors, slots), shards.manifest)
        if found is None:
            raise CheckpointError("EP214", f"{shards.path / digest_file(rank)} is missing")
        parts.append(found)
    rows = np.concatenate(parts, axis=2).reshape(-1, DIGEST_NBYTES)
    known = np.concatenate([rows, _known_others(shards.manifest.files, shards, others)])
    known.setflags(write=False)
    return known


def _known_others(
    of_file: Mapping[str, Mapping[str, Any]], shards: Shards, others: Sequence[Mapping[str, TensorAt]]
) -> Digests:
    """The digests of other tensors as the manifest has them by file, zero where it has none."""
    numbers = other_numbers(others)
    digests = np.zeros((len(numbers), DIGEST_NBYTES), np.uint8)
    for (rank, key), number in numbers.items():
        at = others[rank][key]
        digest = of_file.get(shards.files[at.file].path.name, {}).get("others", {}).get(key, "")
        if digest and at.entry.nbytes:
            digests[number] = np.frombuffer(bytes.fromhex(digest), np.uint8)
    return digests
