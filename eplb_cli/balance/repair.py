"""A placement for the ranks that are left: every expert alive again, and no slot changed that need not be.

An expert whose last replica was lost needs one slot, so a layer in which m experts are lost has m slots that
change, and no placement of the ranks that are left has fewer. Which slots, is decided by the load: empty ones
first, then replicas whose expert has the least of it on each replica that stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from eplb_cli.arrays import Int
from eplb_cli.errors import UsageError
from eplb_cli.placements.placement import EMPTY, Placement
from eplb_cli.placements.survivors import Survivors, without_ranks
from eplb_cli.values import dataclass

Loads = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Repaired:
    """A placement for the ranks that are left.

    Attributes:
        new: NEW; its ranks are those that are left, in their order, with the rows that they had.
        survivors: what was left, and which experts were lost.
        num_replicated: how many slots, over all layers, got one more replica of an expert.
    """

    new: Placement
    survivors: Survivors
    num_replicated: int = 0


def repair(
    old: Placement,
    lost: Sequence[int],
    load: Loads | None = None,
    num_redundant_experts: int | None = None,
) -> Repaired:
    """Bring experts that are lost back to life on the ranks that are left.

    Args:
        old: OLD.
        lost: the numbers of the ranks that are lost.
        load: (L, E) what each expert has to bear; all alike without.
        num_redundant_experts: P - E of NEW, where each rank is to have more slots than it had; those that the
            experts which are lost do not need get replicas of the heaviest ones.

    Raises:
        UsageError: EP001, there is no such rank, or the slots are fewer than the experts, or do not divide.

    Examples:
        >>> old, _ = eplb_cli.read_placement("old.json")
        >>> repaired = eplb_cli.repair(old, [1], num_redundant_experts=0)
        >>> repaired.new.num_ranks, repaired.survivors.lost_experts[0].tolist()
        (1, [10, 11, 12, 13, 14, 15])
    """
    survivors = without_ranks(old, lost)
    left = survivors.placement
    more = _more_slots(survivors, num_redundant_experts)
    grown = _with_slots(left, more)
    weights = np.ones((old.num_layers, old.num_logical_experts)) if load is None else load.astype(np.float64)
    table = grown.physical_to_logical.copy()
    num_replicated = 0
    for layer, experts in enumerate(survivors.lost_experts):
        slots = _Layer(table[layer], grown.rank_of_slot, weights[layer])
        spare = max(0, slots.num_free - len(experts)) if more else 0
        slots.replicate(spare)
        slots.place(experts)
        num_replicated += spare
    return Repaired(replace(grown, physical_to_logical=table), survivors, num_replicated)


def _more_slots(survivors: Survivors, num_redundant_experts: int | None) -> int:
    """How many slots each rank gets beside those it has. Raises EP001."""
    left, ranks = survivors.placement, survivors.placement.num_ranks
    experts = left.num_logical_experts
    alive = [len({*row} - {EMPTY}) for row in left.physical_to_logical.tolist()]
    needed = max(count + len(lost) for count, lost in zip(alive, survivors.lost_experts, strict=True))
    least = max(0, -((left.num_slots - needed) // ranks))
    enough = (
        f"--num-redundant-experts {left.num_slots + least * ranks - experts} gives each rank {least} more"
    )
    if num_redundant_experts is None:
        if least:
            problem = f"the ranks that are left have {left.num_slots:,} slots, for {needed:,} experts"
            raise UsageError("EP001", problem, enough)
        return 0
    more, rest = divmod(experts + num_redundant_experts - left.num_slots, ranks)
    if rest or more < least:
        problem = f"{num_redundant_experts:,} redundant experts are {experts + num_redundant_experts:,} slots"
        has = f"{ranks:,} ranks that are left have {left.num_slots:,}"
        raise UsageError("EP001", f"{problem}, and the {has}: each gets as many more, or none", enough)
    return more


def _with_slots(left: Placement, more: int) -> Placement:
    """The same with further empty rows at the end of each rank."""
    if not more:
        return left
    first_slot = left.first_slot + more * np.arange(left.num_ranks + 1)
    table = np.full((left.num_layers, int(first_slot[-1])), EMPTY, np.int64)
    table[:, first_slot[left.rank_of_slot] + left.row_of_slot] = left.physical_to_logical
    return replace(left, physical_to_logical=table, first_slot=first_slot)


class _Layer:
    """One layer of NEW while it is made.

    Args:
        held: (P,) what each slot holds; it is changed.
        ranks: (P,) the rank of each.
        weights: (E,) the load of each expert, which its replicas share.
    """

    def __init__(self, held: Int, ranks: Int, weights: Loads) -> None:
        self._held, self._ranks, self._weights = held, ranks, weights

    @property
    def num_free(self) -> int:
        """How many slots have no expert."""
        return int((self._held == EMPTY).sum())

    def place(self, experts: Int) -> None:
        """Give a slot to each of some experts that have none: the heaviest to the rank with least to do."""
        while self.num_free < len(experts):
            self._held[self._least_missed()] = EMPTY
        for expert in experts[np.argsort(-self._weights[experts], kind="stable")]:
            self._held[self._least_busy()] = expert

    def replicate(self, count: int) -> None:
        """Fill so many empty slots: on the rank with least to do, what has most on each replica elsewhere."""
        for _ in range(count):
            slot = self._least_busy()
            each = np.where(self._counts() > 0, self._weights / np.maximum(self._counts(), 1), -1)
            here = self._held[self._ranks == self._ranks[slot]]
            each[here[here != EMPTY]] = -1
            self._held[slot] = each.argmax()

    def _least_busy(self) -> int:
        """The first empty slot of the rank with least to do of those that have one."""
        free = np.flatnonzero(self._held == EMPTY)
        return int(free[self._rank_loads()[self._ranks[free]].argmin()])

    def _counts(self) -> Int:
        """(E,) replicas of each expert."""
        return np.bincount(self._held[self._held != EMPTY], minlength=len(self._weights))

    def _rank_loads(self) -> Loads:
        """(R,) what each rank has to bear."""
        each = self._weights / np.maximum(self._counts(), 1)
        filled = np.flatnonzero(self._held != EMPTY)
        shares: Loads = each[self._held[filled]]
        return np.bincount(self._ranks[filled], shares, int(self._ranks[-1]) + 1).astype(np.float64)

    def _least_missed(self) -> int:
        """The slot whose expert has least on each replica without it; of such slots the busiest rank's."""
        counts = self._counts()
        spare = np.flatnonzero((self._held != EMPTY) & (counts[self._held] > 1))
        expert = self._held[spare]
        burden = self._weights[expert] / (counts[expert] - 1)
        return int(spare[np.lexsort((-self._rank_loads()[self._ranks[spare]], burden))[0]])
