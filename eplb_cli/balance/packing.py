"""Replicas onto ranks, and groups of experts onto nodes: the largest first, to whoever bears least.

This is the longest-processing-time rule with as many items for each bin, for many problems at once. No
expert comes twice to a rank while another one has room; where the last ranks with room all have it, slots are
swapped afterwards.
"""

from __future__ import annotations

import numpy as np

from eplb_cli.arrays import Int
from eplb_cli.balance.replicas import Float

_NONE = -1


def pack(load: Float, counts: Int, num_ranks: int) -> Int:
    """(B, R, S) the expert in each slot of each rank.

    Args:
        load: (B, E) of each expert, over all its replicas.
        counts: (B, E) replicas, at most R of each; their number divides by R.
    """
    share = load / counts
    num_problems = len(load)
    by_share = np.argsort(-share, axis=1, kind="stable")
    slots = counts.sum(axis=1)[0]
    repeats = np.take_along_axis(counts, by_share, 1)
    items = np.repeat(by_share.ravel(), repeats.ravel()).reshape(num_problems, slots)
    experts = _deal(items, np.take_along_axis(share, items, 1), num_ranks)
    return apart(experts, share)


def _deal(items: Int, weights: Float, num_ranks: int) -> Int:
    """(B, R, S) items, in their order, each to the rank with room and without it that bears least."""
    num_problems, num_slots = items.shape
    room = num_slots // num_ranks
    dealt = np.full((num_problems, num_ranks, room), _NONE)
    borne = np.zeros((num_problems, num_ranks))  # infinite once a rank is full
    filled = np.zeros((num_problems, num_ranks), np.int64)
    last = np.full((num_problems, num_ranks), _NONE)  # replicas of an expert come one after the other
    problem = np.arange(num_problems)
    for item, weight in zip(items.T, weights.T, strict=True):
        without = np.where(last == item[:, None], np.inf, borne)
        rank = without.argmin(axis=1)
        stuck = np.isinf(without[problem, rank])
        if stuck.any():
            rank[stuck] = borne[stuck].argmin(axis=1)
        at = filled[problem, rank]
        dealt[problem, rank, at] = item
        filled[problem, rank] = at + 1
        last[problem, rank] = item
        borne[problem, rank] = np.where(at + 1 < room, borne[problem, rank] + weight, np.inf)
    return dealt


def apart(experts: Int, share: Float) -> Int:
    """(B, R, S) the same with no expert twice on a rank: second copies are swapped with slots of other ranks.

    Of the swaps that are possible the one that leaves the heavier of both ranks lightest; there is always
    one, where no expert has more replicas than there are ranks.
    """
    experts = experts.copy()
    while len(copies := _second_copies(experts)):
        problem, rank, slot = copies[np.unique(copies[:, 0], return_index=True)[1]].T
        here, row = experts[problem], np.arange(len(problem))
        item, own = here[row, rank, slot], here[row, rank]
        bears = share[problem[:, None, None], here]
        gain = bears - share[problem, item][:, None, None]
        load = bears.sum(axis=2)
        after = np.maximum(load[row, rank][:, None, None] + gain, load[:, :, None] - gain)
        has_item = (here == item[:, None, None]).any(axis=2)
        in_own = (here[:, :, :, None] == own[:, None, None, :]).any(axis=3)
        after[has_item[:, :, None] | in_own] = np.inf
        other, place = np.divmod(after.reshape(len(problem), -1).argmin(axis=1), here.shape[2])
        experts[problem, rank, slot] = here[row, other, place]
        experts[problem, other, place] = item
    return experts


def _second_copies(experts: Int) -> Int:
    """(N, 3) problem, rank and slot of every expert that is on its rank before that slot too."""
    order = np.argsort(experts, axis=2, kind="stable")
    held = np.take_along_axis(experts, order, 2)
    problem, rank, at = np.nonzero(held[:, :, 1:] == held[:, :, :-1])
    return np.stack([problem, rank, order[problem, rank, at + 1]], axis=1)
