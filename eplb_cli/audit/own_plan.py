"""Whether a tree is what the plan made that its manifest names."""

from __future__ import annotations

from collections.abc import Iterator

from eplb_cli import __version__
from eplb_cli.checkpoint.manifest import MANIFEST_NAME, Manifest
from eplb_cli.checkpoint.sharded import ShardedCheckpoint
from eplb_cli.errors import BytesError, Where
from eplb_cli.plan.plan import plan_reshard


def plan_differences(checkpoint: ShardedCheckpoint, manifest: Manifest) -> Iterator[BytesError]:
    """Plan anew from both placements, and compare; rows have the sizes here that they had in SRC.

    A manifest of another version of eplb is believed, since that may choose other senders.

    Returns:
        EP505, if they make another plan.

    Raises:
        PlacementError: they make none.
    """
    if manifest.tool != f"eplb {__version__}":
        return
    path = checkpoint.shards.path
    plan = plan_reshard(
        manifest.read_source_placement(path),
        checkpoint.placement,
        manifest.read_senders(checkpoint.shards.path),
        expert_nbytes=checkpoint.expert_nbytes,
        ranks_per_node=manifest.ranks_per_node,
    )
    if plan.digest != manifest.plan_digest:
        problem = f"{path / MANIFEST_NAME}: its placements do not make the plan that it names"
        yield BytesError("EP505", problem, where=Where(str(path / MANIFEST_NAME)))
