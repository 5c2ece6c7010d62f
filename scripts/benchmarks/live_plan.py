"""What a rank does before its first chunk, for the cases of `scripts/bench exchange`, on rows made small.

Rows and buffers are divided alike, so that the chunks are those of the real rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch  # noqa: TID251 - live tensors are what is measured

from eplb_cli.arrays import Int
from eplb_cli.live.agreement import DEFAULT_BUFFER_NBYTES, plan_of, same_of
from eplb_cli.live.indices import as_array, over_group
from eplb_cli.live.plan import plan_live
from eplb_cli.live.tensors import check_apart, check_rows, read_layers, row_nbytes
from eplb_cli.placements.placement import Placement
from eplb_cli.plan.choice import Senders
from eplb_cli.plan.moves import ReshardPlan
from eplb_cli.plan.plan import plan_reshard
from scripts.benchmarks.exchange import CASES, Case, random_row
from scripts.benchmarks.table import Line
from scripts.benchmarks.timing import Sample, interleave

NUM_RANKS = 2
SHRINK = 64
CALLS = 20
"""Of which the fastest counts: what else is on the machine is not what is measured."""


def lines(runs: int) -> list[Line]:
    """Milliseconds of planning and of all other preparations, for each case."""
    sides = {
        f"{case.name}: {what}": _fastest(call)
        for case in CASES.values()
        for what, call in _Rank(case).steps().items()
    }
    samples = interleave(sides, runs)
    return [
        Line(name, values=[sample["whole"] * 1e3 for sample in samples[name]], unit="ms") for name in sides
    ]


def _fastest(call: Callable[[], object]) -> Callable[[], Sample]:
    def once() -> float:
        started = time.perf_counter()
        call()
        return time.perf_counter() - started

    return lambda: {"whole": min(once() for _ in range(CALLS))}


@dataclass(frozen=True)
class _Rank:
    """Rank 0 of two, with the indices and the tensors that it is given."""

    case: Case

    def steps(self) -> dict[str, Callable[[], object]]:
        """What it does, by name."""
        rng = np.random.default_rng(0)
        num_slots = self.case.slots * NUM_RANKS
        num_experts = round(num_slots * self.case.distinct)
        old, new = (
            np.stack([random_row(rng, num_experts, num_slots) for _ in range(self.case.layers)])
            for _ in range(2)
        )
        weights = [
            [
                torch.empty((self.case.slots, max(shape[0] // SHRINK, 1), *shape[1:]), dtype=dtype)
                for shape, dtype in self.case.rows
            ]
            for _ in range(self.case.layers)
        ]
        plan, sizes = plan_of(old, new, weights, NUM_RANKS), row_nbytes(weights)

        def planner(senders: Senders) -> Callable[[], object]:
            return lambda: plan_reshard(
                _anew(plan.old), _anew(plan.new), senders, expert_nbytes=plan.expert_nbytes
            )

        def live() -> None:
            part = plan.of_layers(slice(0, len(weights)))
            plan_live(part, sizes, 0, DEFAULT_BUFFER_NBYTES // SHRINK)

        return {
            "plan_reshard, vllm": planner("vllm"),
            "plan_reshard, balanced": planner("balanced"),
            "plan_live": live,
            "indices and tensors looked at": lambda: _look(old, new, weights),
            "what ranks compare": lambda: same_of("", _with_new_digests(plan), weights, 0),
        }


def _look(old: Int, new: Int, weights: list[list[torch.Tensor]]) -> None:
    over_group(
        as_array(torch.from_numpy(old)), as_array(torch.from_numpy(new)), len(weights), NUM_RANKS, None
    )
    layers = read_layers(weights, [])
    check_rows(layers, old.shape[1] // NUM_RANKS)
    check_apart(layers)
    row_nbytes(layers)


def _anew(placement: Placement) -> Placement:
    """The same without what it remembers of itself."""
    return Placement(placement.physical_to_logical, placement.first_slot, placement.num_logical_experts)


def _with_new_digests(plan: ReshardPlan) -> ReshardPlan:
    return ReshardPlan(_anew(plan.old), _anew(plan.new), plan.moves, plan.senders)
