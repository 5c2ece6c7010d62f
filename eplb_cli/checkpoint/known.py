"""The digests that lie beside the shards of a tree which eplb wrote."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eplb_cli.arrays import Digests
from eplb_cli.checkpoint.manifest import MANIFEST_NAME, Manifest, digest_file, read_digests, read_manifest
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
    for numbers, (path, rank, said) in zip(slots, _records(shards, manifest), strict=True):
        layers = _positions(placement.layer_ids, _named_layers(path, said), path)
        tensors = _positions(templates, said.expert_tensors, path)
        found = read_digests(path, rank, (len(layers), len(tensors), len(numbers)), said)
        if found is None:
            raise CheckpointError("EP214", f"{path / digest_file(rank)} is missing")
        rows[np.ix_(np.array(layers), np.array(tensors), numbers)] = found
    known = np.concatenate([rows.reshape(-1, DIGEST_NBYTES), _known_others(manifest.files, shards, others)])
    known.setflags(write=False)
    return known


def _records(shards: Shards, manifest: Manifest) -> list[tuple[Path, int, Manifest]]:
    """Of each rank, where its digests are, under which number, and what says so."""
    records = [(shards.path, rank, manifest) for rank in shards.recorded_ranks]
    if shards.missing_from is not None and (said := read_manifest(shards.missing_from)) is not None:
        records.append((shards.missing_from, 0, said))
    return records


def named_layers(shards: Shards, manifest: Manifest) -> list[int]:
    """The layers of which the manifest of shards has digests of rows."""
    return _named_layers(shards.path, manifest)


def _named_layers(path: Path, manifest: Manifest) -> list[int]:
    ids = manifest.read_placement(path).layer_ids
    return [] if ids is None else ids.tolist()


def _positions(among: Iterable[object] | None, wanted: Sequence[object], path: Path) -> list[int]:
    """Where the layers or tensors of a manifest are among those of the shards. Raises EP214."""
    at = {one: number for number, one in enumerate([] if among is None else among)}
    lost = [one for one in wanted if one not in at]
    if lost:
        problem = f"{path / MANIFEST_NAME} has digests of {lost[0]!r}, which is not there"
        raise CheckpointError("EP214", problem)
    return [at[one] for one in wanted]


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
