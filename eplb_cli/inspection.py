"""What `eplb inspect` tells of a directory of shards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from eplb_cli.checkpoint import ShardedCheckpoint, Shards, bind, open_shards
from eplb_cli.classify import looks_sharded
from eplb_cli.findings import Finding
from eplb_cli.placement import Placement
from eplb_cli.placement_file import placement_to_json
from eplb_cli.prove import differing_replicas, row_view
from eplb_cli.verify import check_files, digest_tree


def inspect_shards(path: Path, layout: str, *, deep: bool, advance: Callable[[int], None]) -> dict[str, Any]:
    """Describe a tree from its headers; with `deep`, read it and look for what contradicts itself.

    Raises:
        CheckpointError: the shards cannot be read.
        BytesError: with `deep`, a tree with a manifest is not what that says.
    """
    shards = open_shards(path, layout)
    manifest = shards.manifest
    placement = _unknown_placement(shards) if manifest is None else manifest.read_placement(path)
    checkpoint = bind(shards, placement)
    findings: list[Finding] = []
    distinct = None
    if deep:
        if manifest is not None:
            check_files(path, manifest)
        digests = row_view(
            digest_tree(checkpoint, advance), checkpoint.row_nbytes.shape, checkpoint.placement.num_slots
        )
        distinct = _distinct_rows(checkpoint, digests)
        if manifest is not None:
            findings = _replica_findings(checkpoint, digests)
    others = [at.entry.nbytes for tensors in checkpoint.others for at in tensors.values()]
    shapes = [{key: at.entry.shape for key, at in tensors.items()} for tensors in checkpoint.others]
    return {
        "format": "eplb-inspection/1",
        "path": str(path),
        "layout": shards.layout.name,
        "num_ranks": shards.num_ranks,
        "slots_per_rank": shards.slots_per_rank.tolist(),
        "layers": shards.moe_layers,
        "expert_tensors": _expert_tensors(checkpoint),
        "others": {"count": len(others), "bytes": sum(others)},
        "sharded_others": looks_sharded(shapes, path),
        "files": len(shards.files),
        "bytes": shards.nbytes,
        "placement": None if manifest is None else placement_to_json(checkpoint.placement),
        "distinct_rows": distinct,
        "findings": [asdict(finding) for finding in findings],
    }


def _unknown_placement(shards: Shards) -> Placement:
    """A placement with the shape of the shards, in which every slot holds an expert of its own.

    Where keys name experts, the experts are those of the first layer.
    """
    slots = shards.slots_per_rank
    first_slot = np.concatenate([[0], np.cumsum(slots)])
    layer_ids = np.array(shards.moe_layers, np.int64)
    row = np.arange(int(first_slot[-1]))
    if shards.layout.numbering != "expert":
        return Placement(np.tile(row, (len(layer_ids), 1)), first_slot, len(row), layer_ids)
    table = np.array([[expert for rank in layer for expert in rank] for layer in _named_experts(shards)])
    return Placement(table.astype(np.int64), first_slot, int(table.max()) + 1, layer_ids)


def _named_experts(shards: Shards) -> list[list[list[int]]]:
    """Per layer and rank, the experts that the keys name, ascending."""
    found: dict[tuple[int, int], set[int]] = {}
    for rank, tensors in enumerate(shards.tensors):
        for key in tensors:
            expert = shards.layout.match_key(key)
            if expert is not None and expert.number is not None:
                found.setdefault((expert.layer, rank), set()).add(expert.number)
    return [
        [sorted(found.get((layer, rank), set())) for rank in range(shards.num_ranks)]
        for layer in shards.moe_layers
    ]


def _expert_tensors(checkpoint: ShardedCheckpoint) -> list[dict[str, Any]]:
    """One entry per tensor and kind of row."""
    kinds: dict[tuple[str, str, tuple[int, ...], int], int] = {}
    for layer, tensor in np.argwhere(checkpoint.row_nbytes > 0):
        kind = (
            checkpoint.expert_tensors[tensor].template,
            checkpoint.dtype[layer, tensor],
            checkpoint.row_shape[layer, tensor],
            int(checkpoint.row_nbytes[layer, tensor]),
        )
        kinds[kind] = kinds.get(kind, 0) + 1
    return [
        {"name": name, "dtype": dtype, "row_shape": list(shape), "row_bytes": nbytes, "num_layers": count}
        for (name, dtype, shape, nbytes), count in sorted(kinds.items())
    ]


def _distinct_rows(checkpoint: ShardedCheckpoint, digests: np.ndarray[Any, np.dtype[np.uint8]]) -> list[int]:
    """Per layer, how many slots differ in their bytes: the number of experts, if no two are alike."""
    per_slot = digests.transpose(0, 2, 1, 3).reshape(len(digests), checkpoint.placement.num_slots, -1)
    return [len(np.unique(layer, axis=0)) for layer in per_slot]


def _replica_findings(
    checkpoint: ShardedCheckpoint, digests: np.ndarray[Any, np.dtype[np.uint8]]
) -> list[Finding]:
    placement = checkpoint.placement
    pairs = {
        (layer, expert)
        for layer, expert, _ in differing_replicas(placement, digests, checkpoint.row_nbytes > 0)
    }
    return [
        Finding(
            "EP503",
            "error",
            f"layer {placement.layer_name(layer)}: the replicas of expert {expert} differ",
            layer=placement.layer_name(layer),
        )
        for layer, expert in sorted(pairs)
    ]
