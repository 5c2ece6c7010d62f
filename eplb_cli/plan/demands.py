"""Rows to be served, grouped by who can serve them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from eplb_cli.arrays import Int, sum_by
from eplb_cli.values import dataclass


@dataclass(frozen=True, eq=False)
class Demands:
    """Sets of rows that any rank of a set can serve; an edge is a set and a rank of it.

    Attributes:
        num_rows: (G,) rows of each set.
        row_nbytes: (G,) bytes of such a row.
        first_edge: (G + 1,) the edges of set g are `first_edge[g]` to `first_edge[g + 1] - 1`.
        rank: (M,) the rank of each edge.
        num_ranks: R.
    """

    num_rows: Int
    row_nbytes: Int
    first_edge: Int
    rank: Int
    num_ranks: int

    @property
    def num_edges(self) -> Int:
        """(G,) ranks that can serve each set."""
        return np.diff(self.first_edge)

    def per_edge(self, of_set: Int) -> Int:
        """(M,) the value of each edge's set."""
        return np.repeat(of_set, self.num_edges)

    @property
    def edge_set(self) -> Int:
        """(M,) the set of each edge."""
        return self.per_edge(np.arange(len(self.num_rows)))

    def chosen(self, sets: NDArray[np.bool_]) -> Demands:
        """Some of the sets."""
        edges = np.repeat(sets, self.num_edges)
        first_edge = np.concatenate([[0], np.cumsum(self.num_edges[sets])])
        return Demands(
            self.num_rows[sets], self.row_nbytes[sets], first_edge, self.rank[edges], self.num_ranks
        )

    def load(self, rows: Int) -> Int:
        """(R,) bytes that each rank serves, given the rows of each edge."""
        return sum_by(self.rank, rows * self.per_edge(self.row_nbytes), self.num_ranks)
