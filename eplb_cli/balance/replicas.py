"""How many replicas each expert gets.

One at a time to the expert whose replicas bear most, as DeepSeek's EPLB has it
(https://github.com/deepseek-ai/EPLB). That makes the heaviest replica as light as it can be, as in every
division of seats by highest averages::

    load           13  6  2
    four slots      2  1  1    6.5, 6 and 2 a replica
    five slots      3  1  1    4.3, 6 and 2
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from eplb_cli.arrays import Int

Float = NDArray[np.float64]


def replicate(load: Float, num_slots: int, most: int, num_light: int = 0) -> Int:
    """(B, E) replicas of each expert, one at least, `num_slots` in all.

    Args:
        load: (B, E) of each of B problems.
        num_slots: from E to E * `most`.
        most: replicas that an expert can have.
        num_light: replicas that are given to the lightest instead of the heaviest, so that they fill slots
            of ranks that bear enough.
    """
    counts = np.ones(load.shape, np.int64)
    problem = np.arange(len(load))
    num_more = num_slots - load.shape[1]
    for number in range(num_more):
        share = load / counts
        if number < num_more - num_light:
            chosen = np.where(counts < most, share, -1.0).argmax(axis=1)
        else:
            chosen = np.where(counts < most, share, np.inf).argmin(axis=1)
        counts[problem, chosen] += 1
    return counts


def all_alike(num_problems: int, num_experts: int, num_ranks: int, room: int) -> Int:
    """(B, R, S) every expert on every rank, where S is E or more: all bear the same, whatever the load."""
    alike = np.sort(np.arange(room) % num_experts)
    return np.broadcast_to(alike, (num_problems, num_ranks, room)).copy()
