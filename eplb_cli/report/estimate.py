"""How long a plan will take at given rates, what bounds it, and the memory and disk space it needs.

Every stage ends when its busiest rank or node is done. Reading and writing share a node's disk, and the
exchange goes on beside them, so a run takes as long as the longer of both; then the result is read back.
"""

from __future__ import annotations

import numpy as np

from eplb_cli.arrays import Int, sum_by
from eplb_cli.errors import UsageError
from eplb_cli.machine import MAX_BUFFER_NBYTES
from eplb_cli.placements.placement import EMPTY
from eplb_cli.plan.moves import DUPLICATE, REMOTE, ReshardPlan
from eplb_cli.plan.nodes import Nodes
from eplb_cli.report.report import Estimate
from eplb_cli.report.sizes import Rates

WORKER_NBYTES = 250_000_000
"""A worker with torch and gloo before it has buffers, as measured (docs/planning.md)."""

ROW_NBYTES = 400
"""What every process keeps for a row: its part of the table, and its pieces and digests."""


def estimate(
    plan: ReshardPlan, rates: Rates, other_nbytes: int = 0, output_nbytes: int | None = None
) -> Estimate:
    """Estimate a plan that was made with sizes.

    Args:
        other_nbytes: of other tensors in DST; every rank has as much of them as the next.
        output_nbytes: of all shard files of DST, where known.

    Raises:
        UsageError: EP001, the plan has no sizes.
    """
    expert_nbytes = plan.expert_nbytes
    if expert_nbytes is None:
        problem = "--bandwidth needs to know how many bytes move"
        raise UsageError("EP001", problem, "add --checkpoint SRC or --expert-bytes N")
    others = -(-other_nbytes // plan.new.num_ranks)
    read, written = _disk_bytes(plan, expert_nbytes, others)
    near, far = _link_bytes(plan, expert_nbytes)
    links = {"nvlink": _seconds(near, rates.nvlink), "network": _seconds(far, rates.network)}
    seconds = {
        "read": _seconds(int(read.max()), rates.disk),
        "exchange": max((s for s in links.values() if s is not None), default=None),
        "write": _seconds(int(written.max()), rates.disk),
        "verify": _seconds(int(written.max()), rates.disk),
    }
    disk = _seconds(int((read + written).max()), rates.disk)
    waits = {name: s for name, s in {"disk": disk, **links}.items() if s is not None}
    moving = max(waits.values(), default=None)
    seconds["total"] = None if moving is None else moving + (seconds["verify"] or 0.0)
    rows = plan.new.physical_to_logical.size
    return Estimate(
        seconds,
        max(waits, key=lambda name: waits[name]) if waits else None,
        WORKER_NBYTES + MAX_BUFFER_NBYTES + rows * ROW_NBYTES,
        int(written.sum()) if output_nbytes is None else output_nbytes,
    )


def _disk_bytes(plan: ReshardPlan, expert_nbytes: Int, others: int) -> tuple[Int, Int]:
    """Bytes that each node reads, and writes. A DUPLICATE is not read: its bytes came with the REMOTE."""
    moves, nodes = plan.moves, _nodes(plan)
    num_nodes = nodes.count
    nbytes = expert_nbytes[moves.layer]
    is_read = moves.kind != DUPLICATE
    read = sum_by(nodes.of_old[plan.src_rank[is_read]], nbytes[is_read], num_nodes)
    written = sum_by(nodes.of_new[plan.dst_rank], nbytes, num_nodes)
    empty_layer, empty_slot = np.nonzero(plan.new.physical_to_logical == EMPTY)
    written += sum_by(nodes.of_new[plan.new.rank_of_slot[empty_slot]], expert_nbytes[empty_layer], num_nodes)
    ranks_of_node = np.bincount(nodes.of_new, minlength=num_nodes)
    return read + ranks_of_node * others, written + ranks_of_node * others


def _link_bytes(plan: ReshardPlan, expert_nbytes: Int) -> tuple[int, int]:
    """What the busiest rank sends or receives, within its node and between nodes."""
    remote = plan.moves.kind == REMOTE
    nodes = _nodes(plan)
    sender, receiver = plan.src_rank[remote], plan.dst_rank[remote]
    nbytes = expert_nbytes[plan.moves.layer[remote]]
    is_near = nodes.of_old[sender] == nodes.of_new[receiver]
    busiest = [
        max(int(sum_by(rank[chosen], nbytes[chosen], plan.num_ranks).max()) for rank in (sender, receiver))
        for chosen in (is_near, ~is_near)
    ]
    return busiest[0], busiest[1]


def _nodes(plan: ReshardPlan) -> Nodes:
    return plan.nodes or Nodes.blocks(plan.old.num_ranks, plan.new.num_ranks, plan.num_ranks)


def _seconds(nbytes: int, rate: int | None) -> float | None:
    return None if rate is None else nbytes / rate
