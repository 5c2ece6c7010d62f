"""Placements as a load balancer makes them: from log-normal loads, replicas first, then packing.

Every layer on its own: each redundant slot goes to the expert whose replicas bear most, and then the
replicas, largest first, go to the least loaded rank that has room.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush, heapreplace

import numpy as np
from numpy.typing import NDArray

from eplb_cli.placements.placement import Placement
from scripts.benchmarks.trees import placement

LOAD_SIGMA = 1.0
"""Spread of the loads of a layer's experts."""

DRIFT_SIGMA = 0.2
"""How much a load changes from OLD to NEW."""


def balanced_pair(
    num_layers: int, num_experts: int, num_slots: int, num_ranks: int, seed: int
) -> tuple[Placement, Placement]:
    """OLD and NEW, for loads and for the same loads a little later."""
    random = np.random.default_rng(seed)
    loads = random.lognormal(0, LOAD_SIGMA, (num_layers, num_experts))
    later = loads * random.lognormal(0, DRIFT_SIGMA, loads.shape)
    old, new = (
        placement(
            np.array([_balanced_layer(of_layer, num_slots, num_ranks) for of_layer in of_all]),
            num_experts,
            num_ranks,
        )
        for of_all in (loads, later)
    )
    return old, new


def _balanced_layer(loads: NDArray[np.float64], num_slots: int, num_ranks: int) -> NDArray[np.int64]:
    """(P,) the expert in each slot of a layer."""
    experts = _replicated(loads.tolist(), num_slots)
    counts = np.bincount(experts)
    share = loads[experts] / counts[experts]
    rows: list[list[int]] = [[] for _ in range(num_ranks)]
    ranks = [(0.0, rank) for rank in range(num_ranks)]
    for replica in np.argsort(-share, kind="stable").tolist():
        load, rank = heappop(ranks)
        rows[rank].append(int(experts[replica]))
        if len(rows[rank]) < num_slots // num_ranks:
            heappush(ranks, (load + float(share[replica]), rank))
    return np.concatenate(rows)


def _replicated(loads: list[float], num_slots: int) -> NDArray[np.int64]:
    """(P,) every expert once, and again whenever its replicas bear more than those of any other."""
    heap = [(-load, expert, 1) for expert, load in enumerate(loads)]
    heapify(heap)
    extra = []
    for _ in range(num_slots - len(loads)):
        _, expert, count = heap[0]
        extra.append(expert)
        heapreplace(heap, (-loads[expert] / (count + 1), expert, count + 1))
    return np.array([*range(len(loads)), *extra], np.int64)
