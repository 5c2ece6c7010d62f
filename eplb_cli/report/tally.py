"""From a table of moves to the numbers of a report."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from eplb_cli.arrays import Int, sum_by
from eplb_cli.placements.placement import EMPTY
from eplb_cli.plan.bounds import sender_bounds
from eplb_cli.plan.moves import DUPLICATE, LOCAL, REMOTE, UNCHANGED, ReshardPlan
from eplb_cli.report.blocks import DEFAULT_NODE
from eplb_cli.report.report import LayerTraffic, RankTraffic, Report, Totals

MAX_RANKS_LISTED = 1024
"""Above this many ranks, traffic is given by node unless all of it is asked for."""


def plan_report(
    plan: ReshardPlan,
    expert_nbytes: Int | None = None,
    *,
    other_nbytes: int | None = None,
    output_nbytes: int | None = None,
    full: bool = False,
    warnings: Sequence[str] = (),
) -> Report:
    """Fold the table into totals, ranks and traffic.

    Args:
        expert_nbytes: (L,) bytes of one expert in each layer; bytes are None in the report without.
        full: list traffic by rank however many ranks there are.
    """
    tables = {kind: _Count(plan, plan.moves.kind == kind, expert_nbytes) for kind in range(4)}
    remote = tables[REMOTE]
    sent_rows, sent_bytes = remote.by_rank(plan.src_rank, plan.num_ranks)
    received_rows, received_bytes = remote.by_rank(plan.dst_rank, plan.num_ranks)
    kept = {
        kind: tables[kind].by_rank(plan.dst_rank, plan.num_ranks) for kind in (LOCAL, DUPLICATE, UNCHANGED)
    }
    ranks = [
        RankTraffic(
            rank=rank,
            sent_bytes=_item(sent_bytes, rank),
            received_bytes=_item(received_bytes, rank),
            local_bytes=_item(kept[LOCAL][1], rank),
            duplicate_bytes=_item(kept[DUPLICATE][1], rank),
            unchanged_bytes=_item(kept[UNCHANGED][1], rank),
            sent_rows=int(sent_rows[rank]),
            received_rows=int(received_rows[rank]),
            local_rows=int(kept[LOCAL][0][rank]),
            duplicate_rows=int(kept[DUPLICATE][0][rank]),
            unchanged_rows=int(kept[UNCHANGED][0][rank]),
        )
        for rank in range(plan.num_ranks)
    ]
    block = 1 if full or plan.num_ranks <= MAX_RANKS_LISTED else plan.ranks_per_node or DEFAULT_NODE
    return Report(
        totals=_totals(plan, tables, expert_nbytes, (sent_bytes, sent_rows), other_nbytes, output_nbytes),
        ranks=ranks,
        traffic=_traffic(plan, remote, block),
        warnings=list(warnings),
        layers=_layers(plan, remote, expert_nbytes),
        block=block,
        ranks_per_node=plan.ranks_per_node,
        has_uneven_nodes=plan.uneven_nodes is not None,
        nothing_to_do=plan.changes_nothing,
    )


class _Count:
    """The rows of one kind, and their bytes where known."""

    def __init__(self, plan: ReshardPlan, chosen: NDArray[np.bool_], expert_nbytes: Int | None) -> None:
        self.entries = np.flatnonzero(chosen)
        self.nbytes = None if expert_nbytes is None else expert_nbytes[plan.moves.layer[self.entries]]

    @property
    def total_bytes(self) -> int | None:
        return None if self.nbytes is None else int(self.nbytes.sum())

    def by_rank(self, rank: Int, num_ranks: int) -> tuple[Int, Int | None]:
        """(R,) rows, and bytes, of each rank."""
        chosen = rank[self.entries]
        rows = np.bincount(chosen, minlength=num_ranks)
        return rows, None if self.nbytes is None else sum_by(chosen, self.nbytes, num_ranks)


def _item(column: Int | None, rank: int) -> int | None:
    return None if column is None else int(column[rank])


def _totals(
    plan: ReshardPlan,
    tables: dict[int, _Count],
    expert_nbytes: Int | None,
    sent: tuple[Int | None, Int],
    other_nbytes: int | None,
    output_nbytes: int | None,
) -> Totals:
    sent_bytes, sent_rows = sent
    empty = (plan.new.physical_to_logical == EMPTY).sum(axis=1)
    cross = _layers_between_nodes(plan, tables[REMOTE])
    weights = np.ones(plan.old.num_layers, np.int64) if expert_nbytes is None else expert_nbytes
    bounds = sender_bounds(plan, weights)
    is_one_size = (weights == weights[0]).all()
    return Totals(
        unchanged_bytes=tables[UNCHANGED].total_bytes,
        local_bytes=tables[LOCAL].total_bytes,
        remote_bytes=tables[REMOTE].total_bytes,
        duplicate_bytes=tables[DUPLICATE].total_bytes,
        empty_bytes=None if expert_nbytes is None else int((empty * expert_nbytes).sum()),
        cross_node_bytes=None if expert_nbytes is None else int(expert_nbytes[cross].sum()),
        other_bytes=other_nbytes,
        output_bytes=output_nbytes,
        unchanged_rows=len(tables[UNCHANGED].entries),
        local_rows=len(tables[LOCAL].entries),
        remote_rows=len(tables[REMOTE].entries),
        duplicate_rows=len(tables[DUPLICATE].entries),
        empty_rows=int(empty.sum()),
        busiest_sender_bytes=None if sent_bytes is None else int(sent_bytes.max(initial=0)),
        busiest_sender_bound_bytes=None if expert_nbytes is None else bounds.busiest_sender,
        cross_node_bound_bytes=None if expert_nbytes is None else bounds.cross_node,
        cross_node_rows=len(cross),
        busiest_sender_rows=int(sent_rows.max(initial=0)),
        busiest_sender_bound_rows=bounds.busiest_sender // max(int(weights[0]), 1) if is_one_size else None,
        cross_node_bound_rows=bounds.cross_node_rows,
    )


def _layers_between_nodes(plan: ReshardPlan, remote: _Count) -> Int:
    """The layer of each row that goes from one node to another; none without nodes."""
    if plan.nodes is None:
        return np.zeros(0, np.int64)
    src_node = plan.nodes.of_old[plan.src_rank[remote.entries]]
    dst_node = plan.nodes.of_new[plan.dst_rank[remote.entries]]
    layers: Int = plan.moves.layer[remote.entries[src_node != dst_node]]
    return layers


def _layers(plan: ReshardPlan, remote: _Count, expert_nbytes: Int | None) -> list[LayerTraffic]:
    rows = np.bincount(plan.moves.layer[remote.entries], minlength=plan.new.num_layers)
    nbytes = None if expert_nbytes is None else rows * expert_nbytes
    return [
        LayerTraffic(plan.new.layer_number(layer), _item(nbytes, layer), int(count))
        for layer, count in enumerate(rows)
    ]


def _traffic(plan: ReshardPlan, remote: _Count, block: int) -> list[tuple[int, int, int | None, int]]:
    """`[old, new, bytes, rows]` of REMOTE only, non-zero and ascending, in blocks of ranks."""
    size = plan.num_ranks // block + 1
    pair = plan.src_rank[remote.entries] // block * size + plan.dst_rank[remote.entries] // block
    pairs, inverse, rows = np.unique(pair, return_inverse=True, return_counts=True)
    nbytes = None if remote.nbytes is None else sum_by(inverse, remote.nbytes, len(pairs)).tolist()
    old, new = ((pairs // size).tolist(), (pairs % size).tolist())
    return list(zip(old, new, nbytes or [None] * len(pairs), rows.tolist(), strict=True))
