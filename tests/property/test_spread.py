"""Who serves what, against every possible assignment and against the dual of the flow."""

from __future__ import annotations

from itertools import product

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from eplb_cli.plan import flow
from eplb_cli.plan.demands import Demands
from eplb_cli.plan.spread import Spread, spread

Sets = list[tuple[set[int], int, int]]
"""For each set of alike rows: who can serve them, how many they are, and the bytes of one."""


def demands_of(sets: Sets, num_ranks: int) -> Demands:
    """The columns of some sets."""
    return Demands(
        np.array([rows for _, rows, _ in sets], np.int64),
        np.array([nbytes for _, _, nbytes in sets], np.int64),
        np.concatenate([[0], np.cumsum([len(ranks) for ranks, _, _ in sets])]).astype(np.int64),
        np.array([rank for ranks, _, _ in sets for rank in sorted(ranks)], np.int64),
        num_ranks,
    )


def busiest(demands: Demands, found: Spread) -> int:
    """What the busiest rank serves, after a check that every row is served once, by a rank that can."""
    assert found.rows.shape == demands.rank.shape
    assert (found.rows >= 0).all()
    for number, rows in enumerate(demands.num_rows):
        begin, end = demands.first_edge[number : number + 2]
        assert found.rows[begin:end].sum() == rows
    return int(demands.load(found.rows).max(initial=0))


def best_of_all(sets: Sets, num_ranks: int) -> int:
    """The least that the busiest rank can serve: every assignment of every row is tried."""
    rows = [(sorted(ranks), nbytes) for ranks, count, nbytes in sets for _ in range(count)]
    least = None
    for chosen in product(*(ranks for ranks, _ in rows)):
        load = [0] * num_ranks
        for rank, (_, nbytes) in zip(chosen, rows, strict=True):
            load[rank] += nbytes
        least = max(load) if least is None else min(least, max(load))
    return least or 0


def dual_bound(sets: Sets, num_ranks: int) -> int:
    """Over every set of ranks: what only they can serve, shared evenly, in whole rows of one size."""
    size = max((nbytes for _, _, nbytes in sets), default=1)
    bounds = [0]
    for members in range(1, 1 << num_ranks):
        inside = {rank for rank in range(num_ranks) if members >> rank & 1}
        rows = sum(count for ranks, count, _ in sets if ranks <= inside)
        bounds.append(-(-rows // len(inside)) * size)
    return max(bounds)


def any_sets(num_ranks: int, max_sets: int, max_rows: int, sizes: list[int]) -> st.SearchStrategy[Sets]:
    ranks = st.sets(st.integers(0, num_ranks - 1), min_size=1, max_size=num_ranks)
    one = st.tuples(ranks, st.integers(1, max_rows), st.sampled_from(sizes))
    return st.lists(one, max_size=max_sets)


@settings(max_examples=200)
@given(any_sets(num_ranks=3, max_sets=4, max_rows=2, sizes=[5]))
def test_rows_of_one_size_are_spread_as_well_as_can_be(sets):
    """The busiest rank serves what it serves in the best of all assignments, and the bound says so."""
    demands = demands_of(sets, 3)
    found = spread(demands)
    assert busiest(demands, found) == found.bound_nbytes == best_of_all(sets, 3)


@settings(max_examples=200)
@given(any_sets(num_ranks=3, max_sets=4, max_rows=2, sizes=[3, 4, 10]))
def test_rows_of_several_sizes_have_a_true_bound(sets):
    """The bound is not above the best of all assignments, nor what was found below it."""
    demands = demands_of(sets, 3)
    found = spread(demands)
    assert found.bound_nbytes <= best_of_all(sets, 3) <= busiest(demands, found)


@settings(max_examples=300)
@given(st.integers(2, 7).flatmap(lambda n: st.tuples(any_sets(n, 25, 40, [3]), st.just(n))))
def test_the_flow_is_as_good_as_its_dual(case):
    """On larger cases: the value of the flow is the largest bound that a set of ranks gives."""
    sets, num_ranks = case
    demands = demands_of(sets, num_ranks)
    found = spread(demands)
    assert busiest(demands, found) == found.bound_nbytes == dual_bound(sets, num_ranks)


@settings(max_examples=100)
@given(any_sets(num_ranks=6, max_sets=25, max_rows=9, sizes=[7, 8, 20]))
def test_no_single_row_could_be_handed_on(sets):
    """With several sizes: wherever the busiest rank gives one row, the receiver ends up no less busy."""
    demands = demands_of(sets, 6)
    found = spread(demands)
    load = demands.load(found.rows)
    top = busiest(demands, found)
    if (load == top).sum() > 1:
        return
    for number, (_, _, nbytes) in enumerate(sets):
        edges = range(*demands.first_edge[number : number + 2])
        gives = any(found.rows[edge] and load[demands.rank[edge]] == top for edge in edges)
        assert not gives or all(load[demands.rank[edge]] + nbytes >= top for edge in edges)


def chain(length: int) -> Sets:
    """Each rank shares two rows with the next, and only the last has room for what is too much for rank 0."""
    own: Sets = [({rank}, 1 if rank else 3, 1) for rank in range(length)]
    return own + [({rank, rank + 1}, 2, 1) for rank in range(length - 1)]


def test_rows_are_handed_on_over_many_ranks():
    """Where each rank can give only to its neighbour, every one of a whole chain hands on a row."""
    for length in (2, 10, 1500):
        demands = demands_of(chain(length), length)
        found = spread(demands)
        assert busiest(demands, found) == found.bound_nbytes == 3
        assert found.rows[length:].tolist() == [0, 2] * (length - 1)


def test_a_search_that_ends_early_says_what_it_knows(monkeypatch):
    """Beyond its allowance the search leaves a gap: rows are served all the same, and the bound is true."""
    sets: Sets = [({0, 1}, 9, 1), ({1, 2}, 9, 1), ({2, 3}, 1, 1), ({1}, 7, 1)]
    demands = demands_of(sets, 4)
    exact = spread(demands)
    monkeypatch.setattr(flow, "MAX_SCANNED", 0)
    found = spread(demands)
    assert found.bound_nbytes <= exact.bound_nbytes == busiest(demands, exact) < busiest(demands, found)


def test_large_sizes_are_exact():
    """Amounts that floating point would round."""
    nbytes = (1 << 53) + 1
    demands = demands_of([({0, 1}, 5, nbytes), ({1}, 1, nbytes)], 2)
    assert spread(demands).bound_nbytes == 3 * nbytes == busiest(demands, spread(demands))


def test_rows_without_bytes_are_served_too():
    """Alone, and beside others: each set has as many rows as it asks for."""
    for sets in ([({0, 1}, 5, 0)], [({0, 1}, 5, 0), ({1, 2}, 4, 3)]):
        demands = demands_of(sets, 3)
        served = np.add.reduceat(spread(demands).rows, demands.first_edge[:-1])
        assert served.tolist() == demands.num_rows.tolist()
