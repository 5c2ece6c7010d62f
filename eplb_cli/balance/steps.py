"""The steps that a search may take; each changes the busiest rank, so that it bears less.

::

    swap        5 3 │ 4 1  →  5 1 │ 4 3    two experts of two ranks
    replicate   9 1 │ 2 2  →  9 1 │ 9 2    a further replica of an expert of the busiest rank, in the slot of
                                           one that has several: 9 is 4.5 on either rank then
    withdraw    8 6 │ 8 1  →  0 6 │ 8 1    a replica leaves the busiest rank; its slot goes to another expert

All steps of all problems are looked at as one array. A rank never gets an expert that it has.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from eplb_cli.arrays import Int
from eplb_cli.balance.replicas import Float
from eplb_cli.balance.state import State, Steps

Int8 = NDArray[np.int8]
T = TypeVar("T", bound=np.generic)

LEAST_GAIN = 1e-7
"""Of what the busiest rank bears: a step that gains less is none, which keeps rounding out of comparisons."""

LEAST_COST = 0.5
"""What a step counts for which no expert has to come from another rank, or fewer than before."""


class Choices:
    """The steps of A problems from where they are.

    Args:
        state: all problems.
        problem: (A,) those that are asked about.
    """

    def __init__(self, state: State, problem: Int) -> None:
        self._experts = state.experts[problem]  # (A, R, S)
        self._load, self._counts = state.load[problem], state.counts[problem]
        self._share, self._rank_load = state.share[problem], state.rank_load[problem]
        self._has, self._node = state.has[problem], state.node
        self._absent = None if state.held is None else (~state.held[problem]).astype(np.int8)
        self._row, self._rank = np.arange(len(problem)), np.arange(self._experts.shape[1])
        self._busiest, self._top = self._rank_load.argmax(axis=1), self._rank_load.max(axis=1)
        self._mine = self._experts[self._row, self._busiest]  # (A, S)
        self._closed = self._there(self._has)  # (A, S, R)
        if self._node is not None:
            self._closed |= (self._node != self._node[self._busiest, None])[:, None]

    def any_step(self) -> Steps:
        """The best step that changes two slots at most."""
        return self.swaps().or_else(self.other_steps())

    def other_steps(self) -> Steps:
        """The best of those that change how many replicas there are."""
        return self.replicates().or_else(self.withdraws())

    def swaps(self) -> Steps:
        """The best swap of each problem."""
        share = self._of_all(self._share)
        gain = self._of_mine(self._share)[:, :, None, None] - share[:, None]
        closed = self._closed[..., None] | self._here(self._has)[:, None]
        cost = None
        if self._absent is not None:
            there, here = self._costs(self._absent)
            cost = there[..., None] + here[:, None]
        score, (at, rank, slot) = self._best(self._swapped(gain, closed), cost)
        mine, other = self._mine[self._row, at], self._experts[self._row, rank, slot]
        return Steps(score, _pair(self._busiest, rank), _pair(at, slot), _pair(other, mine))

    def double_swaps(self, slots: Int) -> Steps:
        """The best swap of two experts of the busiest rank for two of another, all in some of the slots."""
        one, two = (slots[at] for at in np.triu_indices(len(slots), 1))
        mine, share = self._of_mine(self._share), self._of_all(self._share)
        gain = (mine[:, one] + mine[:, two])[:, :, None, None]
        gain = gain - (share[..., one] + share[..., two])[:, None]
        here = self._here(self._has)
        closed = (self._closed[:, one] | self._closed[:, two])[..., None]
        closed = closed | (here[..., one] | here[..., two])[:, None]
        cost = None
        if self._absent is not None:
            there, back = self._costs(self._absent)
            cost = (there[:, one] + there[:, two])[..., None] + (back[..., one] + back[..., two])[:, None]
        score, (at, rank, slot) = self._best(self._swapped(gain, closed), cost)
        at, slot = np.stack([one[at], two[at]], 1), np.stack([one[slot], two[slot]], 1)
        mine, other = (
            self._mine[self._row[:, None], at],
            self._experts[self._row[:, None], rank[:, None], slot],
        )
        ranks = np.repeat(_pair(self._busiest, rank), 2, axis=1)
        return Steps(score, ranks, np.hstack([at, slot]), np.hstack([other, mine]))

    def replicates(self) -> Steps:
        """The best further replica of an expert of the busiest rank."""
        rank, slot, is_spare = self._spare_slots()  # (A, K)
        row = self._row[:, None]
        expert = self._experts[row, rank, slot]
        share, more = self._share[row, expert], np.where(is_spare, self._more(row, expert), np.inf)
        thin = self._load[row, self._mine] / (self._counts[row, self._mine] + 1)  # (A, S)
        too = np.where(self._has[row, self._busiest[:, None], expert], more, 0.0)
        here = (self._top[:, None] - self._of_mine(self._share) + thin)[..., None] + too[:, None]
        there = (self._rank_load[row, rank] - share)[:, None] + thin[..., None]
        worst = np.maximum(np.maximum(here, there), (self._others(rank, expert) + more)[:, None])  # (A, S, K)
        of_rank = self._row[:, None, None], np.arange(thin.shape[1])[:, None], rank[:, None]
        worst[self._closed[of_rank]] = np.inf
        cost = None
        if self._absent is not None:
            cost = self._there(self._absent)[of_rank] - self._absent[row, rank, expert][:, None]
        score, (at, which) = self._best(worst, cost)
        chosen = self._row, which
        return Steps(score, *map(_twice, (rank[chosen], slot[chosen], self._mine[self._row, at])))

    def withdraws(self) -> Steps:
        """The best replica to take from the busiest rank, for another expert."""
        row = self._row[:, None]
        held = np.where(self._there(self._has), self._rank_load[:, None], 0.0)  # (A, S, R)
        held[self._row, :, self._busiest] = 0.0
        others = held.max(axis=2) + self._more(row, self._mine)
        left = self._top[:, None] - self._of_mine(self._share)
        worst = np.maximum(left[..., None] + (self._load / (self._counts + 1))[:, None], others[..., None])
        closed = self._has[self._row, self._busiest]
        if self._node is not None:
            is_near = (self._node == self._node[self._busiest, None])[..., None]
            closed = closed | ~(self._has & is_near).any(axis=1)
        worst[np.broadcast_to(closed[:, None], worst.shape)] = np.inf
        cost = None
        if self._absent is not None:
            now = self._absent[row, self._busiest[:, None], self._mine]
            cost = self._absent[self._row, self._busiest][:, None] - now[..., None]
        score, (at, expert) = self._best(worst, cost)
        return Steps(score, *map(_twice, (self._busiest, at, expert)))

    def _swapped(self, gain: Float, closed: NDArray[np.bool_]) -> Float:
        """What the heavier of two ranks bears that exchange what differs by `gain`, (A, mine, R, theirs)."""
        worst = self._rank_load[:, None, :, None] + gain
        np.maximum(worst, self._top[:, None, None, None] - gain, out=worst)
        worst[closed] = np.inf
        return np.asarray(worst)

    def _costs(self, absent: Int8) -> tuple[Int8, Int8]:
        """What has to come for what leaves the busiest rank, (A, S, R), and for what it gets, (A, R, S)."""
        row, slots = self._row[:, None], self._row[:, None, None]
        there = self._there(absent) - absent[row, self._busiest[:, None], self._mine][..., None]
        return there, self._here(absent) - absent[slots, self._rank[:, None], self._experts]

    def _spare_slots(self) -> tuple[Int, Int, NDArray[np.bool_]]:
        """(A, K) rank and slot of all that hold an expert with several replicas, and others behind them."""
        several = self._of_all(self._counts).reshape(len(self._row), -1) > 1
        order = np.argsort(~several, axis=1, kind="stable")[:, : max(int(several.sum(axis=1).max()), 1)]
        rank, slot = np.divmod(order, self._experts.shape[2])
        return rank, slot, np.take_along_axis(several, order, 1)

    def _others(self, rank: Int, expert: Int) -> Float:
        """(A, K) the heaviest of the other ranks with the expert of each spare slot, but for the busiest."""
        row = self._row[:, None]
        load = np.where(rank == self._busiest[:, None], 0.0, self._rank_load[row, rank]).ravel()
        key = (row * self._load.shape[1] + expert).ravel()
        order = np.lexsort((-load, key))
        key, load = key[order], load[order]
        begins = np.flatnonzero(np.diff(key, prepend=-1))
        others = np.repeat(load[begins], np.diff(begins, append=len(key)))
        after = np.minimum(begins + 1, len(key) - 1)
        others[begins] = np.where(key[after] == key[begins], load[after], 0.0)
        found = np.empty_like(others)
        found[order] = others
        return found.reshape(expert.shape)

    def _more(self, row: Int, expert: Int) -> Float:
        """What each other replica of some experts bears more without one; infinite of the last one."""
        counts, load = self._counts[row, expert], self._load[row, expert]
        return np.where(counts > 1, load / np.maximum(counts - 1, 1) - load / counts, np.inf)

    def _of_mine(self, values: Float) -> Float:
        """(A, S) from (A, E), of the experts on the busiest rank."""
        return np.asarray(values[self._row[:, None], self._mine])

    def _of_all(self, values: NDArray[T]) -> NDArray[T]:
        """(A, R, S) from (A, E), of the experts in all slots."""
        return np.asarray(values[self._row[:, None, None], self._experts])

    def _there(self, values: NDArray[T]) -> NDArray[T]:
        """(A, S, R) from (A, R, E), of the experts on the busiest rank, if they were on each."""
        return np.asarray(values[self._row[:, None], :, self._mine])

    def _here(self, values: NDArray[T]) -> NDArray[T]:
        """(A, R, S) from (A, R, E), of the experts in all slots, if they were on the busiest rank."""
        return np.asarray(values[self._row[:, None, None], self._busiest[:, None, None], self._experts])

    def _best(self, worst: Float, cost: Int8 | None) -> tuple[Float, tuple[Int, ...]]:
        """The step with the least score: minus what the busiest rank is spared, over the square of its cost.

        The cost is how many experts have to come. By its square, because two cheap steps come to more than
        a dear one: within a tenth of all rows balance is 0.1% nearer to its bound than by the cost itself.

        Args:
            worst: what the heaviest rank concerned bears after each step; it is used up.

        Returns:
            (A,) the score, infinite where no step helps, and where in `worst` the step is.
        """
        limit = self._top * (1 - LEAST_GAIN)
        shape = worst.shape
        worst -= limit.reshape(-1, *[1] * (worst.ndim - 1))
        if cost is not None:
            worst /= np.square(np.maximum(cost, np.float32(LEAST_COST)))
        worst = worst.reshape(len(worst), -1)
        best = worst.argmin(axis=1)
        score = worst[self._row, best]
        return np.where(score < 0, score, np.inf), np.unravel_index(best, shape[1:])


def _pair(first: Int, second: Int) -> Int:
    return np.stack([first, second], axis=1)


def _twice(column: Int) -> Int:
    return _pair(column, column)
