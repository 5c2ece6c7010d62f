"""What a directory of shards holds."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from os import PathLike
from pathlib import Path

import numpy as np

from eplb_cli.arrays import Digests
from eplb_cli.audit.differences import MAX_LISTED
from eplb_cli.audit.own_digests import (
    Tree,
    digest_tree,
    file_differences,
    own_differences,
    shard_differences,
)
from eplb_cli.audit.reading import reading
from eplb_cli.audit.unknown import unknown_placement
from eplb_cli.checkpoint.expert_maps import guessed_inside, placement_inside
from eplb_cli.checkpoint.manifest import Manifest
from eplb_cli.checkpoint.ranks import missing_ranks, one_in_each_slot
from eplb_cli.checkpoint.sharded import ShardedCheckpoint, bind
from eplb_cli.checkpoint.shards import Shards, open_shards
from eplb_cli.checkpoint.slices import slices_in
from eplb_cli.errors import HINTS, BytesError
from eplb_cli.output.prove import differing_replicas, row_view
from eplb_cli.placements.findings import Finding
from eplb_cli.placements.placement import EMPTY, Placement
from eplb_cli.progress import ProgressBar, silent
from eplb_cli.report.inspection import ExpertTensor, Inspection


def inspect(
    path: str | PathLike[str], *, layout: str = "auto", deep: bool = False, progress: ProgressBar = silent
) -> Inspection:
    """Describe a directory of shards from its headers, and with `deep` from all its bytes.

    Args:
        path: per-rank shards, under any placement.
        layout: how tensors are named: "auto", the name of a layout, or a TOML file that describes one.
        deep: read all rows, and look for what contradicts itself or the digests in eplb.json.
        progress: what shows the bytes read.

    Returns:
        What the shards hold; with `deep` also how many rows are distinct, and findings.

    Raises:
        CheckpointError: the shards cannot be read, or their headers contradict eplb.json.

    Examples:
        >>> shards = eplb_cli.inspect("src")
        >>> shards.slots_per_rank, shards.layers
        ((10, 10), (1, 2, 3))
        >>> [(tensor.dtype, tensor.row_nbytes) for tensor in shards.expert_tensors]
        [('BF16', 16384), ('BF16', 8192)]
    """
    path = Path(path)
    shards = open_shards(path, layout)
    manifest = shards.manifest
    experts = None if shards.config is None else shards.config.num_logical_experts
    said = placement_inside(shards, experts) if manifest is None else manifest.read_placement(path)
    checkpoint = bind(shards, said or unknown_placement(shards))
    distinct, findings = _read(checkpoint, progress) if deep else (None, ())
    if problem := slices_in(shards):
        findings = (*findings, Finding("EP232", "error", problem, HINTS["EP232"]))
    if manifest is None:
        findings = (*findings, *_findings_of_experts(shards, experts, said))
    others = [at.entry.nbytes for tensors in checkpoint.others for at in tensors.values()]
    return Inspection(
        path=path,
        layout=shards.layout.name,
        slots_per_rank=tuple(shards.slots_per_rank.tolist()),
        layers=tuple(shards.moe_layers),
        further_layers={layer: shards.layers.name(layer) for layer in shards.layers.beside},
        expert_tensors=_expert_tensors(checkpoint),
        num_others=len(others),
        others_nbytes=sum(others),
        sharded_others=tuple(checkpoint.sharded_others),
        num_files=len(shards.files),
        nbytes=shards.nbytes,
        placement=None if said is None else checkpoint.placement,
        distinct_rows=distinct,
        findings=findings,
    )


def _findings_of_experts(shards: Shards, experts: int | None, inside: Placement | None) -> list[Finding]:
    """EP202 where the number of experts says that a rank is missing, EP111 where nothing says the number.

    Args:
        inside: the placement that maps inside the shards say.
    """
    counted = inside.num_logical_experts if experts is None and inside is not None else experts
    if problem := missing_ranks(shards, counted):
        return [Finding("EP202", "error", problem, HINTS["EP202"])]
    if experts is not None:
        return []
    if inside is not None:
        return guessed_inside(shards, inside)
    return [] if shards.layout.names_experts else [one_in_each_slot(shards, "the model is")]


def _read(
    checkpoint: ShardedCheckpoint, progress: ProgressBar
) -> tuple[tuple[int, ...], tuple[Finding, ...]]:
    """How many rows of each layer are distinct, and what is odd about them beside what eplb.json says."""
    with reading(progress, "inspect", checkpoint.shards.path) as advance:
        digests = digest_tree(checkpoint, advance)
    rows = row_view(digests, checkpoint.row_nbytes.shape, checkpoint.placement.num_slots)
    distinct, manifest = _distinct_rows(checkpoint, rows), checkpoint.shards.manifest
    if manifest is None:
        return distinct, ()
    return distinct, (*_damage(checkpoint, manifest, digests), *_replica_findings(checkpoint, rows))


def _expert_tensors(checkpoint: ShardedCheckpoint) -> tuple[ExpertTensor, ...]:
    """One entry per tensor and kind of row."""
    kinds = Counter(
        (
            checkpoint.expert_tensors[tensor].template,
            checkpoint.dtype[layer, tensor],
            checkpoint.row_shape[layer, tensor],
            int(checkpoint.row_nbytes[layer, tensor]),
        )
        for layer, tensor in np.argwhere(checkpoint.row_nbytes > 0)
    )
    return tuple(ExpertTensor(*kind, num_layers) for kind, num_layers in sorted(kinds.items()))


def _distinct_rows(checkpoint: ShardedCheckpoint, digests: Digests) -> tuple[int, ...]:
    """(L,) how many filled slots differ in their bytes: the number of experts, if no two are alike."""
    placement = checkpoint.placement
    per_slot = digests.transpose(0, 2, 1, 3).reshape(len(digests), placement.num_slots, -1)
    filled = placement.physical_to_logical != EMPTY
    return tuple(len(np.unique(slots[full], axis=0)) for slots, full in zip(per_slot, filled, strict=True))


def _damage(checkpoint: ShardedCheckpoint, manifest: Manifest, digests: Digests) -> list[Finding]:
    """What is not as the manifest and the digests beside it say, the first of it."""
    path = checkpoint.shards.path
    found: list[BytesError] = []
    try:
        for differences in (
            shard_differences(path, manifest),
            file_differences(path, {**manifest.carried, **manifest.digests}),
            own_differences(Tree(checkpoint, digests, manifest)),
        ):
            found += islice(differences, MAX_LISTED)
    except BytesError as error:  # the digests themselves cannot be trusted
        found.append(error)
    return [Finding(error.code, "error", error.message, error.hint) for error in found[:MAX_LISTED]]


def _replica_findings(checkpoint: ShardedCheckpoint, digests: Digests) -> list[Finding]:
    """EP503 for each expert whose replicas differ."""
    placement = checkpoint.placement
    odd = differing_replicas(placement, digests, checkpoint.row_nbytes > 0)
    return [
        Finding(
            "EP503",
            "error",
            f"layer {placement.layer_number(layer)}: the replicas of expert {expert} differ",
            layer=placement.layer_number(layer),
        )
        for layer, expert in sorted({(layer, expert) for layer, expert, _ in odd})
    ]
