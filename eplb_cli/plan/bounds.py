"""What no choice of senders can go below, beside what the plan's choice comes to."""

from __future__ import annotations

import numpy as np

from eplb_cli.arrays import Int
from eplb_cli.plan.match import match
from eplb_cli.plan.moves import ReshardPlan
from eplb_cli.plan.senders import balanced_senders, must_cross
from eplb_cli.values import dataclass


@dataclass(frozen=True)
class Bounds:
    """The least possible, in bytes; in rows where each expert counts as one byte.

    Attributes:
        busiest_sender: what the busiest rank sends, over all choices of senders; of a "balanced" plan with
            nodes, over all choices that cross nodes as little as possible.
        cross_node: what goes from one node to another; 0 without nodes.
        cross_node_rows: the same in rows.
    """

    busiest_sender: int
    cross_node: int
    cross_node_rows: int


def sender_bounds(plan: ReshardPlan, expert_nbytes: Int) -> Bounds:
    """Bounds for a plan; `expert_nbytes` is (L,)."""
    both = match(plan.old, plan.new)
    holders, requests = both.holders, both.requests
    cross = np.zeros(0, np.int64)
    if plan.nodes is not None:
        cross = requests.layer[must_cross(holders, requests, plan.nodes)]
    busiest = plan.busiest_bound if _is_planned_for(plan, expert_nbytes) else None
    if busiest is None:
        nodes = plan.nodes if plan.senders == "balanced" else None
        _, busiest = balanced_senders(holders, requests, expert_nbytes, nodes)
    return Bounds(busiest, int(expert_nbytes[cross].sum()), len(cross))


def _is_planned_for(plan: ReshardPlan, expert_nbytes: Int) -> bool:
    planned = np.ones_like(expert_nbytes) if plan.expert_nbytes is None else plan.expert_nbytes
    return np.array_equal(planned, expert_nbytes)
