"""NEW with other names for the same thing: rows and ranks change places until little has to move.

Neither changes what any rank has to compute, so balance stays what it is. A balancer that wants 0 and 1
together, and 2 and 3, names its ranks and rows as it likes::

    OLD      0 1 │ 2 3
    NEW      3 2 │ 1 0    four rows come from another rank
    rows     2 3 │ 0 1    the order of OLD, where a rank has the expert at all: four still do
    ranks    0 1 │ 2 3    and the rank that has most of them in OLD: nothing moves
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
from numpy.typing import NDArray

from eplb_cli.arrays import Int
from eplb_cli.balance.overlap import Overlap, Overlaps, copy_keys, old_in_places
from eplb_cli.errors import PlacementError, PlanError, UsageError
from eplb_cli.placements.placement import Placement
from eplb_cli.plan.choice import Relabel

Weights = NDArray[np.float64]

MAX_RELABELLED_RANKS = 4096
"""R of a NEW whose ranks are assigned: the time grows with its cube."""

FORBIDDEN = -np.inf
"""The weight of a rank in a place with another number of slots."""


def relabel(old: Placement, new: Placement, how: Relabel, ranks_per_node: int | None = None) -> Placement:
    """NEW with rows, or ranks and rows, permuted in each layer, so that as little as possible moves.

    Old rank r and new rank r are one place, as in a plan. "rows" leaves every expert on its rank, in the row
    that OLD has it in wherever it can. "ranks" permutes the ranks of each layer before: first, as few rows as
    possible come from another rank; of those choices, as few as possible from another node; of those, as many
    as possible stay in their row; of those, as many ranks as possible are what NEW calls them. It is an
    assignment problem a layer, solved by scipy (D. F. Crouse, "On implementing 2D rectangular assignment
    algorithms", IEEE Transactions on Aerospace and Electronic Systems 52, 2016).

    Args:
        old: OLD.
        new: NEW, of layers of OLD, in any order where both say their numbers; R, S and P may differ. A rank
            takes the place only of one with as many slots.
        how: "none", "rows" or "ranks".
        ranks_per_node: G; ranks that NEW has on one node stay together, on whichever node. None for one node.

    Raises:
        PlacementError: EP109, a layer of NEW is not in OLD.
        UsageError: EP001, there are too many ranks to assign, or a node has no number of ranks.
        PlanError: EP301, what came out is not NEW by other names.

    Examples:
        >>> (old, _), (new, _) = map(eplb_cli.read_placement, ("old.json", "new.json"))
        >>> relabelled = eplb_cli.relabel(old, new, "ranks")
        >>> [int((eplb_cli.plan_reshard(old, each).moves.kind == 2).sum()) for each in (new, relabelled)]
        [25, 13]
    """
    if how == "none":
        return new
    old = _like(old, new)
    rank_from = np.tile(np.arange(new.num_ranks), (new.num_layers, 1))
    if how == "ranks":
        rank_from = _assign_ranks(old, new, _node_size(new, ranks_per_node))
    relabelled = _with_rows(old, _with_ranks(new, rank_from))
    require_permuted(new, relabelled, rank_from)
    return relabelled


def _like(old: Placement, new: Placement) -> Placement:
    """OLD with the layers of NEW, in the order of NEW. Raises EP109."""
    if old.layer_ids is not None and new.layer_ids is not None:
        of_old = old.layer_ids.tolist()
        if missing := sorted({*new.layer_ids.tolist()} - {*of_old}):
            raise PlacementError("EP109", f"layer {missing[0]} is in NEW alone")
        order = [of_old.index(layer) for layer in new.layer_ids.tolist()]
        return replace(old, physical_to_logical=old.physical_to_logical[order], layer_ids=new.layer_ids)
    if old.num_layers != new.num_layers:
        raise PlacementError("EP109", f"OLD has {old.num_layers} layers and NEW has {new.num_layers}")
    return old


def _node_size(new: Placement, ranks_per_node: int | None) -> int:
    """How many ranks have to stay together. Raises EP001."""
    if ranks_per_node is not None and ranks_per_node < 1:
        raise UsageError("EP001", f"--ranks-per-node is {ranks_per_node:,}", "leave it out for one node")
    if new.num_ranks > MAX_RELABELLED_RANKS:
        problem = f"NEW has {new.num_ranks:,} ranks, and {MAX_RELABELLED_RANKS:,} can be relabelled"
        raise UsageError("EP001", problem, "--relabel rows takes any number")
    return min(ranks_per_node or new.num_ranks, new.num_ranks)


def _assign_ranks(old: Placement, new: Placement, node_size: int) -> Int:
    """(L, R) the rank of NEW that each place gets."""
    overlaps = Overlaps(old, new, node_size)
    nodes = None if node_size in (1, new.num_ranks) else _nodes(new, node_size)
    layers = map(overlaps.of_layer, range(new.num_layers))
    return np.array([_assign_layer(overlap, new, nodes) for overlap in layers], np.int64)


def _nodes(new: Placement, node_size: int) -> list[tuple[slice, list[int]]]:
    """The ranks of each node, and what a node that takes its place has to have: the slots of its ranks."""
    first_ranks = range(0, new.num_ranks, node_size)
    nodes = [slice(first, min(first + node_size, new.num_ranks)) for first in first_ranks]
    return [(node, sorted(new.slots_per_rank[node].tolist())) for node in nodes]


def _assign_layer(overlap: Overlap, new: Placement, nodes: list[tuple[slice, list[int]]] | None) -> Int:
    """(R,) the rank of NEW that each place gets in one layer.

    Args:
        nodes: of which each has to stay whole; None where any rank can take any place.
    """
    # Each of them is worth more than all that there can be of what follows it.
    in_row_worth = new.num_ranks + 1
    on_node_worth = in_row_worth * (new.num_slots + 1)
    on_rank_worth = on_node_worth * (new.num_slots + 1)
    worth = overlap.on_rank * on_rank_worth + overlap.in_row * in_row_worth
    worth += np.eye(new.num_ranks, dtype=np.int64)  # a rank that keeps its name
    slots = new.slots_per_rank
    weights = np.where(slots[:, None] == slots, worth.astype(np.float64), FORBIDDEN)
    if nodes is None:
        return _assign(weights)[0]
    inside: dict[tuple[int, int], Int] = {}
    best = np.full((len(nodes), len(nodes)), FORBIDDEN)
    for (at, (place, free)), (of, (node, needed)) in product(enumerate(nodes), repeat=2):
        if free == needed:
            inside[at, of], best[at, of] = _assign(weights[place, node])
    best += overlap.on_node * float(on_node_worth)
    return np.concatenate([nodes[of][0].start + inside[at, of] for at, of in enumerate(_assign(best)[0])])


def _assign(weights: Weights) -> tuple[Int, float]:
    """The column of each row, one for each, so that the sum of their weights is the largest; and the sum."""
    from scipy.optimize import linear_sum_assignment

    row, column = linear_sum_assignment(weights, maximize=True)
    return column, float(weights[row, column].sum())


def _with_ranks(new: Placement, rank_from: Int) -> Placement:
    """NEW with rank `rank_from[layer, place]` in each place."""
    slot_from = new.first_slot[rank_from[:, new.rank_of_slot]] + new.row_of_slot
    return replace(new, physical_to_logical=np.take_along_axis(new.physical_to_logical, slot_from, 1))


def _with_rows(old: Placement, new: Placement) -> Placement:
    """NEW with all that can be in its row of OLD there, and the others, in ascending order, where is room."""
    ranks = new.rank_of_slot
    table = _in_order(new.physical_to_logical, ranks)
    keys = np.hstack([copy_keys(old_in_places(old, new), ranks), copy_keys(table, ranks)])
    rank = np.broadcast_to(np.tile(ranks, 2), keys.shape)
    order = np.lexsort((keys, rank))  # stable: of two that are the same the one of OLD is first
    keys, rank = np.take_along_axis(keys, order, 1), np.take_along_axis(rank, order, 1)
    layer, at = np.nonzero((keys[:, 1:] == keys[:, :-1]) & (rank[:, 1:] == rank[:, :-1]))
    stays, comes = order[layer, at], order[layer, at + 1] - new.num_slots
    is_free, is_left = np.ones(table.shape, bool), np.ones(table.shape, bool)
    is_free[layer, stays] = is_left[layer, comes] = False
    result = np.empty_like(table)
    result[layer, stays] = table[layer, comes]
    result[is_free] = table[is_left]  # both by rank, which has as many of the one as of the other
    return replace(new, physical_to_logical=result)


def _in_order(table: Int, place: Int) -> Int:
    """(L, P) a table by the places of its slots, (P,) or (L, P), and within each in ascending order."""
    order = np.lexsort((table, np.broadcast_to(place, table.shape)))
    return np.take_along_axis(table, order, 1)


def require_permuted(new: Placement, relabelled: Placement, rank_from: Int) -> None:
    """EP301 unless each rank of NEW is in one place of each layer, of as many slots, with all it has."""
    slots = new.slots_per_rank
    once = (np.sort(rank_from, axis=1) == np.arange(new.num_ranks)).all()
    place = np.argsort(rank_from, axis=1)[:, new.rank_of_slot]
    held = _in_order(new.physical_to_logical, place)
    found = _in_order(relabelled.physical_to_logical, relabelled.rank_of_slot)
    if not (once and (slots[rank_from] == slots).all() and np.array_equal(held, found)):
        raise PlanError("EP301", "relabelling changed what a rank of NEW holds")
