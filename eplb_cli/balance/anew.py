"""A placement that balances a load, made without regard to any other.

As in DeepSeek's EPLB (https://github.com/deepseek-ai/EPLB) there are two policies. Where groups of experts
divide over nodes, they are packed onto nodes, so that a token that goes to few groups goes to few nodes, and
each node is a problem of its own. Otherwise all ranks are one problem. It is solved by replicas for heavy
experts, which are packed onto ranks, and a local search from there.
"""

from __future__ import annotations

import numpy as np

from eplb_cli.arrays import Int
from eplb_cli.balance.packing import pack
from eplb_cli.balance.replicas import Float, all_alike, replicate
from eplb_cli.balance.search import bound, improved
from eplb_cli.balance.shape import Shape
from eplb_cli.balance.state import State
from eplb_cli.values import dataclass

WORTH_ANOTHER = 1 + 1e-3
"""Over what it cannot go below: a problem that is farther from it is searched from other starts too."""


MAX_STARTS = 8
"""Further starts: so many parts of the redundant experts are replicas of the lightest ones."""

MAX_SLOTS = 1 << 10
"""Slots of a problem that is searched from several starts."""


@dataclass(frozen=True, eq=False)
class Anew:
    """Placements of B problems.

    Attributes:
        experts: (B, R, S) the expert in each slot of each rank.
        worst: (B,) what the busiest rank bears.
        goal: (B,) what it has to bear at least, with the groups on the nodes that they are on.
    """

    experts: Int
    worst: Float
    goal: Float


def balanced_anew(load: Float, shape: Shape) -> Anew:
    """A placement of each layer.

    Args:
        load: (L, E).
    """
    if not shape.keeps_groups:
        return _solved(load, shape.num_slots, shape.num_ranks, 1)
    of_groups = load.reshape(len(load), shape.num_groups, -1).sum(axis=2)
    packed = pack(of_groups, np.ones(of_groups.shape, np.int64), shape.num_nodes)
    first = _with_groups(load, packed, shape)
    second = _with_groups(load, improved(of_groups, packed), shape)
    better = second.worst < first.worst
    return Anew(
        np.where(better[:, None, None], second.experts, first.experts),
        np.where(better, second.worst, first.worst),
        np.where(better, second.goal, first.goal),
    )


def _solved(load: Float, num_slots: int, num_ranks: int, num_nodes: int) -> Anew:
    """Problems without groups; as many as there are nodes, one after the other, are of one layer."""
    num_problems, num_experts = load.shape
    room, num_more = num_slots // num_ranks, num_slots - num_experts
    if room >= num_experts:
        experts = all_alike(num_problems, num_experts, num_ranks, room)
        worst = State(load, experts).worst.reshape(-1, num_nodes).max(axis=1)
        return Anew(experts, worst, worst)
    experts = pack(load, replicate(load, num_slots, num_ranks), num_ranks)
    goal = np.repeat(bound(State(load, experts)).reshape(-1, num_nodes).max(axis=1), num_nodes)
    experts = improved(load, experts, goal)
    worst = State(load, experts).worst
    parts = range(1, MAX_STARTS + 1) if num_slots <= MAX_SLOTS else ()
    for num_light in sorted({-(-num_more * part // MAX_STARTS) for part in parts} - {0}):
        left = np.flatnonzero(worst > goal * WORTH_ANOTHER)
        if not len(left):
            break
        packed = pack(load[left], replicate(load[left], num_slots, num_ranks, num_light), num_ranks)
        other = improved(load[left], packed, goal[left])
        now = State(load[left], other).worst
        is_better = now < worst[left]
        experts[left[is_better]], worst[left[is_better]] = other[is_better], now[is_better]
    return Anew(experts, worst.reshape(-1, num_nodes).max(axis=1), goal[::num_nodes])


def _with_groups(load: Float, groups: Int, shape: Shape) -> Anew:
    """The placement where each node has some groups, shape (L, nodes, groups of a node)."""
    num_layers, num_nodes, _ = groups.shape
    size = shape.num_experts // shape.num_groups
    experts = np.sort(
        (groups[..., None] * size + np.arange(size)).reshape(num_layers * num_nodes, -1), axis=1
    )
    of_node = np.take_along_axis(np.repeat(load, num_nodes, axis=0), experts, 1)
    found = _solved(of_node, shape.num_slots // num_nodes, shape.num_ranks // num_nodes, num_nodes)
    slots = np.take_along_axis(experts, found.experts.reshape(len(experts), -1), 1)
    return Anew(slots.reshape(num_layers, shape.num_ranks, -1), found.worst, found.goal)
