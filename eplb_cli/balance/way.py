"""The way from OLD to the best balance: what has to come from other ranks at each step, and what it is worth.

Every layer has a way of its own. It begins at OLD, or at what is nearest to it in the shape wanted and with
no expert twice on a rank, and takes the steps that spare the busiest rank most for each expert that has to
come. Behind the last of them is the placement made anew, under the names that OLD has for its ranks::

    rows that come    0     1     3     4      31
    busiest rank    9.0   7.5   6.0   5.9     5.8
                    OLD   └── steps ──┘       anew
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from eplb_cli.arrays import Int
from eplb_cli.balance.anew import balanced_anew
from eplb_cli.balance.nearest import as_it_is, held_in, nearest
from eplb_cli.balance.relabel import MAX_RELABELLED_RANKS, relabel
from eplb_cli.balance.replicas import Float
from eplb_cli.balance.search import GOOD_ENOUGH, NEAREST, Taken, rounds
from eplb_cli.balance.shape import Shape, placement_of
from eplb_cli.balance.state import Bool, State, held_by
from eplb_cli.balance.steps import Choices
from eplb_cli.placements.findings import missing_experts, raise_first
from eplb_cli.placements.placement import Placement

if TYPE_CHECKING:
    from eplb_cli.plan.choice import Relabel

SAME = 1 + 1e-9
"""Two loads of ranks of which one is at most so many times the other are the same, but for rounding."""


class Way:
    """The ways of all layers.

    Args:
        load: (L, E).
        shape: what is wanted.
        old: OLD, of the same layers and experts.

    Attributes:
        rows: (T, L) experts that ranks get from others: at OLD, at what is nearest to it, after each step
            from there, and last in the placement made anew. A layer without a further step stays.
        worst: (T, L) what the busiest rank bears then.
        best: (L,) the first that is as good as any, or too good for another one to be worth it.

    Raises:
        PlacementError: EP110, OLD has no slot for an expert.
    """

    def __init__(self, load: Float, shape: Shape, old: Placement) -> None:
        raise_first(missing_experts(old))
        self._old, self._shape = old, shape
        anew, held = balanced_anew(load, shape), held_in(old, shape)
        self._anew = self._under_old_names(anew.experts)
        self._nearest = self._anew if shape.is_crowded else nearest(load, old, shape)
        given = as_it_is(old, shape)
        self._given = self._nearest if given is None else given
        self._rounds: list[list[Taken]] = []
        states = [State(load, self._given, held), State(load, self._nearest, held, shape.node_of_rank)]
        rows, worst = [state.rows_to_come for state in states], [state.worst for state in states]
        enough = anew.goal * GOOD_ENOUGH
        found = (
            () if shape.is_crowded else rounds(states[1], (Choices.any_step,), anew.goal * NEAREST, enough)
        )
        for taken in found:
            self._rounds.append(taken)
            rows.append(states[1].rows_to_come)
            worst.append(states[1].worst)
        self.rows = np.array([*rows, State(load, self._anew, held).rows_to_come])
        self.worst = np.array([*worst, anew.worst])
        self.best = self._first_best(enough)

    def at(self, step: Int) -> Placement:
        """The placement at a step of each layer, shape (L,), in the rows of OLD where it has them."""
        experts = np.where((step == 0)[:, None, None], self._given, self._nearest)
        for number, taken in enumerate(self._rounds, start=2):
            for layer, steps in taken:
                is_taken = step[layer] >= number
                steps.of(is_taken).write(experts, layer[is_taken])
        is_anew = step == len(self.rows) - 1
        experts[is_anew] = self._anew[is_anew]
        return relabel(self._old, self._placement(experts), "rows")

    def _first_best(self, enough: Float) -> Int:
        """(L,) the first step that is as good as can be had, of those that are what is wanted."""
        worst = self.worst.copy()
        if self._shape.is_crowded:
            worst[0, ~self._keeps_groups(self._given)] = np.inf
            return np.asarray((worst <= worst.min(axis=0) * SAME).argmax(axis=0))
        is_once = (np.sort(self._given, axis=2) == self._nearest).all(axis=(1, 2))
        worst[0, ~is_once] = np.inf
        worst[:-1, ~self._keeps_groups(self._nearest)] = np.inf
        stays = (
            worst[0] <= np.maximum(worst[-1], enough) * SAME
        )  # OLD is as good as what is made from nothing
        worst[1:, stays] = np.inf
        return np.asarray((worst <= np.maximum(worst.min(axis=0), enough) * SAME).argmax(axis=0))

    def _keeps_groups(self, experts: Int) -> Bool:
        """(L,) whether each group is on one node, where that is wanted."""
        shape = self._shape
        if not shape.keeps_groups:
            return np.ones(len(experts), bool)
        has = held_by(experts, shape.num_experts)
        size = shape.num_experts // shape.num_groups
        has = has.reshape(len(has), shape.num_nodes, -1, shape.num_groups, size)
        return np.asarray((has.any(axis=(2, 4)).sum(axis=1) == 1).all(axis=1))

    def _under_old_names(self, experts: Int) -> Int:
        """(L, R, S) the same, with ranks, nodes whole, in the places where OLD has most of what they have."""
        how: Relabel = "ranks" if self._shape.num_ranks <= MAX_RELABELLED_RANKS else "rows"
        nodes = self._shape.ranks_per_node if self._shape.keeps_groups else None
        named = relabel(self._old, self._placement(experts), how, nodes)
        return named.physical_to_logical.reshape(experts.shape)

    def _placement(self, experts: Int) -> Placement:
        return placement_of(experts, self._shape.num_experts, self._old.layer_ids)
