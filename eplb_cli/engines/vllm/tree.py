"""DST as an engine gets it: shards, placement and manifest that fit each other, or a reason why not.

Of several hosts each has only the shards of its own ranks: they are opened as those that are left where other
ranks are lost.
"""

from __future__ import annotations

from pathlib import Path

from eplb_cli.checkpoint.left import bind_left
from eplb_cli.checkpoint.manifest import MANIFEST_NAME, is_baked
from eplb_cli.checkpoint.sharded import ShardedCheckpoint
from eplb_cli.checkpoint.shards import Shards, open_shards, unlike_manifest
from eplb_cli.errors import CheckpointError
from eplb_cli.output.destination import is_staging
from eplb_cli.placements.placement import Placement
from eplb_cli.placements.spans import spans
from eplb_cli.values import dataclass


@dataclass(frozen=True, eq=False)
class Tree:
    """DST, or what this host has of it.

    Attributes:
        checkpoint: the ranks whose files are here, which have closed up.
        placement: of all ranks, here or not.
    """

    checkpoint: ShardedCheckpoint
    placement: Placement

    @property
    def shards(self) -> Shards:
        """The files that are here."""
        return self.checkpoint.shards

    def here(self, rank: int) -> int:
        """The number that a rank has among those whose files are here. Raises EP202 for another."""
        ranks = self.shards.recorded_ranks
        if rank not in ranks:
            noun = "rank" if len(ranks) == 1 else "ranks"
            have = f"{noun} {spans(ranks)} of {self.placement.num_ranks:,}"
            problem = f"{self.shards.path} on this host has {have}, and this process is rank {rank}"
            hint = "is it the DST of another host? Each host needs the files of the ranks that it serves"
            raise CheckpointError("EP202", problem, hint)
        return ranks.index(rank)


def open_tree(path: Path) -> Tree:
    """What is here of a tree that eplb wrote, with its own placement laid over it.

    Of the shards only headers are read, and all files of a rank have to be there, or none.

    Raises:
        CheckpointError: EP201 to EP206, it cannot be read; EP214, it is no finished tree of eplb; what
            `bind_left` raises.
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
    shards = open_shards(path, lost=None)
    if shards.manifest is None:
        problem = f"{path} has no {MANIFEST_NAME}, so nothing says what its rows are"
        hint = "`eplb shard` and `eplb reshard` write it; vLLM's own shards need --load-format sharded_state"
        raise CheckpointError("EP214", problem, hint)
    placement = shards.manifest.read_placement(path)
    for file in shards.files:
        if file.header.metadata.get("eplb.placement_digest", placement.digest) != placement.digest:
            raise unlike_manifest(shards, f"{file.path.name}: the placement that it was written for")
    _ = shards.config  # compared with the manifest
    checkpoint = bind_left(shards, shards.manifest, placement)
    return Tree(checkpoint, placement if shards.lost else checkpoint.placement)
