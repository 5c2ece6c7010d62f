"""Placements of many problems while they are searched: who holds what, and what each rank bears."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from eplb_cli.arrays import Int
from eplb_cli.balance.replicas import Float
from eplb_cli.values import dataclass

Bool = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Steps:
    """A step in each of A problems: K slots that get an expert; a slot may be there twice, with the same one.

    Attributes:
        score: (A,) the least is taken; infinite where there is no step.
        rank, slot, expert: (A, K).
    """

    score: Float
    rank: Int
    slot: Int
    expert: Int

    def of(self, chosen: Bool) -> Steps:
        """Those of some of the problems."""
        return Steps(*(column[chosen] for column in vars(self).values()))

    @staticmethod
    def joined(parts: Sequence[Steps]) -> Steps:
        """Those of some problems, and behind them those of others."""
        return Steps(*map(np.concatenate, zip(*(vars(part).values() for part in parts), strict=True)))

    def write(self, experts: Int, problem: Int) -> None:
        """Put the experts into their slots, of problems of (B, R, S)."""
        experts[problem[:, None], self.rank, self.slot] = self.expert

    def or_else(self, other: Steps) -> Steps:
        """Of two steps of each problem the one with the lower score, this one where they are alike."""
        is_other = other.score < self.score
        columns = zip(vars(self).values(), vars(other).values(), strict=True)
        return Steps(*(np.where(is_other.reshape(-1, *[1] * (a.ndim - 1)), b, a) for a, b in columns))


class State:
    """Placements of B problems.

    Args:
        load: (B, E) of each expert, over all its replicas.
        experts: (B, R, S) the expert in each slot; every expert has one.
        held: (B, R, E) what is there already; a step then costs the experts that have to come. None where
            all steps cost the same.
        node: (R,) of each rank; no expert comes to a node that does not have it. None for one node.

    Attributes:
        counts: (B, E) replicas.
        share: (B, E) what a replica bears.
        has: (B, R, E) whether a rank has an expert.
        rank_load: (B, R) what it bears.
    """

    def __init__(self, load: Float, experts: Int, held: Bool | None = None, node: Int | None = None) -> None:
        self.load, self.experts, self.held, self.node = load, experts.copy(), held, node
        self.has = held_by(experts, load.shape[1])
        problem = np.arange(len(load))[:, None, None]
        self.counts = np.zeros(load.shape, np.int64)
        np.add.at(self.counts, (problem, experts), 1)
        self.share = load / self.counts
        self.rank_load = self.share[problem, experts].sum(axis=2)

    @property
    def worst(self) -> Float:
        """(B,) what the busiest rank bears."""
        return np.asarray(self.rank_load.max(axis=1))

    @property
    def rows_to_come(self) -> Int:
        """(B,) experts that a rank has and `held` has not: what another rank has to send."""
        if self.held is None:
            return np.zeros(len(self.load), np.int64)
        return np.asarray((self.has & ~self.held).sum(axis=(1, 2)))

    def take(self, problem: Int, steps: Steps) -> None:
        """Carry out a step in each of some problems."""
        for at in range(steps.rank.shape[1]):
            rank, slot, expert = steps.rank[:, at], steps.slot[:, at], steps.expert[:, at]
            before = self.experts[problem, rank, slot]
            self.experts[problem, rank, slot] = expert
            self.counts[problem, before] -= 1
            self.counts[problem, expert] += 1
            self.has[problem, rank, before] = (self.experts[problem, rank] == before[:, None]).any(axis=1)
            self.has[problem, rank, expert] = True
        self.share[problem] = self.load[problem] / self.counts[problem]
        self.rank_load[problem] = self.share[problem[:, None, None], self.experts[problem]].sum(axis=2)


def held_by(experts: Int, num_experts: int) -> Bool:
    """(B, R, E) whether each rank has each expert, of (B, R, S) experts in slots; those below 0 are none."""
    num_problems, num_ranks, _ = experts.shape
    held = np.zeros((num_problems, num_ranks, num_experts + 1), bool)
    held[np.arange(num_problems)[:, None, None], np.arange(num_ranks)[:, None], experts] = True
    return held[:, :, :-1]
