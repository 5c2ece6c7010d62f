"""Where everything lies in SRC: rows first, then the other tensors, each with the number of its digest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from eplb_cli import files
from eplb_cli.arrays import Int
from eplb_cli.checkpoint.sharded import Extents, ShardedCheckpoint
from eplb_cli.checkpoint.shards import TensorAt


@dataclass(frozen=True, eq=False)
class Places:
    """All rows and other tensors of one tree, columns of shape (X,).

    Rows come first, as (layer, tensor, slot) flattened; then the other tensors. `nbytes` is 0 where
    there is nothing. A place's number is the number of its digest.
    """

    rank: Int
    file: Int
    offset: Int
    nbytes: Int


def old_places(checkpoint: ShardedCheckpoint) -> Places:
    """The places of SRC; other tensors are those of all old ranks, by rank and key."""
    rank, at = [], []
    for number, tensors in enumerate(checkpoint.others):
        rank += [number] * len(tensors)
        at += [tensors[key] for key in sorted(tensors)]
    return places_of(
        checkpoint.extents,
        checkpoint.row_nbytes,
        checkpoint.placement.rank_of_slot,
        np.array(rank, np.int64),
        np.array([(tensor.file, tensor.offset, tensor.entry.nbytes) for tensor in at], np.int64).reshape(
            -1, 3
        ),
    )


def places_of(extents: Extents, row_nbytes: Int, rank_of_slot: Int, rank: Int, others: Int) -> Places:
    """The places of a tree, from where its rows and its other tensors (X, 3) lie."""
    exists = extents.file >= 0
    return Places(
        np.r_[np.broadcast_to(rank_of_slot, exists.shape).ravel(), rank],
        np.r_[extents.file.ravel(), others[:, 0]].astype(np.int64),
        np.r_[extents.offset.ravel(), others[:, 1]],
        np.r_[(exists * row_nbytes[:, :, None]).ravel(), others[:, 2]],
    )


def file_identities(checkpoint: ShardedCheckpoint, places: Places) -> Int:
    """(X,) a number for each place; the same where two ranks have one file under two names."""
    with files.reading(checkpoint.shards.path):
        status = [file.path.lstat() for file in checkpoint.shards.files]
    inodes = {(one.st_dev, one.st_ino): number for number, one in reversed(list(enumerate(status)))}
    file = np.array([inodes[one.st_dev, one.st_ino] for one in status], np.int64)[places.file]
    return np.unique(np.stack([file, places.offset]), axis=1, return_inverse=True)[1].ravel()


def other_numbers(others: tuple[Mapping[str, TensorAt], ...]) -> dict[tuple[int, str], int]:
    """(old rank, key) to the position among the other tensors of `old_places`."""
    ordered = [(rank, key) for rank, tensors in enumerate(others) for key in sorted(tensors)]
    return {place: number for number, place in enumerate(ordered)}
