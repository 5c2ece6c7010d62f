"""The least that the busiest rank can serve, as a flow that is as large as its cut.

Ranks with more than what is aimed at hand rows on, over any number of ranks in between, to ranks with
less. Where that ends before every rank is down to the aim, the ranks that were reached prove a bound: all
that they serve can be served only by them::

    set {0, 1}, 3 rows     rank 0: 3 ──►  rank 1: 2          bound ⌈5 / 2⌉ = 3: 0 and 1 serve five rows,
    set {1},    2 rows     rank 1: 2      (no way on)        and no other rank can serve one of them

The busiest rank comes down and the bound goes up until they meet. Integers only, in a fixed order: every
worker of a run comes to the same answer.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from eplb_cli.arrays import Int, ranges
from eplb_cli.plan.demands import Demands

MAX_SCANNED = 1 << 25
"""Edges looked at, over all searches, before what is reached is good enough."""


class Flow:
    """Amounts on edges, in units of the greatest common divisor of all sizes of rows.

    Attributes:
        amount: (M,) what each edge's rank serves of its set.
        load: (R,) what each rank serves.
        bound: what the busiest rank serves at the very least.
    """

    def __init__(self, demands: Demands, rows: Int, load: Int, unit: int, bound: int) -> None:
        self.bound = bound
        self.amount = rows * demands.per_edge(demands.row_nbytes // unit)
        self.load = load // unit
        self._rank = demands.rank
        self._set = demands.edge_set
        self._first_edge = demands.first_edge
        self._by_rank = np.argsort(demands.rank, kind="stable")
        self._first_of_rank = np.searchsorted(demands.rank[self._by_rank], np.arange(demands.num_ranks + 1))

    def level_out(self, tolerance: int) -> None:
        """Bring every rank down to the bound, and the bound up to where that can be done.

        The middle between both is aimed at first: what is far above it is near to much that is below it.
        Beyond `MAX_SCANNED` the bound is true, and there may be a gap.

        Args:
            tolerance: how far above the bound the busiest may stay.
        """
        scanned = 0
        while (top := int(self.load.max(initial=0))) > self.bound + tolerance and scanned < MAX_SCANNED:
            aim = (self.bound + top) // 2
            rank_level, set_level, has_room = self._search(aim)
            scanned += len(self._rank)
            if has_room:
                self._push(rank_level, set_level, aim)
            else:
                reached = rank_level >= 0
                self.bound = max(self.bound, -(-int(self.load[reached].sum()) // int(reached.sum())))

    def _search(self, aim: int) -> tuple[Int, Int, bool]:
        """How many hands away from a rank above `aim` each rank and set is, -1 where out of reach.

        The search ends with the first ranks below it; what leads to none of these is then out of reach too.
        """
        rank_level = np.where(self.load > aim, 0, -1)
        set_level = np.full(len(self._first_edge) - 1, -1)
        ranks = np.flatnonzero(self.load > aim)
        depth = 0
        while len(ranks):
            sets = self._set[self._given_by(ranks)]
            set_level[sets[set_level[sets] < 0]] = depth
            ranks = self._rank[self._edges_of(np.flatnonzero(set_level == depth))]
            depth += 1
            rank_level[ranks[rank_level[ranks] < 0]] = depth
            ranks = np.flatnonzero(rank_level == depth)
            if (self.load[ranks] < aim).any():
                self._forget_the_rest(rank_level, set_level, ranks[self.load[ranks] >= aim], depth)
                return rank_level, set_level, True
        return rank_level, set_level, False

    def _forget_the_rest(self, rank_level: Int, set_level: Int, full: Int, depth: int) -> None:
        """Take off the levels what has no way on: at the end ranks without room, then what led only there."""
        rank_level[full] = -1
        for level in reversed(range(depth)):
            sets = np.flatnonzero(set_level == level)
            edges = self._edges_of(sets)
            goes_on = np.zeros(len(set_level), bool)
            goes_on[self._set[edges[rank_level[self._rank[edges]] == level + 1]]] = True
            set_level[sets[~goes_on[sets]]] = -1
            ranks = np.flatnonzero(rank_level == level)
            edges = self._given_by(ranks)
            gives = np.zeros(len(rank_level), bool)
            gives[self._rank[edges[set_level[self._set[edges]] == level]]] = True
            rank_level[ranks[~gives[ranks]]] = -1

    def _edges_of(self, sets: Int) -> Int:
        """All edges of some sets."""
        return ranges(self._first_edge[sets], self._first_edge[sets + 1])

    def _given_by(self, ranks: Int) -> Int:
        """The edges over which some ranks serve anything."""
        edges = self._by_rank[ranges(self._first_of_rank[ranks], self._first_of_rank[ranks + 1])]
        return edges[self.amount[edges] > 0]

    def _push(self, rank_level: Int, set_level: Int, aim: int) -> None:
        """Hand on what can be handed on over shortest ways, until every one of them is blocked."""

        def gives(rank: int) -> list[int]:
            edges = self._by_rank[self._first_of_rank[rank] : self._first_of_rank[rank + 1]]
            onward = (self.amount[edges] > 0) & (set_level[self._set[edges]] == rank_level[rank])
            found: list[int] = edges[onward].tolist()
            return found

        def takes(of_set: int) -> list[int]:
            begin, end = self._first_edge[of_set : of_set + 2].tolist()
            onward = rank_level[self._rank[begin:end]] == set_level[of_set] + 1
            found: list[int] = (begin + np.flatnonzero(onward)).tolist()
            return found

        edges = _OnDemand(gives), _OnDemand(takes)
        for source in np.flatnonzero((self.load > aim) & (rank_level == 0)).tolist():
            self._drain(source, *edges, aim)

    def _drain(self, source: int, gives: _OnDemand, takes: _OnDemand, aim: int) -> None:
        """Depth first from one rank; edges that lead nowhere are dropped for good."""
        path: list[tuple[int, int]] = []
        here = source
        while self.load[source] > aim:
            if self.load[here] < aim:
                self._hand_on(source, here, path, aim)
                path, here = [], source
                continue
            out = gives[here]
            while out and not (self.amount[out[-1]] and takes[int(self._set[out[-1]])]):
                out.pop()
            if out:
                path.append((out[-1], takes[int(self._set[out[-1]])][-1]))
                here = int(self._rank[path[-1][1]])
            elif path:
                given, taken = path.pop()
                takes[int(self._set[taken])].pop()
                here = int(self._rank[given])
            else:
                return

    def _hand_on(self, source: int, target: int, path: list[tuple[int, int]], aim: int) -> None:
        least = min(int(self.amount[given]) for given, _ in path)
        moved = min(least, int(self.load[source]) - aim, aim - int(self.load[target]))
        for given, taken in path:
            self.amount[given] -= moved
            self.amount[taken] += moved
        self.load[source] -= moved
        self.load[target] += moved


class _OnDemand(dict[int, list[int]]):
    """Edges of ranks, or of sets, looked up when they are first asked for; most never are."""

    def __init__(self, find: Callable[[int], list[int]]) -> None:
        super().__init__()
        self._find = find

    def __missing__(self, key: int) -> list[int]:
        self[key] = found = self._find(key)
        return found
