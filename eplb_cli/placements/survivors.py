"""What is left of a placement when ranks are lost with all they had.

The ranks that are left close up, in their order, and keep their rows. Experts that only lost ranks had are
the rows of one more rank behind them: it stands for what still has those, a Hugging Face checkpoint::

    OLD                 0 1 │ 2 3 │ 0 4     rank 1 is lost, and with it experts 2 and 3
    survivors           0 1 │ 0 4           they are ranks 0 and 1 from now on
    with what is lost   0 1 │ 0 4 │ 2 3
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import numpy as np

from eplb_cli.arrays import Int
from eplb_cli.errors import UsageError
from eplb_cli.placements.placement import EMPTY, Placement
from eplb_cli.values import dataclass


@dataclass(frozen=True, eq=False)
class Survivors:
    """OLD without ranks that are lost.

    Attributes:
        old: OLD.
        old_rank: (R',) the old number of each rank that is left, ascending.
    """

    old: Placement
    old_rank: Int

    @cached_property
    def placement(self) -> Placement:
        """What is left, its ranks closed up."""
        slots = np.flatnonzero(np.isin(self.old.rank_of_slot, self.old_rank))
        first_slot = np.concatenate([[0], np.cumsum(self.old.slots_per_rank[self.old_rank])])
        table = self.old.physical_to_logical[:, slots]
        return replace(self.old, physical_to_logical=table, first_slot=first_slot)

    @cached_property
    def lost_experts(self) -> list[Int]:
        """Of each layer, ascending, the experts of OLD that no rank has any more."""
        pairs = zip(self.old.physical_to_logical, self.placement.physical_to_logical, strict=True)
        return [np.setdiff1d(had, [*left, EMPTY]) for had, left in pairs]

    @property
    def num_lost(self) -> int:
        """How many experts are lost, over all layers."""
        return sum(map(len, self.lost_experts))

    @cached_property
    def lost(self) -> Placement:
        """The experts that are lost as a placement of one rank, which has a row at least."""
        width = max(1, *map(len, self.lost_experts))
        table = np.full((self.old.num_layers, width), EMPTY, np.int64)
        for row, experts in zip(table, self.lost_experts, strict=True):
            row[: len(experts)] = experts
        return replace(self.old, physical_to_logical=table, first_slot=np.array([0, width]))

    @cached_property
    def with_lost(self) -> Placement:
        """The ranks that are left, and one more that has the experts which are lost."""
        left, lost = self.placement, self.lost
        table = np.hstack([left.physical_to_logical, lost.physical_to_logical])
        first_slot = np.append(left.first_slot, left.num_slots + lost.num_slots)
        return replace(self.old, physical_to_logical=table, first_slot=first_slot)


def without_ranks(old: Placement, lost: Sequence[int]) -> Survivors:
    """OLD after ranks are lost.

    Raises:
        UsageError: EP001, there is no such rank, or none is left.
    """
    if unknown := sorted({rank for rank in lost if not 0 <= rank < old.num_ranks}):
        problem = f"rank {unknown[0]:,} is said to be lost, and OLD has ranks 0 to {old.num_ranks - 1:,}"
        raise UsageError("EP001", problem, "name the ranks by their numbers in OLD")
    left = np.setdiff1d(np.arange(old.num_ranks), np.asarray(lost, np.int64))
    if not old.slots_per_rank[left].sum():
        raise UsageError("EP001", "no rank with a slot is left", "shard the Hugging Face checkpoint anew")
    return Survivors(old, left)
