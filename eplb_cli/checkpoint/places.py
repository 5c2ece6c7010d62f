"""Where everything lies in SRC: rows first, then the other tensors, each with the number of its digest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from eplb_cli import files
from eplb_cli.arrays import Int
from eplb_cli.checkpoint.shards import Shards, TensorAt
from eplb_cli.errors import CheckpointError
from eplb_cli.values import dataclass


@dataclass(frozen=True, eq=False)
class Extents:
    """Where rows lie: (L, K, P) file numbers and offsets; file -1 where there is no such row."""

    file: NDArray[np.int32]
    offset: NDArray[np.int64]


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


def old_places(
    extents: Extents, row_nbytes: Int, rank_of_slot: Int, others: Sequence[Mapping[str, TensorAt]]
) -> Places:
    """The places of SRC; other tensors are those of all old ranks, by rank and key."""
    numbers = other_numbers(others)
    at = [others[rank][key] for rank, key in numbers]
    where = [(tensor.file, tensor.offset, tensor.entry.nbytes) for tensor in at]
    return places_of(
        extents,
        row_nbytes,
        rank_of_slot,
        np.array([rank for rank, _ in numbers], np.int64),
        np.array(where, np.int64).reshape(-1, 3),
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


def file_identities(shards: Shards, places: Places) -> Int:
    """(X,) a number for each place; the same where two ranks have one file under two names.

    Raises:
        CheckpointError: EP201, a file is gone; EP220, one is not that whose header was read.
    """
    identities: list[tuple[int, ...]] = []
    with files.reading(shards.path):
        status = [
            file.path.lstat() if here else None
            for file, here in zip(shards.files, shards.is_here, strict=True)
        ]
    for file, one in zip(shards.files, status, strict=True):
        if one is not None and (one.st_size, one.st_mtime_ns) != file.stamp:
            raise CheckpointError("EP220", f"{file.path} changed while it was read")
        identities.append(file.inode or (() if one is None else (one.st_dev, one.st_ino)))
    first = {identity: number for number, identity in reversed(list(enumerate(identities)))}
    number = np.array([first[identity] for identity in identities], np.int64)[places.file]
    return np.unique(np.stack([number, places.offset]), axis=1, return_inverse=True)[1].ravel()


def other_numbers(others: Sequence[Mapping[str, TensorAt]]) -> dict[tuple[int, str], int]:
    """(old rank, key) to the position among the other tensors of SRC, in the order of its places."""
    ordered = [(rank, key) for rank, tensors in enumerate(others) for key in sorted(tensors)]
    return {place: number for number, place in enumerate(ordered)}
