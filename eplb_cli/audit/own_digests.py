"""A tree against the digests beside it: everything that differs, a coded error for each place."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Container, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from eplb_cli import files
from eplb_cli.arrays import Digests, distinct
from eplb_cli.checkpoint.layout_file import layout_from_json
from eplb_cli.checkpoint.manifest import MANIFEST_NAME, Manifest, read_manifest
from eplb_cli.checkpoint.part import files_of, part_there
from eplb_cli.checkpoint.places import file_identities, other_numbers
from eplb_cli.checkpoint.sharded import ShardedCheckpoint
from eplb_cli.digests import DIGEST_NBYTES, zero_digests
from eplb_cli.errors import BytesError, CheckpointError, Where
from eplb_cli.formats.safetensors_header import MAX_HEADER_NBYTES
from eplb_cli.machine import reading_threads
from eplb_cli.output.prove import differing_replicas, replica_warnings
from eplb_cli.placements.placement import EMPTY, Placement
from eplb_cli.transfer.reading import digest_distinct
from eplb_cli.transfer.threads import Threads
from eplb_cli.transfer.trees import source_tree
from eplb_cli.values import dataclass

DAMAGED = "the output was changed or damaged after it was written: make it again"


def manifest_of(path: Path) -> Manifest:
    """The manifest of a tree, finished or not; one that was damaged is a difference in bytes like any other.

    Raises:
        BytesError: EP505, it was damaged.
        CheckpointError: EP201, there is no directory; EP214, it has no manifest.
    """
    with files.reading(path):
        os.scandir(path).close()
    try:
        manifest = read_manifest(path, exact=True, unfinished=True)
    except CheckpointError as error:
        if error.code == "EP214":
            raise BytesError("EP505", error.message) from error
        raise
    if manifest is None:
        raise CheckpointError(
            "EP214", f"{path} has no {MANIFEST_NAME}", "only trees that eplb wrote can be verified"
        )
    return manifest


def shard_differences(
    path: Path, manifest: Manifest, ranks: Container[int] | None = None
) -> Iterator[BytesError]:
    """EP505 for each shard whose name, size or header is not what was written.

    Args:
        ranks: do not look at the files of others; None for all.
    """
    with files.reading(path):
        present = {file.name for file in path.iterdir() if file.name.endswith(".safetensors")}
    layout = layout_from_json(manifest.layout, path / MANIFEST_NAME)
    hint = part_there(path, present, layout, manifest) if ranks is None else ""
    rank_of = files_of({*present, *manifest.files}, layout)
    apart = {name for name, rank in rank_of.items() if ranks is not None and rank not in ranks}
    for name in sorted(present - manifest.files.keys() - apart):
        yield _changed(path / name, " is not in the manifest")
    for name, file in manifest.files.items():
        if name in apart:
            continue
        if problem := _size_problem(path / name, file["nbytes"]):
            yield _changed(path / name, problem, "" if name in present else hint)
        elif _header_digest(path / name, file["nbytes"]) != file["header_digest"]:
            yield _changed(path / name, ": its header is not the one that was written")


def file_differences(path: Path, known: Mapping[str, Mapping[str, Any]]) -> Iterator[BytesError]:
    """EP505 for each file beside the shards that is not what was written, byte for byte."""
    for name, file in known.items():
        if problem := _size_problem(path / name, file["nbytes"]):
            yield _changed(path / name, problem)
        elif _content_digest(path / name, file["nbytes"]) != file.get("digest"):
            yield _changed(path / name, " is not what was written")


def _changed(path: Path, problem: str, hint: str = "") -> BytesError:
    return BytesError("EP505", f"{path}{problem}", hint, Where(str(path)))


def _content_digest(path: Path, nbytes: int) -> str:
    """Hexadecimal xxh3-128 of a file of `nbytes`, however large."""
    state = xxhash.xxh3_128()
    with files.opened_source(path) as descriptor:
        for _, view in files.read_blocks(descriptor, nbytes, path):
            state.update(view)
    return state.hexdigest()


def _size_problem(path: Path, nbytes: int) -> str:
    """What is wrong with a file that has to have `nbytes`, if it has not."""
    try:
        found = path.lstat().st_size
    except OSError:
        return " is missing"
    return "" if found == nbytes else f" has {found} bytes instead of {nbytes}"


def _header_digest(path: Path, nbytes: int) -> str:
    """sha256 of everything before the data of a shard of `nbytes`."""
    with files.opened_source(path) as descriptor:
        length = memoryview(bytearray(8))
        files.read_into(descriptor, length, 0, path)
        header_nbytes = min(int.from_bytes(length, "little"), MAX_HEADER_NBYTES, nbytes - 8)
        header = memoryview(bytearray(8 + header_nbytes))
        files.read_into(descriptor, header, 0, path)
    return hashlib.sha256(header).hexdigest()


def digest_tree(checkpoint: ShardedCheckpoint, advance: Callable[[int], None]) -> Digests:
    """The digests of all places of a tree, read by several threads; what is one file, only once."""
    places = checkpoint.places
    files.allow_open_files(len(checkpoint.shards.files))
    one_file = file_identities(checkpoint.shards, places)
    wanted = np.flatnonzero(places.nbytes)
    with source_tree(checkpoint.shards.files) as tree, Threads(reading_threads(1)) as pool:
        return digest_distinct(places, wanted, one_file, tree, pool, advance)


@dataclass(frozen=True, eq=False)
class Tree:
    """A tree whose bytes were read, or some ranks of one: those of its checkpoint, which have closed up.

    Attributes:
        digests: (X, 16) of its places: rows first, then the other tensors.
        manifest: what its `eplb.json` says.
    """

    checkpoint: ShardedCheckpoint
    digests: Digests
    manifest: Manifest

    @cached_property
    def whole(self) -> Placement:
        """The placement of all ranks, read or not."""
        shards = self.checkpoint.shards
        return self.manifest.read_placement(shards.path) if shards.lost else self.checkpoint.placement

    @cached_property
    def ranks(self) -> list[int]:
        """The numbers that its ranks have in the whole placement."""
        return self.checkpoint.shards.recorded_ranks

    @property
    def shape(self) -> tuple[int, ...]:
        """(L, K, P)."""
        return self.checkpoint.extents.file.shape

    @property
    def num_rows(self) -> int:
        """Places that are rows."""
        return self.checkpoint.extents.file.size

    @property
    def rows(self) -> Digests:
        """(L, K, P, 16)."""
        return self.digests[: self.num_rows].reshape(*self.shape, DIGEST_NBYTES)

    @property
    def templates(self) -> list[str]:
        """The K expert tensors."""
        return [tensor.template for tensor in self.checkpoint.expert_tensors]

    def row_error(self, place: int, code: str, problem: str, hint: str = DAMAGED) -> BytesError:
        """An error about a row, by the number of its place."""
        checkpoint, placement = self.checkpoint, self.checkpoint.placement
        layer, tensor, slot = (int(number) for number in np.unravel_index(place, self.shape))
        rank, row = self.ranks[placement.rank_of_slot[slot]], int(placement.row_of_slot[slot])
        where = Where(
            file=str(checkpoint.shards.files[int(checkpoint.extents.file[layer, tensor, slot])].path),
            layer=placement.layer_number(layer),
            slot=int(self.whole.first_slot[rank]) + row,
            rank=rank,
            tensor=checkpoint.expert_tensors[tensor].template,
        )
        message = (
            f"{where.file}: layer {where.layer}, slot {where.slot} (rank {where.rank}, "
            f"row {row}) of {where.tensor!r} {problem}"
        )
        return BytesError(code, message, hint, where)

    def other_error(self, rank: int, key: str, problem: str, hint: str = DAMAGED) -> BytesError:
        """EP504 about another tensor."""
        path = self.checkpoint.shards.files[self.checkpoint.others[rank][key].file].path
        where = Where(str(path), rank=self.ranks[rank], tensor=key)
        return BytesError("EP504", f"{path}: {key!r} {problem}", hint, where)


def own_differences(tree: Tree) -> Iterator[BytesError]:
    """Compare a tree with the digests beside it, if there are any, and its empty rows with zeros.

    Returns:
        EP501 for each row, EP502 for each empty row, EP504 for each other tensor that differs.

    Raises:
        CheckpointError: EP214, the digests cannot be used.
    """
    checkpoint, known = tree.checkpoint, tree.checkpoint.known_digests
    exists = np.broadcast_to((checkpoint.row_nbytes > 0)[:, :, None], tree.shape)
    filled = exists & (checkpoint.placement.physical_to_logical != EMPTY)[:, None, :]
    wrong = np.zeros(len(tree.digests), np.bool_)
    if known is not None:
        wrong = (tree.digests != known).any(axis=1)
    for place in np.flatnonzero(wrong[: tree.num_rows] & filled.ravel()).tolist():
        yield tree.row_error(place, "EP501", "is not what was written")
    yield from _empty_differences(tree, exists & ~filled & (checkpoint.extents.file >= 0))
    for (rank, key), number in other_numbers(checkpoint.others).items():
        place = tree.num_rows + number
        if known is not None and wrong[place] and known[place].any():  # the manifest has not all of them
            yield tree.other_error(rank, key, "is not what was written")


def _empty_differences(tree: Tree, empty: NDArray[np.bool_]) -> Iterator[BytesError]:
    """EP502 for each empty row, (L, K, P), that has something in it."""
    row_nbytes = tree.checkpoint.row_nbytes
    zero = zero_digests(distinct(row_nbytes).tolist())
    for layer, tensor, slot in np.argwhere(empty).tolist():
        if tree.rows[layer, tensor, slot].tobytes() != zero[int(row_nbytes[layer, tensor])]:
            place = int(np.ravel_multi_index((layer, tensor, slot), tree.shape))
            yield tree.row_error(place, "EP502", "is empty and not zero")


def own_warnings(tree: Tree) -> list[str]:
    """A warning for each expert whose replicas differ."""
    checkpoint = tree.checkpoint
    odd = differing_replicas(checkpoint.placement, tree.rows, checkpoint.row_nbytes > 0)
    return replica_warnings(checkpoint, odd)
