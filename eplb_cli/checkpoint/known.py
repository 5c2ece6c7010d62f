"""The digests that lie beside the shards of a tree which eplb wrote."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eplb_cli.arrays import Digests, Int
from eplb_cli.checkpoint.beside import FileBeside
from eplb_cli.checkpoint.manifest import (
    MANIFEST_NAME,
    Manifest,
    digest_file,
    digests_of,
    file_beside,
    read_manifest,
)
from eplb_cli.checkpoint.places import other_numbers
from eplb_cli.checkpoint.shards import Shards, TensorAt
from eplb_cli.digests import DIGEST_NBYTES
from eplb_cli.errors import CheckpointError
from eplb_cli.placements.placement import Placement


def known_digests(
    shards: Shards,
    placement: Placement,
    templates: Sequence[str],
    others: Sequence[Mapping[str, TensorAt]],
) -> Digests | None:
    """(X, 16) digests of the places that the manifest has, zero for the others; None without any.

    Of layers that the manifest does not name, it has digests of whole tensors and none of rows.

    Args:
        placement: L layers, at least those that the manifest names.
        templates: of the K expert tensors.

    Raises:
        BytesError: EP506, the digests beside the shards are not those that the manifest names.
        CheckpointError: EP214, they cannot be used, or are not there.
    """
    manifest = shards.manifest
    if manifest is None or not manifest.digests:
        return None
    rows = np.zeros((placement.num_layers, len(templates), placement.num_slots, DIGEST_NBYTES), np.uint8)
    slots = np.split(np.arange(placement.num_slots), placement.first_slot[1:-1])
    for numbers, (file, said, named) in zip(slots, _records(shards, manifest), strict=True):
        path = file.path.parent
        if not file.exists:
            raise CheckpointError("EP214", f"{file.path} is missing")
        found = digests_of(file, (len(named), len(said.expert_tensors), len(numbers)))
        layers = _positions(placement.layer_ids, named, found, shards, path)
        tensors = _positions(templates, said.expert_tensors, found.swapaxes(0, 1), shards, path)
        here = np.ix_(layers >= 0, tensors >= 0)
        rows[np.ix_(layers[layers >= 0], tensors[tensors >= 0], numbers)] = found[here]
    known = np.concatenate([rows.reshape(-1, DIGEST_NBYTES), _known_others(manifest.files, shards, others)])
    known.setflags(write=False)
    return known


def _records(shards: Shards, manifest: Manifest) -> list[tuple[FileBeside, Manifest, list[int]]]:
    """Of each rank, where its digests are, what says so, and of which layers."""
    named = named_layers(shards, manifest)
    records = [(shards.beside(digest_file(rank)), manifest, named) for rank in shards.recorded_ranks]
    if shards.missing_from is not None and (said := read_manifest(shards.missing_from)) is not None:
        file = file_beside(shards.missing_from, digest_file(0), said)
        records.append((file, said, _named_layers(shards.missing_from, said)))
    return records


def named_layers(shards: Shards, manifest: Manifest) -> list[int]:
    """The layers of which the manifest of shards has digests of rows."""
    return _named_layers(shards.path, manifest)


def _named_layers(path: Path, manifest: Manifest) -> list[int]:
    ids = manifest.read_placement(path).layer_ids
    return [] if ids is None else ids.tolist()


def _positions(
    among: Iterable[object] | None, wanted: Sequence[object], digests: Digests, shards: Shards, path: Path
) -> Int:
    """Where the layers or tensors of a manifest are among those of the shards.

    Args:
        digests: (N, ..., 16) of the N that are wanted.

    Returns:
        (N,) their numbers; -1 for what only ranks have that are lost.

    Raises:
        CheckpointError: EP214, one is not there, and there are digests of its rows.
    """
    at = {one: number for number, one in enumerate([] if among is None else among)}
    found = np.array([at.get(one, -1) for one in wanted], np.int64)
    for number in np.flatnonzero(found < 0).tolist():
        if not shards.lost or digests[number].any():
            problem = f"{path / MANIFEST_NAME} has digests of {wanted[number]!r}, which is not there"
            raise CheckpointError("EP214", problem)
    return found


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
