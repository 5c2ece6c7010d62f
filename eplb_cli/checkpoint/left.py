"""Shards of which ranks are lost: those that are left, and what stands for the others.

The ranks that are left close up. What was lost with the others is one more rank behind them, whose experts
`shard --only` has written; all that is no expert's it has from rank 0, as every rank has::

    SRC      rank 0, 1, 3, 4    rank 2 is lost
    PATCH    rank 0             with the experts that only rank 2 had
    opened   rank 0, 1, 2, 3 and 4
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from eplb_cli.checkpoint.layout import Layout
from eplb_cli.checkpoint.layout_file import layout_from_json
from eplb_cli.checkpoint.manifest import MANIFEST_NAME, Manifest, read_manifest
from eplb_cli.checkpoint.part import files_of
from eplb_cli.checkpoint.pooled import pool
from eplb_cli.checkpoint.seen import see
from eplb_cli.checkpoint.sharded import ShardedCheckpoint, bind
from eplb_cli.checkpoint.shards import Shards, open_shards, shards_of
from eplb_cli.errors import CheckpointError
from eplb_cli.placements.placement import Placement
from eplb_cli.placements.spans import spans
from eplb_cli.placements.survivors import Survivors


def open_left(
    path: Path, layout: str | Layout, lost: Collection[int], missing_from: Path | None = None
) -> Shards:
    """Open what is left of shards, and what else there is.

    Args:
        lost: the numbers of the ranks whose files are gone; none where all are there.
        missing_from: what `shard --only` wrote of these ranks; None without it.

    Raises:
        CheckpointError, BytesError: as `open_shards`; EP202, other ranks are missing; EP206, the two have
            other names; EP215, maps inside the shards say where the experts of all ranks are.
    """
    shards = open_shards(path, layout, lost)
    maps = {key for tensors in shards.tensors for key in tensors if shards.layout.is_map(key)}
    if lost and maps:
        problem = f"{min(maps)!r} says where the experts of all ranks are, and some ranks are lost"
        raise CheckpointError("EP215", problem, "shard the Hugging Face checkpoint anew")
    if missing_from is None:
        return shards
    manifest = read_manifest(missing_from)
    if manifest is None or manifest.placement.get("num_ranks") != 1:
        problem = f"{missing_from} is not what `eplb shard --only` writes: one rank, with an eplb.json"
        listed = ",".join(map(str, lost))
        hint = f"`eplb shard HF_DIR PATCH --placement OLD --engine ENGINE --only {listed}`"
        raise CheckpointError("EP202", problem, hint)
    return _with_rank(shards, open_shards(missing_from), manifest.engine)


def open_ranks(path: Path, manifest: Manifest, whole: Placement, ranks: Sequence[int]) -> ShardedCheckpoint:
    """Some ranks of a tree that eplb wrote, as if the others were lost; their files are not looked at.

    Args:
        manifest: of the tree, whose files of these ranks are there.
        whole: its placement.
        ranks: their numbers in it, ascending; all of them for the whole tree.

    Raises:
        CheckpointError, BytesError: as `open_shards` and `bind_left`.
    """
    layout = layout_from_json(manifest.layout, path / MANIFEST_NAME)
    lost = {*range(whole.num_ranks)} - {*ranks}
    rank_of = files_of(manifest.files, layout)
    names = [name for name in manifest.files if rank_of.get(name) not in lost]
    found = pool(path, [see(path, [*names, *manifest.carried])], 0, [""])
    return bind_left(shards_of(found, layout, manifest, lost), manifest, whole)


def bind_left(shards: Shards, manifest: Manifest, whole: Placement) -> ShardedCheckpoint:
    """Lay what a placement says of the ranks that are there over their shards.

    Layers of which these ranks have no row may be left out.

    Args:
        shards: of some ranks; the others are lost.
        whole: of all ranks.

    Raises:
        CheckpointError: as `bind`; EP212, nothing says which layers these are.
    """
    if not shards.lost:
        return bind(shards, whole)
    left = Survivors(whole, np.array(shards.recorded_ranks, np.int64)).placement
    if left.layer_ids is not None:
        here = np.isin(left.layer_ids, shards.moe_layers)
        if not here.all():
            _require_numbers(shards, manifest)
        table, layer_ids = left.physical_to_logical[here], left.layer_ids[here]
        left = replace(left, physical_to_logical=table, layer_ids=layer_ids)
    return bind(shards, left)


def _require_numbers(shards: Shards, manifest: Manifest) -> None:
    """EP212 where other modules have layers too, whose numbers follow from the layers that all ranks have."""
    named = {found.template for found in shards.expert_keys.values()}
    if {*named, *manifest.expert_tensors} - {key for key in manifest.expert_tensors if "{layer}" in key}:
        ranks = f"{shards.path}: ranks {spans(shards.recorded_ranks)} have no expert of some layer"
        problem = f"{ranks}, and there are layers of several modules: nothing says which theirs are"
        hint = "copy the files of all ranks into one directory, or name ranks that have experts of each layer"
        raise CheckpointError("EP212", problem, hint)


def _with_rank(shards: Shards, patch: Shards, engine: str) -> Shards:
    """The same with the experts of a patch, named for an engine, as one more rank. Raises EP206."""
    other = "" if shards.manifest is None else shards.manifest.engine
    if patch.layout != shards.layout or other not in ("", engine):
        problem = f"{patch.path} has the names of {engine}, and {shards.path} has others"
        raise CheckpointError("EP206", problem, "`shard --only` needs the --engine that SRC was made for")
    rank, before = shards.num_ranks, len(shards.files)
    files = (file._replace(name=file.name._replace(rank=rank)) for file in patch.files)
    experts = {
        key: at._replace(file=before + at.file)
        for key, at in patch.tensors[0].items()
        if key in patch.expert_keys
    }
    others = {key: at for key, at in shards.tensors[0].items() if key not in shards.expert_keys}
    return replace(
        shards,
        files=(*shards.files, *files),
        tensors=(*shards.tensors, {**others, **experts}),
        missing_from=patch.path,
    )
