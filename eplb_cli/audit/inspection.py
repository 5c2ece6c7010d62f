"""What `eplb inspect` tells of a directory of shards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from eplb_cli.arrays import Digests
from eplb_cli.audit.identify import identification_json, identify
from eplb_cli.audit.own_digests import check_files, check_own_digests, digest_tree
from eplb_cli.checkpoint.manifest import Manifest
from eplb_cli.checkpoint.others import looks_sharded
from eplb_cli.checkpoint.sharded import ShardedCheckpoint, bind
from eplb_cli.checkpoint.shards import Shards, open_shards
from eplb_cli.errors import BytesError, CheckpointError
from eplb_cli.files import write_whole
from eplb_cli.models.preset import presets
from eplb_cli.output.prove import differing_replicas, row_view
from eplb_cli.placements.findings import Finding
from eplb_cli.placements.own_format import format_placement, placement_to_json
from eplb_cli.placements.placement import EMPTY, MAX_ENTRIES, Placement


def inspect_shards(path: Path, layout: str, *, deep: bool, advance: Callable[[int], None]) -> dict[str, Any]:
    """Describe a tree from its headers; with `deep`, read it and look for what contradicts itself.

    Raises:
        CheckpointError: the shards cannot be read, or contradict the manifest in their headers.
    """
    shards = open_shards(path, layout)
    manifest = shards.manifest
    placement = _unknown_placement(shards) if manifest is None else manifest.read_placement(path)
    checkpoint = bind(shards, placement)
    findings: list[Finding] = []
    distinct = None
    if deep:
        digests = digest_tree(checkpoint, advance)
        rows = row_view(digests, checkpoint.row_nbytes.shape, checkpoint.placement.num_slots)
        distinct = _distinct_rows(checkpoint, rows)
        if manifest is not None:
            findings = [*_damage(checkpoint, manifest, digests), *_replica_findings(checkpoint, rows)]
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


def identify_shards(
    path: Path, layout: str, against: Path, output: Path | None, advance: Callable[[int], None]
) -> dict[str, Any]:
    """Tell the placement of shards by their bytes, and write it to a new file.

    Raises:
        CheckpointError: EP227, their rows are not those of the checkpoint.
    """
    shards = open_shards(path, layout)
    found = identify(bind(shards, _unknown_placement(shards)), against, advance)
    if output is not None:
        write_whole(output, format_placement(found.placement).encode())
    return identification_json(found, path, against, output)


def describe_models() -> dict[str, Any]:
    """What `eplb inspect --models` tells of each preset."""
    models = [
        {
            "name": model.name,
            "description": model.description,
            "num_hidden_layers": model.num_hidden_layers,
            "moe_layers": list(model.moe_layers),
            "mtp_layers": list(model.mtp_layers),
            "num_logical_experts": model.num_logical_experts,
            "hidden_size": model.hidden_size,
            "moe_intermediate_size": model.intermediate_size,
            "expert_bytes": model.expert_nbytes,
            "experts": model.experts,
            "tensors": {
                name: {"dtype": tensor.dtype, "shape": list(tensor.shape)}
                for name, tensor in model.tensors.items()
            },
        }
        for model in presets()
    ]
    return {"format": "eplb-models/1", "models": models}


def _damage(checkpoint: ShardedCheckpoint, manifest: Manifest, digests: Digests) -> list[Finding]:
    """The first thing that is not as the manifest and the digests beside it say."""
    try:
        check_files(checkpoint.shards.path, manifest)
        check_own_digests(checkpoint, digests)
    except BytesError as error:
        return [Finding(error.code, "error", error.message, error.hint)]
    return []


def _unknown_placement(shards: Shards) -> Placement:
    """A placement with the shape of the shards, in which every slot holds an expert of its own.

    Where keys name experts, they are in ascending order on each rank.

    Raises:
        CheckpointError: EP217, a rank has more experts in one layer than in another; EP208, the shards claim
            more rows than any placement has.
    """
    slots = shards.slots_per_rank
    if len(shards.moe_layers) * int(slots.sum()) > MAX_ENTRIES:
        rows = f"{len(shards.moe_layers):,} layers of {int(slots.sum()):,} rows"
        raise CheckpointError("EP208", f"{shards.path} has {rows}; more than {MAX_ENTRIES:,} are too many")
    first_slot = np.concatenate([[0], np.cumsum(slots)])
    layer_ids = np.array(shards.moe_layers, np.int64)
    row = np.arange(int(first_slot[-1]))
    if shards.layout.numbering != "expert":
        return Placement(np.tile(row, (len(layer_ids), 1)), first_slot, len(row), layer_ids)
    named = _named_experts(shards)
    for layer, ranks in zip(shards.moe_layers, named, strict=True):
        for rank, experts in enumerate(ranks):
            if len(experts) != slots[rank]:
                raise CheckpointError(
                    "EP217",
                    f"rank {rank} has {len(experts)} experts in layer {layer}, and {slots[rank]} in layer "
                    f"{shards.moe_layers[0]}",
                    "are all files of the rank there?",
                )
    table = np.array([[expert for rank in ranks for expert in rank] for ranks in named], np.int64)
    return Placement(table, first_slot, int(table.max()) + 1, layer_ids)


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
    """Per layer, how many filled slots differ in their bytes: the number of experts, if no two are alike."""
    placement = checkpoint.placement
    per_slot = digests.transpose(0, 2, 1, 3).reshape(len(digests), placement.num_slots, -1)
    filled = placement.physical_to_logical != EMPTY
    return [len(np.unique(slots[full], axis=0)) for slots, full in zip(per_slot, filled, strict=True)]


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
            f"layer {placement.layer_number(layer)}: the replicas of expert {expert} differ",
            layer=placement.layer_number(layer),
        )
        for layer, expert in sorted(pairs)
    ]
