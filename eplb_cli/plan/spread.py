"""Who serves how many of many alike demands, so that the busiest rank serves as little as possible.

They are dealt, and a flow corrects the deal. Where all rows have the same size that is the optimum. Rows
of different sizes may be split by the flow, whose bound holds all the same; they are made whole afterwards,
which may leave a gap to the bound.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from eplb_cli.arrays import Int, distinct, ranges, sum_by
from eplb_cli.plan.demands import Demands
from eplb_cli.plan.flow import Flow
from eplb_cli.values import dataclass

DEAL_ROUNDS = 64
"""Rounds of the first deal; each of them knows what the ones before it made ranks serve."""

MAX_RELIEVED = 8
"""Rows for each rank that are handed on one by one, where sizes differ, after the flow."""


@dataclass(frozen=True, eq=False)
class Spread:
    """Rows of each edge, shape (M,), and what the busiest rank serves at the very least, in bytes."""

    rows: Int
    bound_nbytes: int


def spread(demands: Demands) -> Spread:
    """Serve all demands. The busiest rank is at the bound wherever all rows have the same size."""
    forced = demands.num_edges == 1
    open_demands = demands.chosen(~forced)
    rows = demands.per_edge(demands.num_rows)
    base = demands.load(np.where(np.repeat(forced, demands.num_edges), rows, 0))
    unit = max(int(np.gcd.reduce(demands.row_nbytes, initial=0)), 1)
    dealt, load = _deal(open_demands, base)
    flow = Flow(open_demands, dealt, load, unit, _first_bound(demands, base, unit))
    sizes = distinct(demands.row_nbytes).tolist()
    one_size = len(sizes) <= 1
    flow.level_out(tolerance=0 if one_size else sizes[0] // unit)
    row_units = open_demands.per_edge(open_demands.row_nbytes // unit)
    served = np.where(
        row_units > 0, flow.amount // np.maximum(row_units, 1), dealt
    )  # nothing flows of no bytes
    rows[np.repeat(~forced, demands.num_edges)] = (
        served if one_size else _whole_rows(open_demands, dealt, served, base)
    )
    return Spread(rows, flow.bound * unit)


def _first_bound(demands: Demands, base: Int, unit: int) -> int:
    """In units: what a rank must serve alone, and the mean of all ranks that can serve anything."""
    total = int((demands.num_rows * demands.row_nbytes).sum()) // unit
    num_serving = int(np.count_nonzero(np.bincount(demands.rank, minlength=1)))
    return max(int(base.max(initial=0)) // unit, -(-total // max(num_serving, 1)))


def _deal(demands: Demands, base: Int) -> tuple[Int, Int]:
    """A good start: each set evenly over its ranks, what is left of it to the least loaded of them.

    Returns:
        (M,) rows of each edge, and (R,) bytes of each rank.
    """
    rows, load = np.zeros(len(demands.rank), np.int64), base.copy()
    num_sets = len(demands.num_rows)
    share, rest = np.divmod(demands.num_rows, np.maximum(demands.num_edges, 1))
    edge_set = demands.edge_set
    edge_nbytes = demands.row_nbytes[edge_set]
    cuts = distinct(num_sets * np.arange(DEAL_ROUNDS + 1) // DEAL_ROUNDS)
    for begin, end in zip(demands.first_edge[cuts[:-1]], demands.first_edge[cuts[1:]], strict=True):
        sets, ranks = edge_set[begin:end], demands.rank[begin:end]
        order = np.lexsort((load[ranks], sets))
        position = np.arange(begin, end) - demands.first_edge[sets]
        dealt = np.empty(len(sets), np.int64)
        dealt[order] = share[sets] + (position < rest[sets])
        rows[begin:end] = dealt
        load += sum_by(ranks, dealt * edge_nbytes[begin:end], len(load))
    return rows, load


def _whole_rows(demands: Demands, dealt: Int, served: Int, base: Int) -> Int:
    """(M,) rows of each edge, from the better of two starts.

    One is the first deal; the other deals again what is left of each set when the amounts that flowed are
    rounded down to whole rows, `served`.
    """
    left = demands.num_rows - sum_by(demands.edge_set, served, len(demands.num_rows))
    again = served + _deal(replace(demands, num_rows=left), base + demands.load(served))[0]
    better = min(again, dealt, key=lambda rows: int((base + demands.load(rows)).max()))
    return _relieved(demands, better, base)


def _relieved(demands: Demands, rows: Int, base: Int) -> Int:
    """Rows handed on one by one, from the busiest rank to ranks that then still serve less than it did."""
    rows, load = rows.copy(), base + demands.load(rows)
    edge_set = demands.edge_set
    by_rank = np.argsort(demands.rank, kind="stable")
    first_of_rank = np.searchsorted(demands.rank[by_rank], np.arange(demands.num_ranks + 1))
    for _ in range(MAX_RELIEVED * demands.num_ranks):
        busiest = int(load.argmax())
        given = by_rank[first_of_rank[busiest] : first_of_rank[busiest + 1]]
        given = given[rows[given] > 0]
        begin, end = demands.first_edge[edge_set[given]], demands.first_edge[edge_set[given] + 1]
        given = np.repeat(given, end - begin)
        taken = ranges(begin, end)
        nbytes = demands.row_nbytes[edge_set[taken]]
        after = np.maximum(load[demands.rank[taken]] + nbytes, load[busiest] - nbytes)
        if after.min(initial=load[busiest]) >= load[busiest]:
            break
        best = int(after.argmin())
        rows[given[best]] -= 1
        rows[taken[best]] += 1
        load[busiest] -= nbytes[best]
        load[demands.rank[taken[best]]] += nbytes[best]
    return rows
