"""NEW by other names: against every other choice of names, and against what a plan counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise, permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eplb_cli.balance.relabel import relabel, require_permuted
from eplb_cli.errors import PlanError
from eplb_cli.placements.placement import EMPTY, Placement
from eplb_cli.plan.plan import plan_reshard
from eplb_cli.report.tally import plan_report
from tests.support.pairs import pairs

Ranks = tuple[tuple[int, ...], ...]
"""What each rank holds in each of its rows."""

NODES = st.none() | st.integers(1, 4)


def ranks_of(placement: Placement, layer: int) -> Ranks:
    """A layer, rank by rank."""
    bounds = placement.first_slot.tolist()
    row = placement.physical_to_logical[layer].tolist()
    return tuple(tuple(row[begin:end]) for begin, end in pairwise(bounds))


def names(new: Ranks, how: str, ranks_per_node: int | None) -> Iterator[Ranks]:
    """Everything that a layer of NEW can be called."""
    orders = permutations(range(len(new))) if how == "ranks" else [range(len(new))]
    for order in orders:
        if fits(order, new, ranks_per_node or len(new)):
            yield from product(*(permutations(new[rank]) for rank in order))


def fits(order: Sequence[int], new: Ranks, node_size: int) -> bool:
    """Whether ranks have as many slots as their places, and nodes stay whole."""
    nodes: dict[int, set[int]] = {}
    for place, rank in enumerate(order):
        nodes.setdefault(place // node_size, set()).add(rank // node_size)
    if any(len(of) > 1 for of in nodes.values()) or len({*map(tuple, nodes.values())}) < len(nodes):
        return False
    return all(len(new[rank]) == len(new[place]) for place, rank in enumerate(order))


def price(old: Ranks, new: Ranks, ranks_per_node: int | None) -> tuple[int, int, int]:
    """Rows from other ranks, rows from other nodes, and slots that are not in their row."""
    size = ranks_per_node or len(old) + len(new)
    remote = crossing = moved = 0
    for place, held in enumerate(new):
        here = old[place] if place < len(old) else ()
        near = {expert for rank, row in enumerate(old) if rank // size == place // size for expert in row}
        away = {*held} - {*here, EMPTY}
        remote += len(away)
        crossing += len(away - near)
        moved += sum(
            expert != EMPTY and (row >= len(here) or here[row] != expert) for row, expert in enumerate(held)
        )
    return remote, crossing, moved


@given(pairs(max_layers=1, max_ranks=4, max_slots=2) | pairs(max_layers=1, max_ranks=2, max_slots=4), NODES)
@settings(max_examples=150)
def test_no_other_names_move_less(pair, ranks_per_node):
    """Every permutation of rows, and of ranks, is as dear or dearer: by rank, then node, then row."""
    old, new = pair
    for how in ("rows", "ranks"):
        found = ranks_of(relabel(old, new, how, ranks_per_node), 0)
        before = ranks_of(old, 0)
        least = min(
            price(before, other, ranks_per_node) for other in names(ranks_of(new, 0), how, ranks_per_node)
        )
        assert price(before, found, ranks_per_node) == least
        assert found in {*names(ranks_of(new, 0), how, ranks_per_node)}


@given(pairs(), NODES)
def test_a_plan_counts_no_more(pair, ranks_per_node):
    """`rows` moves the same bytes between ranks, `ranks` no more of them; the kinds are those of the plan."""
    old, new = pair
    sizes = np.arange(1, old.num_layers + 1) * 10
    totals = {}
    for how in ("none", "rows", "ranks"):
        relabelled = relabel(old, new, how, ranks_per_node)
        plan = plan_reshard(old, relabelled, expert_nbytes=sizes, ranks_per_node=ranks_per_node)
        totals[how] = plan_report(plan, sizes).totals
        layers = [
            price(ranks_of(old, at), ranks_of(relabelled, at), ranks_per_node) for at in range(old.num_layers)
        ]
        assert totals[how].remote_rows == sum(remote for remote, _, _ in layers)
        assert totals[how].cross_node_rows == (sum(away for _, away, _ in layers) if ranks_per_node else 0)
    assert totals["rows"].remote_bytes == totals["none"].remote_bytes
    assert totals["rows"].unchanged_rows >= totals["none"].unchanged_rows
    assert (totals["ranks"].remote_bytes or 0) <= (totals["none"].remote_bytes or 0)


@given(pairs(), NODES)
def test_it_is_the_same_placement(pair, ranks_per_node):
    """Each rank's experts are one rank's of NEW, with as many slots; a second time changes nothing."""
    old, new = pair
    for how in ("rows", "ranks"):
        found = relabel(old, new, how, ranks_per_node)
        assert np.array_equal(found.first_slot, new.first_slot)
        for layer in range(new.num_layers):
            held = [tuple(sorted(rank)) for rank in ranks_of(found, layer)]
            wanted = [tuple(sorted(rank)) for rank in ranks_of(new, layer)]
            assert held == wanted if how == "rows" else Counter(held) == Counter(wanted)
        again = relabel(old, found, how, ranks_per_node)
        assert np.array_equal(again.physical_to_logical, found.physical_to_logical)


@given(pairs(same_shape=True), st.randoms(use_true_random=False))
def test_other_names_for_old_are_undone(pair, random):
    """OLD with ranks and rows in any order moves nothing."""
    old, _ = pair
    layers = []
    for layer in range(old.num_layers):
        ranks = [random.sample(rank, len(rank)) for rank in ranks_of(old, layer)]
        layers.append(np.concatenate(random.sample(ranks, len(ranks))))
    found = relabel(old, replace(old, physical_to_logical=np.array(layers)), "ranks")
    assert np.array_equal(found.physical_to_logical, old.physical_to_logical)


@pytest.mark.parametrize(
    ("old", "new", "ranks_per_node", "least"),
    [
        ([[0, 1], [2, 2], [2, 1], [2, 1]], [[1, 2], [0, 2], [2, 2], [2, 2]], 2, (2, 0, 4)),
        ([[0, 2, 1], [1, 2, 2]], [[2, 0, 2], [1, 1, 1]], None, (0, 0, 3)),
    ],
    ids=["as little from other nodes", "an expert twice on a rank is one"],
)
def test_what_counts(old, new, ranks_per_node, least):
    """Cases that random ones seldom meet: a choice by nodes alone, and one that replicas would mislead."""
    first_slot = np.arange(len(old) + 1) * len(old[0])
    before, after = (Placement(np.array([np.concatenate(table)]), first_slot, 3) for table in (old, new))
    found = relabel(before, after, "ranks", ranks_per_node)
    assert price(ranks_of(before, 0), ranks_of(found, 0), ranks_per_node) == least


def test_what_is_no_permutation_is_refused():
    """The proof sees a rank that lost an expert, and one that was given twice."""
    new = Placement(np.array([[0, 1, 2, 3]]), np.array([0, 2, 4]), 4)
    in_place = np.array([[0, 1]])
    require_permuted(new, replace(new, physical_to_logical=np.array([[1, 0, 3, 2]])), in_place)
    for table, rank_from in (([0, 2, 1, 3], [0, 1]), ([2, 3, 0, 1], [0, 1]), ([0, 1, 0, 1], [0, 0])):
        with pytest.raises(PlanError, match="changed what a rank"):
            require_permuted(new, replace(new, physical_to_logical=np.array([table])), np.array([rank_from]))
