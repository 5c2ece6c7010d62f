"""What a rank of NEW has in common with a place of OLD: experts, experts of its node, and rows."""

from __future__ import annotations

import numpy as np

from eplb_cli.arrays import Int
from eplb_cli.placements.placement import EMPTY, Placement
from eplb_cli.values import dataclass

NO_ROW = EMPTY - 1
"""What OLD holds in a row that it has not."""


def old_in_places(old: Placement, new: Placement) -> Int:
    """(L, P of NEW) what OLD holds in the rank and row of each slot of NEW; `NO_ROW` where it has none."""
    rank = np.minimum(new.rank_of_slot, old.num_ranks - 1)
    exists = (new.rank_of_slot < old.num_ranks) & (new.row_of_slot < old.slots_per_rank[rank])
    slot = np.where(exists, old.first_slot[rank] + new.row_of_slot, 0)
    there: Int = np.where(exists, old.physical_to_logical[:, slot], NO_ROW)
    return there


def copy_keys(table: Int, rank_of_slot: Int) -> Int:
    """(L, P) what each slot holds and how many slots of its rank before it hold the same, as one number.

    On a rank no two slots have the same; of two ranks with two copies each both have the same two.
    """
    order = np.lexsort((table, np.broadcast_to(rank_of_slot, table.shape)))
    held, rank = np.take_along_axis(table, order, 1), rank_of_slot[order]
    is_first = np.ones(table.shape, bool)
    is_first[:, 1:] = (held[:, 1:] != held[:, :-1]) | (rank[:, 1:] != rank[:, :-1])
    position = np.arange(table.shape[1])
    first = np.maximum.accumulate(np.where(is_first, position, 0), axis=1)
    keys = np.empty(table.shape, np.int64)
    np.put_along_axis(keys, order, (held - NO_ROW) * (table.shape[1] + 1) + position - first, 1)
    return keys


@dataclass(frozen=True, eq=False)
class Overlap:
    """What places of OLD and ranks of NEW have in common in one layer.

    Attributes:
        on_rank: (R, R) different experts that both a place and a rank have.
        in_row: (R, R) slots of the rank that have a row of the place with what they hold.
        on_node: (N, N) the same experts for a node of places: summed over the ranks of a node, how many
            different ones of each the places have.
    """

    on_rank: Int
    in_row: Int
    on_node: Int


class Overlaps:
    """The overlaps of all layers.

    Args:
        old: OLD.
        new: NEW, which says how many places there are: old rank r is the place of new rank r.
        node_size: ranks of a node.
    """

    def __init__(self, old: Placement, new: Placement, node_size: int) -> None:
        self._old, self._new, self._node_size = old, new, node_size
        there = old_in_places(old, new)
        self._is_there = there > EMPTY
        self._there_keys = copy_keys(there, new.rank_of_slot)
        self._new_keys = copy_keys(new.physical_to_logical, new.rank_of_slot)

    def of_layer(self, layer: int) -> Overlap:
        """The overlap of one layer."""
        old, new, node_size = self._old, self._new, self._node_size
        nodes = np.arange(0, new.num_ranks, node_size)
        holds, wants = old.physical_to_logical[layer] != EMPTY, new.physical_to_logical[layer] != EMPTY
        held, holder = old.physical_to_logical[layer, holds], old.rank_of_slot[holds]
        wanted, rank = new.physical_to_logical[layer, wants], new.rank_of_slot[wants]
        is_there = self._is_there[layer]
        there = self._there_keys[layer, is_there], new.rank_of_slot[is_there]
        each_rank = (new.num_ranks, new.num_ranks)
        on_node = _in_common((held, holder // node_size), (wanted, rank), (len(nodes), new.num_ranks))
        return Overlap(
            _in_common((held, holder), (wanted, rank), each_rank),
            _in_common(there, (self._new_keys[layer, wants], rank), each_rank),
            np.add.reduceat(on_node, nodes, axis=1),
        )


def _in_common(of_places: tuple[Int, Int], of_ranks: tuple[Int, Int], shape: tuple[int, int]) -> Int:
    """(places, ranks) how many different keys a place and a rank both have.

    Args:
        of_places: (N,) keys, and the place that has each; a place that is not in the shape is left out.
        of_ranks: (M,) keys, and the rank that has each.
    """
    from scipy.sparse import csr_array

    is_place = of_places[1] < shape[0]
    place, rank = of_places[1][is_place], of_ranks[1]
    keys, column = np.unique(np.concatenate([of_places[0][is_place], of_ranks[0]]), return_inverse=True)
    sides = []
    for row, at, height in ((place, column[: len(place)], shape[0]), (rank, column[len(place) :], shape[1])):
        side = csr_array((np.ones(len(row), np.int64), (row, at)), shape=(height, len(keys)))
        side.data[:] = 1  # a key that is there twice counts once
        sides.append(side)
    common: Int = (sides[0] @ sides[1].T).toarray()
    return common
