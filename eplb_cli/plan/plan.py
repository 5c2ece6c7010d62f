"""From two placements to one table of moves.

Everything after this module is a fold over `MoveTable`: its order is the order of the wire, so a
transfer that only one side knows of cannot be expressed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from eplb_cli.arrays import Int, stable_order
from eplb_cli.errors import PlacementError, UsageError
from eplb_cli.placements.placement import MAX_RANKS, Placement
from eplb_cli.plan.choice import Senders, is_senders
from eplb_cli.plan.match import Match, match
from eplb_cli.plan.moves import DUPLICATE, LOCAL, REMOTE, UNCHANGED, MoveTable, ReshardPlan
from eplb_cli.plan.nodes import Nodes
from eplb_cli.plan.senders import balanced_senders, vllm_senders


def plan_reshard(
    old: Placement,
    new: Placement,
    senders: Senders = "balanced",
    *,
    expert_nbytes: NDArray[np.int64] | None = None,
    ranks_per_node: int | None = None,
    nodes: Nodes | None = None,
) -> ReshardPlan:
    """Plan the moves that turn one placement into another.

    Args:
        old: OLD.
        new: NEW, of the same experts and layers; R, S and P may differ.
        senders: "vllm" gives the senders of vLLM's rearrangement, "balanced" evens out bytes sent.
        expert_nbytes: (L,) bytes of one expert in each layer; all alike where unknown.
        ranks_per_node: G; with it "balanced" prefers a sender on the receiver's node.
        nodes: the node of each rank, instead of `ranks_per_node`.

    Raises:
        PlacementError: EP106, an expert of `new` has no source; EP109, the layers differ in number.
        UsageError: EP001, there are no such senders, or a node has no number of ranks.

    Examples:
        >>> (old, _), (new, _) = map(eplb_cli.read_placement, ("old.json", "new.json"))
        >>> plan = eplb_cli.plan_reshard(old, new)
        >>> len(plan.moves), int((plan.moves.kind == 2).sum())
        (60, 25)
    """
    if not is_senders(senders):
        raise UsageError("EP001", f"there are no senders {senders!r}", "they are balanced or vllm")
    if ranks_per_node is not None and not 1 <= ranks_per_node <= MAX_RANKS:
        problem = f"--ranks-per-node is {ranks_per_node:,}, not from 1 to {MAX_RANKS:,}"
        raise UsageError("EP001", problem, "leave it out for one node")
    if old.num_layers != new.num_layers:
        raise PlacementError("EP109", f"OLD has {old.num_layers} layers and NEW has {new.num_layers}")
    weights = np.ones(old.num_layers, np.int64) if expert_nbytes is None else expert_nbytes
    if ranks_per_node is not None:
        nodes = Nodes.blocks(old.num_ranks, new.num_ranks, ranks_per_node)
    elif nodes is not None:
        ranks_per_node = nodes.ranks_per_node
    both = match(old, new)
    layer = both.group // both.holders.num_experts
    expert = both.group - layer * both.holders.num_experts
    requests = both.requests
    _refuse_without_source(new, both)
    bound = None
    if senders == "vllm":
        chosen = vllm_senders(requests)
    else:
        chosen, bound = balanced_senders(both.holders, requests, weights, nodes)
    holder = np.cumsum(both.is_held) - 1
    holder[np.flatnonzero(~both.is_held)] = chosen
    same_slot, unchanged = unchanged_slots(old, new, layer, expert, both.slot)
    src_slot = np.where(unchanged, same_slot, both.holders.slot[holder[both.block]])
    stays = np.where(unchanged, np.uint8(UNCHANGED), np.uint8(LOCAL))
    comes = np.where(both.is_first, np.uint8(REMOTE), np.uint8(DUPLICATE))
    kind = np.where(both.is_held[both.block], stays, comes)

    moves = _in_wire_order(old, new, MoveTable(layer, expert, src_slot, both.slot, kind))
    return ReshardPlan(old, new, moves, senders, ranks_per_node, expert_nbytes, bound, nodes)


def unchanged_slots(
    old: Placement, new: Placement, layer: Int, expert: Int, dst_slot: Int
) -> tuple[Int, NDArray[np.bool_]]:
    """Per wanted slot: the slot of OLD with the same rank and row, and whether it holds the expert."""
    rank, row = new.rank_of_slot, new.row_of_slot
    known_rank = np.minimum(rank, old.num_ranks - 1)
    exists = (rank < old.num_ranks) & (row < old.slots_per_rank[known_rank])
    same_slot = np.where(exists, old.first_slot[known_rank] + row, 0)[dst_slot]
    held = old.physical_to_logical.ravel()[layer * old.num_slots + same_slot]
    return same_slot, exists[dst_slot] & (held == expert)


def _refuse_without_source(new: Placement, both: Match) -> None:
    requests = both.requests
    lost = np.flatnonzero(requests.begin == requests.end)
    if len(lost):
        first = lost[0]
        layer, expert = divmod(int(requests.group[first]), requests.num_experts)
        slot = both.slot[both.is_first][first]
        raise PlacementError(
            "EP106",
            f"layer {new.layer_number(layer)}, slot {slot}: expert {expert} is in NEW but nowhere in OLD",
        )


def _in_wire_order(old: Placement, new: Placement, moves: MoveTable) -> MoveTable:
    """Sort by (layer, src_rank, dst_rank, expert, dst_slot) what is sorted by (layer, expert, dst_slot)."""
    sender = moves.layer * old.num_ranks + old.rank_of_slot[moves.src_slot]
    pair = sender * new.num_ranks + new.rank_of_slot[moves.dst_slot]
    order = stable_order(pair, new.num_layers * old.num_ranks * new.num_ranks)
    return MoveTable(
        moves.layer[order],
        moves.expert[order],
        moves.src_slot[order],
        moves.dst_slot[order],
        moves.kind[order],
    )
