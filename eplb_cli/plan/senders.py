"""Which of an expert's holders sends it to each rank that needs it.

Holders and requests are sorted by one key, (layer, expert, rank), so that a group of both is a pair
of slices; every choice is made for whole columns at once.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from eplb_cli.arrays import Int, begins, ranges, runs
from eplb_cli.plan.demands import Demands
from eplb_cli.plan.nodes import Nodes
from eplb_cli.plan.spread import spread
from eplb_cli.values import dataclass


@dataclass(frozen=True, eq=False)
class _Keyed:
    """Sorted keys `(layer * num_experts + expert) * num_ranks + rank`, shape (N,)."""

    key: Int
    num_experts: int
    num_ranks: int

    @cached_property
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
    """A rank that needs an expert and does not have it, once per (layer, expert, rank).

    Attributes:
        begin, end: (N,) its group's holders are `begin` to `end` - 1 of all.
    """

    begin: Int
    end: Int


@dataclass(frozen=True, eq=False)
class Holders(_Keyed):
    """A rank that has an expert, once per (layer, expert, rank), with the first slot it is in."""

    slot: Int


def vllm_senders(requests: Requests) -> Int:
    """The holder that serves each request, as vLLM's rearrangement chooses it.

    With n = receivers // senders, sender k serves receivers k*n to (k+1)*n - 1, and the k-th of the
    remainder. Three senders and eight receivers: s0 → r0 r1 r6, s1 → r2 r3 r7, s2 → r4 r5.

    Returns:
        (N,) indices into all holders.
    """
    num_senders = requests.end - requests.begin
    position, num_receivers = _position_in_group(requests.group)
    share = num_receivers // num_senders
    remainder_start = share * num_senders
    in_share = position < remainder_start
    sender = np.where(in_share, position // np.maximum(share, 1), position - remainder_start)
    return requests.begin + sender


def balanced_senders(
    holders: Holders, requests: Requests, expert_nbytes: Int, nodes: Nodes | None
) -> tuple[Int, int]:
    """Holders chosen so that the busiest of them sends as little as can be, over all layers together.

    With `nodes`, as few bytes as possible cross nodes first of all: wherever a rank on the
    receiver's node has the expert, such a rank sends it.

    Args:
        expert_nbytes: (L,) bytes of one expert in each layer.

    Returns:
        (N,) indices into `holders`, and the bytes that the busiest sends at the very least.
    """
    by_node, begin, end = _who_can_send(holders, requests, nodes)
    num_keys = len(holders.key) + 1
    sets, set_of, num_rows = np.unique(begin * num_keys + end, return_inverse=True, return_counts=True)
    begin, end = np.divmod(sets, num_keys)
    first_edge = np.concatenate([[0], np.cumsum(end - begin)])
    holder = by_node[ranges(begin, end)]
    row_nbytes = expert_nbytes[holders.layer[begin]]
    found = spread(Demands(num_rows, row_nbytes, first_edge, holders.rank[holder], holders.num_ranks))
    chosen = np.empty(len(requests.key), np.int64)
    chosen[np.argsort(set_of, kind="stable")] = np.repeat(holder, found.rows)
    return chosen, found.bound_nbytes


def must_cross(holders: Holders, requests: Requests, nodes: Nodes) -> NDArray[np.bool_]:
    """(N,) whether no rank on the receiver's node has what it needs."""
    _, begin, end = _near(holders, requests, nodes)
    return np.equal(begin, end)


def _who_can_send(holders: Holders, requests: Requests, nodes: Nodes | None) -> tuple[Int, Int, Int]:
    """Holders in an order, and begin and end in it of those that each request is to be served by."""
    begin, end = requests.begin, requests.end
    if nodes is None:
        return np.arange(len(holders.key)), begin, end
    by_node, near_begin, near_end = _near(holders, requests, nodes)
    is_near = near_begin < near_end
    return by_node, np.where(is_near, near_begin, begin), np.where(is_near, near_end, end)


def _near(holders: Holders, requests: Requests, nodes: Nodes) -> tuple[Int, Int, Int]:
    """Holders of each group by node and rank, and begin and end in that of those on each receiver's node."""
    held = holders.group * nodes.count + nodes.of_old[holders.rank]
    wanted = requests.group * nodes.count + nodes.of_new[requests.rank]
    by_node = np.argsort(held, kind="stable")
    held = held[by_node]
    return by_node, np.searchsorted(held, wanted, "left"), np.searchsorted(held, wanted, "right")


def _position_in_group(group: Int) -> tuple[Int, Int]:
    """Where equal values are neighbours: each one's place among its equals, and how many they are."""
    starts, counts = runs(begins(group))
    return np.arange(len(group)) - np.repeat(starts, counts), np.repeat(counts, counts)
