"""`scripts/bench senders`: what the busiest rank sends and what crosses nodes, beside their bounds.

On placements that a load balancer makes from log-normal loads, 58 layers of DeepSeek-V3's shapes. Counts and
no times: the same seed prints the same table.
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

import numpy as np

from eplb_cli.placements.placement import Placement
from eplb_cli.plan.choice import Senders
from eplb_cli.plan.plan import plan_reshard
from eplb_cli.report.tally import plan_report
from scripts.benchmarks.pairs import balanced_pair
from scripts.benchmarks.trees import SEED

NUM_LAYERS = 58
NUM_EXPERTS = 256
EXPERT_NBYTES = 44_050_944
WIDE_NBYTES = 88_080_384
RANKS_PER_NODE = 8


class Case(NamedTuple):
    """So many ranks and redundant experts; `mixed`: every third layer is bf16 instead of fp8."""

    num_ranks: int
    num_redundant: int
    mixed: bool = False


CASES = (Case(8, 32), Case(32, 32), Case(64, 64), Case(32, 32, mixed=True), Case(64, 64, mixed=True))
LARGE = tuple(
    Case(ranks, 2 * ranks - NUM_EXPERTS, mixed) for ranks in (1024, 10_240) for mixed in (False, True)
)
"""Two slots a rank; some minutes."""

CHOICES: tuple[tuple[Senders, int | None], ...] = (
    ("vllm", None),
    ("balanced", None),
    ("vllm", RANKS_PER_NODE),
    ("balanced", RANKS_PER_NODE),
)
HEAD = (
    "ranks",
    "sizes",
    "ranks per node",
    "senders",
    "busiest sender",
    "bound",
    "gap",
    "between nodes",
    "bound",
)


def main(arguments: list[str]) -> int:
    """Print the table, in Markdown."""
    parser = argparse.ArgumentParser(prog="scripts/bench senders", description=__doc__)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--large", action="store_true", help="1,024 and 10,240 ranks instead")
    options = parser.parse_args(arguments)
    print(_row(HEAD), _row(["---"] * len(HEAD)), sep="\n")
    for case in LARGE if options.large else CASES:
        num_slots = NUM_EXPERTS + case.num_redundant
        old, new = balanced_pair(NUM_LAYERS, NUM_EXPERTS, num_slots, case.num_ranks, options.seed)
        for senders, ranks_per_node in CHOICES:
            if ranks_per_node == case.num_ranks:
                continue  # one node, as without nodes
            print(_row(_cells(case, old, new, senders, ranks_per_node)), flush=True)
    return 0


def _cells(
    case: Case, old: Placement, new: Placement, senders: Senders, ranks_per_node: int | None
) -> list[str]:
    nbytes = np.full(NUM_LAYERS, EXPERT_NBYTES)
    if case.mixed:
        nbytes[::3] = WIDE_NBYTES
    plan = plan_reshard(old, new, senders, expert_nbytes=nbytes, ranks_per_node=ranks_per_node)
    totals = plan_report(plan, nbytes).totals
    busiest, bound = totals.busiest_sender_bytes or 0, totals.busiest_sender_bound_bytes or 1
    cross = [totals.cross_node_bytes, totals.cross_node_bound_bytes] if ranks_per_node else [None, None]
    return [
        f"{case.num_ranks:,}",
        "two" if case.mixed else "one",
        str(ranks_per_node or "—"),
        senders,
        f"{busiest / 1e9:.2f} GB",
        f"{bound / 1e9:.2f} GB",
        f"{100 * (busiest / bound - 1):.2f}%",
        *("—" if number is None else f"{number / 1e9:,.1f} GB" for number in cross),
    ]


def _row(cells: list[str] | tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"
