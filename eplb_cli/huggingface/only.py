"""`shard --only`: of a Hugging Face checkpoint the experts that were lost with ranks, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from eplb_cli.checkpoint.sharded import ShardedCheckpoint
from eplb_cli.errors import UsageError
from eplb_cli.huggingface.joined import Joined
from eplb_cli.placements.placement import EMPTY, Placement
from eplb_cli.placements.survivors import Survivors, without_ranks

NOTE = "for `eplb reshard --missing-from`: no engine loads these experts by themselves"


def only_lost(joined: Joined, placement: Placement, ranks: Sequence[int]) -> tuple[Joined, Placement]:
    """Both forms of a checkpoint with the experts that are lost, and the one rank that they will be on.

    Args:
        placement: what the ranks were under, with a row for each layer of the checkpoint.
        ranks: those that are lost.

    Raises:
        UsageError: EP001, there is no such rank; or every expert of theirs is on another one, too.
    """
    survivors = without_ranks(placement, ranks)
    if not survivors.num_lost:
        problem = "the ranks that are left have every expert of those that are lost"
        raise UsageError("EP001", problem, "reshard what is left, without --missing-from")
    parts, engine = (_without_others(form, survivors) for form in (joined.parts, joined.engine))
    return replace(joined, parts=parts, engine=engine, others={}, constants={}), survivors.lost


def _without_others(form: ShardedCheckpoint, survivors: Survivors) -> ShardedCheckpoint:
    """A form of a checkpoint as if it had no other tensors, and no experts but those that are lost."""
    all_experts = form.placement.physical_to_logical
    table = np.stack(
        [
            np.where(np.isin(row, lost), row, EMPTY)
            for row, lost in zip(all_experts, survivors.lost_experts, strict=True)
        ]
    )
    return replace(form, placement=replace(form.placement, physical_to_logical=table), others=({},))
