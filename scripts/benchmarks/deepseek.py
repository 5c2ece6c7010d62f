"""The peer of `eplb balance`: DeepSeek's EPLB, written afresh from its description.

https://github.com/deepseek-ai/EPLB says: where the groups of experts divide over the nodes, groups are packed
to nodes first, then experts are replicated within each node, then replicas are packed to the node's GPUs.
Otherwise experts are replicated and packed without regard to groups. Packing is of as many items for each
pack, the heaviest first, to the lightest pack with room; a replica goes to the expert that bears most for
each that it has.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Loads = NDArray[np.float64]


def rebalance(
    load: Loads, num_slots: int, num_groups: int, num_nodes: int, num_ranks: int
) -> NDArray[np.int64]:
    """(L, P) the expert in each slot.

    Args:
        load: (L, E).
        num_groups: of experts, consecutive ones.
    """
    if num_groups % num_nodes:
        num_groups, num_nodes = 1, 1
    return np.array([_layer(weights, num_slots, num_groups, num_nodes, num_ranks) for weights in load])


def _layer(load: Loads, num_slots: int, num_groups: int, num_nodes: int, num_ranks: int) -> NDArray[np.int64]:
    group_size = len(load) // num_groups
    of_node = _packs(load.reshape(num_groups, group_size).sum(axis=1), num_nodes)
    slots = []
    for groups in of_node:
        experts = np.concatenate([np.arange(group_size) + group * group_size for group in groups])
        replicas = experts[_replicas(load[experts], num_slots // num_nodes)]
        counts = np.bincount(replicas, minlength=len(load))
        packed = _packs(load[replicas] / counts[replicas], num_ranks // num_nodes)
        slots += [replicas[item] for rank in packed for item in rank]
    return np.array(slots, np.int64)


def _packs(weights: Loads, num_packs: int) -> list[list[int]]:
    """The items of each pack."""
    room = len(weights) // num_packs
    packs: list[list[int]] = [[] for _ in range(num_packs)]
    borne = [0.0] * num_packs
    for item in np.argsort(-weights, kind="stable").tolist():
        pack = min((p for p in range(num_packs) if len(packs[p]) < room), key=borne.__getitem__)
        packs[pack].append(item)
        borne[pack] += float(weights[item])
    return packs


def _replicas(load: Loads, num_slots: int) -> NDArray[np.int64]:
    """(P,) every expert once, and then whichever bears most for each of its replicas."""
    counts = np.ones(len(load), np.int64)
    replicas = list(range(len(load)))
    for _ in range(num_slots - len(load)):
        heaviest = int((load / counts).argmax())
        counts[heaviest] += 1
        replicas.append(heaviest)
    return np.array(replicas, np.int64)
