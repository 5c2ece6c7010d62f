"""A tree against the digests beside it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from eplb_cli import files
from eplb_cli.arrays import Digests
from eplb_cli.checkpoint.manifest import MANIFEST_NAME, Manifest, read_manifest
from eplb_cli.checkpoint.places import file_identities, other_numbers
from eplb_cli.checkpoint.sharded import ShardedCheckpoint
from eplb_cli.digests import zero_digests
from eplb_cli.errors import BytesError, CheckpointError
from eplb_cli.formats.safetensors_header import MAX_HEADER_NBYTES
from eplb_cli.machine import default_threads
from eplb_cli.output.prove import differing_replicas, replica_warnings, row_view
from eplb_cli.placements.placement import EMPTY
from eplb_cli.transfer.trees import digest_distinct, source_tree

DAMAGED = "the output was changed or damaged after it was written: make it again"


def manifest_of(path: Path) -> Manifest:
    """The manifest of a tree; one that was damaged is a difference in bytes like any other."""
    with files.reading(path):
        os.scandir(path).close()
    try:
        manifest = read_manifest(path, exact=True)
    except CheckpointError as error:
        if error.code == "EP214":
            raise BytesError("EP505", error.message) from error
        raise
    if manifest is None:
        raise CheckpointError(
            "EP214", f"{path} has no {MANIFEST_NAME}", "only trees that eplb wrote can be verified"
        )
    return manifest


def check_files(path: Path, manifest: Manifest) -> None:
    """Names, sizes and headers of shards, and the whole of all other files. Raises EP505."""
    with files.reading(path):
        present = {file.name for file in path.iterdir() if file.name.endswith(".safetensors")}
    if difference := present ^ manifest.files.keys():
        name = min(difference)
        problem = "is not in the manifest" if name in present else "is missing"
        raise BytesError("EP505", f"{path / name} {problem}")
    for name, file in manifest.files.items():
        if header_digest(path / name, file["nbytes"]) != file["header_digest"]:
            raise BytesError("EP505", f"{path / name}: its header is not the one that was written")
    for name, file in {**manifest.carried, **manifest.digests}.items():
        if _content_digest(_sized(path / name, file["nbytes"]), file["nbytes"]) != file.get("digest"):
            raise BytesError("EP505", f"{path / name} is not what was written")


def _content_digest(path: Path, nbytes: int) -> str:
    """Hexadecimal xxh3-128 of a file of `nbytes`, however large."""
    state = xxhash.xxh3_128()
    with files.opened_source(path) as descriptor:
        for _, view in files.read_blocks(descriptor, nbytes, path):
            state.update(view)
    return state.hexdigest()


def _sized(path: Path, nbytes: int) -> Path:
    """The path of a file that has to have `nbytes`."""
    try:
        found = path.lstat().st_size
    except OSError as error:
        raise BytesError("EP505", f"{path} is missing") from error
    if found != nbytes:
        raise BytesError("EP505", f"{path} has {found} bytes instead of {nbytes}")
    return path


def header_digest(path: Path, nbytes: int) -> str:
    """sha256 of everything before the data of a shard of `nbytes`. Raises EP505 for another size."""
    with files.opened_source(_sized(path, nbytes)) as descriptor:
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
    with source_tree(checkpoint.shards.files) as tree, ThreadPoolExecutor(default_threads(1)) as pool:
        return digest_distinct(places, wanted, one_file, tree, pool, advance)


def check_own_digests(checkpoint: ShardedCheckpoint, digests: Digests) -> list[str]:
    """Compare a tree with the digests beside it; a warning for each expert whose replicas differ.

    Raises:
        CheckpointError: EP214, the digests cannot be used.
        BytesError: EP501, a row; EP502, an empty row; EP504, another tensor.
    """
    known = checkpoint.known_digests
    if known is None:
        return []
    placement, shape = checkpoint.placement, checkpoint.row_nbytes.shape
    rows, known_rows = (row_view(each, shape, placement.num_slots) for each in (digests, known))
    filled = (placement.physical_to_logical != EMPTY)[:, None, :] & (checkpoint.row_nbytes > 0)[:, :, None]
    wrong = np.argwhere((rows != known_rows).any(axis=-1) & filled)
    if len(wrong):
        raise BytesError("EP501", f"{row_name(checkpoint, wrong[0])} is not what was written", DAMAGED)
    _require_zero_rows(checkpoint, rows, filled)
    _check_others(checkpoint, digests, known)
    odd = differing_replicas(placement, rows, checkpoint.row_nbytes > 0)
    return replica_warnings(checkpoint, odd)


def row_name(checkpoint: ShardedCheckpoint, place: NDArray[np.int64]) -> str:
    """A row of a tree in words: file, layer, slot and tensor."""
    layer, tensor, slot = (int(number) for number in place)
    placement = checkpoint.placement
    path = checkpoint.shards.files[int(checkpoint.extents.file[layer, tensor, slot])].path
    return (
        f"{path}: layer {placement.layer_number(layer)}, slot {slot} (rank {placement.rank_of_slot[slot]}, "
        f"row {placement.row_of_slot[slot]}) of {checkpoint.expert_tensors[tensor].template!r}"
    )


def _require_zero_rows(checkpoint: ShardedCheckpoint, rows: Digests, filled: NDArray[np.bool_]) -> None:
    empty = np.argwhere(~filled & (checkpoint.extents.file >= 0) & (checkpoint.row_nbytes > 0)[:, :, None])
    zero = zero_digests(np.unique(checkpoint.row_nbytes).tolist())
    for layer, tensor, slot in empty:
        if rows[layer, tensor, slot].tobytes() != zero[int(checkpoint.row_nbytes[layer, tensor])]:
            place = np.array([layer, tensor, slot])
            raise BytesError("EP502", f"{row_name(checkpoint, place)} is empty and not zero", DAMAGED)


def _check_others(checkpoint: ShardedCheckpoint, digests: Digests, known: Digests) -> None:
    """Compare the other tensors with those digests of the manifest that it has."""
    num_rows = checkpoint.extents.file.size
    wrong = (digests != known).any(axis=1) & known.any(axis=1)
    for (rank, key), number in other_numbers(checkpoint.others).items():
        if wrong[num_rows + number]:
            path = checkpoint.shards.files[checkpoint.others[rank][key].file].path
            raise BytesError("EP504", f"{path}: {key!r} is not what was written", DAMAGED)
