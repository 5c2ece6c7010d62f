"""Local search: steps that make the busiest rank bear less, until there is none.

All problems take a step at a time, each the best of its own. The ranks that a step concerns bear strictly
less afterwards than the busiest did, so that the search ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from eplb_cli.arrays import Int
from eplb_cli.balance.replicas import Float
from eplb_cli.balance.state import State, Steps
from eplb_cli.balance.steps import Choices

Kind = Callable[[Choices], Steps]
"""Finds the best step of some kind for each problem."""

Taken = tuple[Int, Steps]
"""Problems, and the step that each of them took."""

GOOD_ENOUGH = 1 + 1e-4
"""Over what it cannot go below: a problem as near to it is worth neither double swaps nor moving for."""

NEAREST = 1 + 1e-6
"""Over what it cannot go below: a problem that is as near to it is not searched on."""

MAX_CHOICES = 1 << 22
"""Steps that are looked at together."""

MAX_WORK = 1 << 29
"""Steps looked at in all, and experts on ranks beside them: the search ends then, wherever it is."""

MAX_DOUBLES = 1 << 17
"""Double swaps of a problem that are all tried."""

SOME_DOUBLES = 1 << 15
"""So many are tried, between some slots of each rank, where there are more of them."""


def bound(state: State) -> Float:
    """(B,) what the busiest rank bears at least, if replicas are given to the heaviest.

    The mean; and the heaviest replica, together with the lightest ones where there is one of each expert.
    """
    mean = state.load.sum(axis=1) / state.rank_load.shape[1]
    least = state.share.max(axis=1)
    if (state.counts == 1).all():
        least = least + np.sort(state.share, axis=1)[:, : state.experts.shape[2] - 1].sum(axis=1)
    return np.asarray(np.maximum(mean, least))


def improved(load: Float, experts: Int, goal: Float | None = None) -> Int:
    """(B, R, S) the placement of each problem after all steps that help.

    Args:
        load: (B, E).
        experts: (B, R, S) where to begin; no expert twice on a rank.
        goal: (B,) what need not be gone below; None for what cannot.
    """
    state = State(load, experts)
    goal = bound(state) if goal is None else goal
    for _ in rounds(state, (Choices.swaps, Choices.other_steps), goal * NEAREST, goal * GOOD_ENOUGH):
        pass
    return state.experts


def rounds(
    state: State, kinds: Sequence[Kind], enough: Float, enough_for_doubles: Float
) -> Iterator[list[Taken]]:
    """Take steps until none helps any problem, or the busiest rank of none bears more than is enough.

    Args:
        kinds: of steps, of which a problem takes one of the first that helps it; double swaps come last.
        enough: (B,) what a problem is left alone with.
        enough_for_doubles: (B,) what is too good for double swaps.

    Yields:
        The steps of each round, where each problem takes one at most.
    """
    _, num_ranks, room = state.experts.shape
    num_swaps, num_doubles = room * num_ranks * room, (room * (room - 1) // 2) ** 2 * num_ranks
    if num_swaps > MAX_CHOICES:
        return
    slots, is_quick = np.arange(room), num_doubles > MAX_DOUBLES
    if is_quick:
        some = int((2 * (SOME_DOUBLES / num_ranks) ** 0.5) ** 0.5)
        slots, num_doubles = np.linspace(0, room - 1, some).astype(np.int64), SOME_DOUBLES
    tried = [(kind, enough) for kind in kinds]
    if len(slots) > 1:
        doubles = partial(Choices.double_swaps, slots=slots)
        tried.append((doubles, enough if is_quick else enough_for_doubles))
    at_once = MAX_CHOICES // max(num_swaps, num_doubles)
    active = np.arange(len(enough))
    a_round = len(active) * num_ranks * (room**2 + state.load.shape[1] // 16)
    for _ in range(MAX_WORK // a_round):
        parts = np.split(active, range(at_once, len(active), at_once))
        taken = [step for part in parts for step in _taken(state, part, tried)]
        if not taken:
            return
        yield taken
        active = np.sort(np.concatenate([problem for problem, _ in taken]))


def _taken(state: State, problem: Int, tried: Sequence[tuple[Kind, Float]]) -> Iterator[Taken]:
    """Take a step in each of some problems: of the first kind that helps, and that it is not too good for."""
    for best_of, enough in tried:
        problem = problem[state.worst[problem] > enough[problem]]
        if not len(problem):
            return
        steps = best_of(Choices(state, problem))
        helps = np.isfinite(steps.score)
        state.take(problem[helps], steps.of(helps))
        if helps.any():
            yield problem[helps], steps.of(helps)
        problem = problem[~helps]
