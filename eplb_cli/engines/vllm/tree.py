"""DST as an engine gets it: shards, placement and manifest that fit each other, or a reason why not."""

from __future__ import annotations

from pathlib import Path

from eplb_cli.checkpoint.manifest import MANIFEST_NAME, is_baked
from eplb_cli.checkpoint.sharded import ShardedCheckpoint, bind
from eplb_cli.checkpoint.shards import open_shards, unlike_manifest
from eplb_cli.errors import CheckpointError
from eplb_cli.output.destination import is_staging


def open_tree(path: Path) -> ShardedCheckpoint:
    """A tree that eplb wrote, with its own placement laid over it. Of the shards only headers are read.

    Raises:
        CheckpointError: EP201 to EP206, it cannot be read; EP214, it is no finished tree of eplb; what `bind`
            raises.
        BytesError: EP506, its shards, their placement or its config.json are not what its manifest says.
        PlacementError: its placement cannot be used.
    """
    if not path.is_dir():
        hint = "--load-format eplb takes a directory that `eplb shard` or `eplb reshard` wrote"
        raise CheckpointError("EP201", f"{path} is no directory", hint)
    if is_staging(path):
        hint = "wait until the command that writes it has ended, and serve the DST that it was given"
        raise CheckpointError("EP214", f"{path} is the staging directory of a DST, and not that", hint)
    if is_baked(path):
        hint = "leave out --load-format eplb: its experts are in the order that engines take for granted"
        raise CheckpointError("EP214", f"{path} is a baked checkpoint, which is loaded like any other", hint)
    shards = open_shards(path)
    if shards.manifest is None:
        problem = f"{path} has no {MANIFEST_NAME}, so nothing says what its rows are"
        hint = "`eplb shard` and `eplb reshard` write it; vLLM's own shards need --load-format sharded_state"
        raise CheckpointError("EP214", problem, hint)
    placement = shards.manifest.read_placement(path)
    for file in shards.files:
        if file.header.metadata.get("eplb.placement_digest", placement.digest) != placement.digest:
            raise unlike_manifest(shards, f"{file.path.name}: the placement that it was written for")
    _ = shards.config  # compared with the manifest
    return bind(shards, placement)
