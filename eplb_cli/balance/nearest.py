"""The placement of a shape that has most of what OLD has on its ranks: where a way from OLD begins."""

from __future__ import annotations

import numpy as np

from eplb_cli.arrays import Int
from eplb_cli.balance.replicas import Float
from eplb_cli.balance.shape import Shape
from eplb_cli.balance.state import Bool, held_by
from eplb_cli.placements.placement import EMPTY, Placement


def held_in(old: Placement, shape: Shape) -> Bool:
    """(L, R, E) which experts OLD has on the ranks of a shape."""
    return held_by(_on_ranks(old, shape.num_ranks), shape.num_experts)


def as_it_is(old: Placement, shape: Shape) -> Int | None:
    """(L, R, S) OLD where it has the shape and no slot is empty, whatever else is odd about it."""
    there = _on_ranks(old, shape.num_ranks)
    has_shape = old.num_ranks == shape.num_ranks and old.num_slots == shape.num_slots
    return (
        there if has_shape and there.size == old.physical_to_logical.size and (there != EMPTY).all() else None
    )


def nearest(load: Float, old: Placement, shape: Shape) -> Int:
    """(L, R, S) what OLD has, once on each rank, with what has to be added to that.

    A rank keeps experts that no other one has, then those whose replicas bear most. What is in no slot then
    gets one, and every slot that is left another replica of what bears most; of its node, where groups are
    kept on nodes and it has one.

    Args:
        load: (L, E).
        old: of the same layers and experts.
        shape: with fewer slots on a rank than there are experts for it.
    """
    has, room = held_in(old, shape), shape.room
    near = np.ones_like(has)
    if shape.keeps_groups:
        of_node = has.reshape(len(has), shape.num_nodes, -1, shape.num_experts).any(axis=2)
        near = np.repeat(of_node, shape.num_ranks // shape.num_nodes, axis=1)
    _drop(load, has, room)
    _make_room(load, has, room)
    _fill(load, has, near, room)
    return np.nonzero(has)[2].reshape(old.num_layers, shape.num_ranks, room)


def _drop(load: Float, has: Bool, room: int) -> None:
    """Leave each rank `room` experts at most."""
    counts = has.sum(axis=1)
    for rank in np.flatnonzero((has.sum(axis=2) > room).any(axis=0)):
        worth = np.where(counts == 1, np.inf, load / np.maximum(counts, 1))
        worth[~has[:, rank]] = -1.0
        dropped = has[:, rank].copy()
        np.put_along_axis(dropped, np.argsort(-worth, axis=1, kind="stable")[:, :room], False, 1)  # noqa: FBT003
        has[:, rank] &= ~dropped
        counts -= dropped


def _make_room(load: Float, has: Bool, room: int) -> None:
    """Take replicas that bear least away, until there are slots for all experts that have none."""
    while True:
        counts = has.sum(axis=1)
        free = room * has.shape[1] - counts.sum(axis=1)
        layer = np.flatnonzero(free < (counts == 0).sum(axis=1))
        if not len(layer):
            return
        share = load[layer] / np.maximum(counts[layer], 1)
        can_go = has[layer] & (counts[layer] > 1)[:, None]
        least = np.where(can_go, share[:, None], np.inf).reshape(len(layer), -1).argmin(axis=1)
        has[layer, *np.divmod(least, has.shape[2])] = False


def _fill(load: Float, has: Bool, near: Bool, room: int) -> None:
    """An expert to each free slot: those that have none, the heaviest first, then what bears most."""
    while len(layer := np.flatnonzero((has.sum(axis=2) < room).any(axis=1))):
        row, there = np.arange(len(layer)), has[layer]
        counts = there.sum(axis=1)
        share = load[layer] / np.maximum(counts, 1)
        bears = np.where((there.sum(axis=2) < room), (there * share[:, None]).sum(axis=2), np.inf)
        missing = counts == 0
        rank = bears.argmin(axis=1)
        other = ~there[row, rank]
        of_node = other & near[layer, rank]
        wanted = np.where(of_node.any(axis=1)[:, None], of_node, other)
        wanted = np.where(missing.any(axis=1)[:, None], missing, wanted)
        has[layer, rank, np.where(wanted, share, -1.0).argmax(axis=1)] = True


def _on_ranks(old: Placement, num_ranks: int) -> Int:
    """(L, R, S) what OLD has on each of some ranks, `EMPTY` where it has less than on another."""
    room = int(old.slots_per_rank[:num_ranks].max(initial=0))
    there = np.full((old.num_layers, num_ranks, room), EMPTY)
    slots = np.flatnonzero(old.rank_of_slot < num_ranks)
    there[:, old.rank_of_slot[slots], old.row_of_slot[slots]] = old.physical_to_logical[:, slots]
    return there
