"""Which of an expert's holders sends it to each rank that needs it.

Holders and requests are sorted by one key, (layer, expert, rank), so that a group of both is a pair
of slices; every choice is made for whole columns at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Int = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class _Keyed:
    """Sorted keys `(layer * num_experts + expert) * num_ranks + rank`, shape (N,)."""

    key: Int
    num_experts: int
    num_ranks: int

    @property
    def group(self) -> Int:
        """(N,) `layer * num_experts + expert`."""
        return self.key // self.num_ranks

    @property
    def rank(self) -> Int:
        """(N,) the rank that holds, or needs, the expert."""
        return self.key % self.num_ranks

    @property
    def layer(self) -> Int:
        """(N,) the index of the layer."""
        return self.group // self.num_experts


@dataclass(frozen=True, eq=False)
class Requests(_Keyed):
    """A rank that needs an expert and does not have it, once per (layer, expert, rank)."""


@dataclass(frozen=True, eq=False)
class Holders(_Keyed):
    """A rank that has an expert, once per (layer, expert, rank), with the first slot it is in."""

    slot: Int

    def span(self, group: Int) -> tuple[Int, Int]:
        """Begin and end, among the holders, of each given group."""
        groups = self.group
        return np.searchsorted(groups, group, "left"), np.searchsorted(groups, group, "right")


def vllm_senders(holders: Holders, requests: Requests) -> Int:
    """The holder that serves each request, as vLLM's rearrangement chooses it.

    With n = receivers // senders, sender k serves receivers k*n to (k+1)*n - 1, and the k-th of the
    remainder. Three senders and eight receivers: s0 → r0 r1 r6, s1 → r2 r3 r7, s2 → r4 r5.

    Returns:
        (N,) indices into `holders`.
    """
    begin, end = holders.span(requests.group)
    num_senders = end - begin
    position, num_receivers = _position_in_group(requests.group)
    share = num_receivers // num_senders
    remainder_start = share * num_senders
    in_share = position < remainder_start
    sender = np.where(in_share, position // np.maximum(share, 1), position - remainder_start)
    return begin + sender


def balanced_senders(
    holders: Holders, requests: Requests, expert_nbytes: Int, ranks_per_node: int | None
) -> Int:
    """Holders chosen so that the bytes sent are even over ranks, layer after layer.

    In each layer the experts with one holder are counted first; the receivers of every other expert
    are then dealt over its holders, the least loaded first. Loads carry over from layer to layer.
    With `ranks_per_node`, holders on the receiver's node come before all others.

    Args:
        expert_nbytes: (L,) bytes of one expert in each layer.

    Returns:
        (N,) indices into `holders`.
    """
    chosen = np.empty(len(requests.key), np.int64)
    load = np.zeros(holders.num_ranks, np.int64)
    num_layers = len(expert_nbytes)
    holder_bounds = np.searchsorted(holders.layer, np.arange(num_layers + 1))
    request_bounds = np.searchsorted(requests.layer, np.arange(num_layers + 1))
    holder_group, holder_rank = holders.group, holders.rank
    request_group, request_rank = requests.group, requests.rank
    for layer in range(num_layers):
        of_layer = slice(*holder_bounds[layer : layer + 2])
        wanted = slice(*request_bounds[layer : layer + 2])
        picked = _deal_layer(
            holder_group[of_layer],
            holder_rank[of_layer],
            request_group[wanted],
            request_rank[wanted],
            load,
            int(expert_nbytes[layer]),
            ranks_per_node,
        )
        chosen[wanted] = picked + of_layer.start
    return chosen


def _deal_layer(
    holder_group: Int,
    holder_rank: Int,
    group: Int,
    rank: Int,
    load: Int,
    nbytes: int,
    ranks_per_node: int | None,
) -> Int:
    """Choose the senders of one layer, as indices into its holders, and add what they send to `load`."""
    begin = np.searchsorted(holder_group, group, "left")
    forced = np.searchsorted(holder_group, group, "right") - begin == 1
    picked = np.where(forced, begin, -1)
    _add_load(load, holder_rank[begin[forced]], nbytes)
    if ranks_per_node is not None:
        num_nodes = len(load) // ranks_per_node + 1
        holder_key = holder_group * num_nodes + holder_rank // ranks_per_node
        _deal(picked, group * num_nodes + rank // ranks_per_node, holder_key, holder_rank, load, nbytes)
    _deal(picked, group, holder_group, holder_rank, load, nbytes)
    return picked


def _deal(picked: Int, key: Int, holder_key: Int, holder_rank: Int, load: Int, nbytes: int) -> None:
    """Deal the open requests of each key over the holders of that key, least loaded first."""
    order = np.lexsort((load[holder_rank], holder_key))
    sorted_key = holder_key[order]
    wanted = np.flatnonzero(picked < 0)
    begin = np.searchsorted(sorted_key, key[wanted], "left")
    count = np.searchsorted(sorted_key, key[wanted], "right") - begin
    served = count > 0
    wanted, begin, count = wanted[served], begin[served], count[served]
    position, _ = _position_in_group(key[wanted])
    picked[wanted] = order[begin + position % count] if len(wanted) else 0
    _add_load(load, holder_rank[picked[wanted]], nbytes)


def _add_load(load: Int, rank: Int, nbytes: int) -> None:
    load += np.bincount(rank, minlength=len(load)) * nbytes


def _position_in_group(group: Int) -> tuple[Int, Int]:
    """Where equal values are neighbours: each one's place among its equals, and how many they are."""
    starts = np.flatnonzero(np.r_[True, group[1:] != group[:-1]]) if len(group) else np.empty(0, np.int64)
    counts = np.diff(np.r_[starts, len(group)])
    return np.arange(len(group)) - np.repeat(starts, counts), np.repeat(counts, counts)
