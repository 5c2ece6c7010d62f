"""Whether a tree is what the plan made that its manifest names."""

from __future__ import annotations

from collections.abc import Iterator

from eplb_cli import __version__
from eplb_cli.audit.own_digests import Tree
from eplb_cli.checkpoint.manifest import MANIFEST_NAME
from eplb_cli.errors import BytesError, Where
from eplb_cli.plan.plan import plan_reshard


def plan_differences(tree: Tree) -> Iterator[BytesError]:
    """Plan anew from both placements, and compare; rows have the sizes here that they had in SRC.

    A manifest of another version of eplb is believed, since that may choose other senders. So is any where
    the ranks that were read have no row of some layer: its sizes are not known then.

    Returns:
        EP505, if they make another plan.

    Raises:
        PlacementError: they make none.
    """
    checkpoint, manifest, whole = tree.checkpoint, tree.manifest, tree.whole
    if manifest.tool != f"eplb {__version__}" or checkpoint.placement.num_layers != whole.num_layers:
        return
    path = checkpoint.shards.path
    plan = plan_reshard(
        manifest.read_source_placement(path),
        whole,
        manifest.read_senders(path),
        expert_nbytes=checkpoint.expert_nbytes,
        ranks_per_node=manifest.ranks_per_node,
        nodes=manifest.read_nodes(path),
    )
    if plan.digest != manifest.plan_digest:
        problem = f"{path / MANIFEST_NAME}: its placements do not make the plan that it names"
        yield BytesError("EP505", problem, where=Where(str(path / MANIFEST_NAME)))
