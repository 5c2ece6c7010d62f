"""Two placements side by side: who has each expert, who wants it, and who wants what it does not have."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from eplb_cli.arrays import Int, begins, runs, sort_numbers
from eplb_cli.placements.placement import EMPTY, Placement
from eplb_cli.plan.senders import Holders, Requests
from eplb_cli.values import dataclass


@dataclass(frozen=True, eq=False)
class Match:
    """The filled slots of NEW, columns of shape (N,) by (layer, expert, slot), and who has their experts.

    A block is what OLD and NEW put of one expert of a layer on one rank; B blocks are in that order.

    Attributes:
        group: layer * num_experts + expert.
        slot: the slot of NEW.
        block: the block it is in.
        is_first: whether the block begins with it: OLD puts nothing there, and NEW nothing before it.
        is_held: (B,) whether OLD puts the expert on the rank.
        holders: the blocks that are held.
        requests: the other ones.
    """

    group: Int
    slot: Int
    block: Int
    is_first: NDArray[np.bool_]
    is_held: NDArray[np.bool_]
    holders: Holders
    requests: Requests


def match(old: Placement, new: Placement) -> Match:
    """Sort the slots of both placements by layer, expert and rank, and OLD's before NEW's."""
    num_experts = max(old.num_logical_experts, new.num_logical_experts)
    num_ranks = max(old.num_ranks, new.num_ranks)
    ranks = np.concatenate([old.rank_of_slot, new.rank_of_slot])
    order = np.argsort(ranks * 2 + (np.arange(len(ranks)) >= old.num_slots), kind="stable")
    code = np.empty_like(order)
    code[order] = np.arange(len(order))
    group, code = _sorted_slots(old, new, num_experts, code)
    rank, is_new, slot = ranks[order][code], (order >= old.num_slots)[code], order[code]

    begins_block = begins(group) | begins(rank)
    first = np.flatnonzero(begins_block)
    is_held = ~is_new[first]
    held, asked = np.flatnonzero(is_held), np.flatnonzero(~is_held)
    key = group[first] * num_ranks + rank[first]
    wanted = np.flatnonzero(is_new)
    return Match(
        group[wanted],
        slot[wanted] - old.num_slots,
        (np.cumsum(begins_block) - 1)[wanted],
        begins_block[wanted],
        is_held,
        Holders(key[held], num_experts, num_ranks, slot[first[held]]),
        Requests(key[asked], num_experts, num_ranks, *_holders_of_group(group[first], is_held, asked)),
    )


def _sorted_slots(old: Placement, new: Placement, num_experts: int, code: Int) -> tuple[Int, Int]:
    """(M,) groups, and codes within them, of all filled slots, sorted by both.

    Args:
        code: (P + P',) of each slot.
    """
    bits = len(code).bit_length()
    group = np.arange(old.num_layers)[:, None] * num_experts
    sides = [
        (((group + side.physical_to_logical) << bits) | of_slot)[side.physical_to_logical != EMPTY]
        for side, of_slot in ((old, code[: old.num_slots]), (new, code[old.num_slots :]))
    ]
    packed = sort_numbers(np.concatenate(sides), old.num_layers * num_experts << bits)
    return packed >> bits, packed & ((1 << bits) - 1)


def _holders_of_group(group: Int, is_held: NDArray[np.bool_], asked: Int) -> tuple[Int, Int]:
    """Where the held blocks of the group of each block that is asked for begin and end among all held."""
    is_first = begins(group)
    number = (np.cumsum(is_first) - 1)[asked]
    first, count = runs(is_first)
    held_before = np.concatenate([[0], np.cumsum(is_held)])
    return held_before[first][number], held_before[first + count][number]
