"""Shards of which ranks are lost: those that are left, and what stands for the others.

The ranks that are left close up. What was lost with the others is one more rank behind them, whose experts
`shard --only` has written; all that is no expert's it has from rank 0, as every rank has::

    SRC      rank 0, 1, 3, 4    rank 2 is lost
    PATCH    rank 0             with the experts that only rank 2 had
    opened   rank 0, 1, 2, 3 and 4
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from eplb_cli.checkpoint.layout import Layout
from eplb_cli.checkpoint.manifest import read_manifest
from eplb_cli.checkpoint.shards import Shards, open_shards
from eplb_cli.errors import CheckpointError


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
