"""From two placements to one table of moves.

Everything after this module is a fold over `MoveTable`: its order is the order of the wire, so a
transfer that only one side knows of cannot be expressed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from eplb_cli.arrays import Int, begins, stable_order
from eplb_cli.errors import PlacementError, UsageError
from eplb_cli.placements.placement import EMPTY, MAX_RANKS, Placement
from eplb_cli.plan.choice import Senders, is_senders
from eplb_cli.plan.moves import DUPLICATE, LOCAL, REMOTE, UNCHANGED, MoveTable, ReshardPlan
from eplb_cli.plan.senders import Holders, Requests, balanced_senders, vllm_senders


def plan_reshard(
    old: Placement,
    new: Placement,
    senders: Senders = "balanced",
    *,
    expert_nbytes: NDArray[np.int64] | None = None,
    ranks_per_node: int | None = None,
) -> ReshardPlan:
    """Plan the moves that turn one placement into another.

    Args:
        old: OLD.
        new: NEW, of the same experts and layers; R, S and P may differ.
        senders: "vllm" gives the senders of vLLM's rearrangement, "balanced" evens out bytes sent.
        expert_nbytes: (L,) bytes of one expert in each layer; all alike where unknown.
        ranks_per_node: G; with it "balanced" prefers a sender on the receiver's node.

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
    num_experts = max(old.num_logical_experts, new.num_logical_experts)
    num_ranks = max(old.num_ranks, new.num_ranks)
    holders = holders_of(old, num_experts, num_ranks)

    group, dst_slot = filled_slots(new, num_experts)
    key = group * num_ranks + new.rank_of_slot[dst_slot]
    layer = group // num_experts
    expert = group - layer * num_experts
    position = np.searchsorted(holders.key, key)
    on_rank = np.append(holders.key, -1)[position] == key
    is_first = begins(key)
    same_slot, unchanged = unchanged_slots(old, new, layer, expert, dst_slot)
    stays = np.where(unchanged, np.uint8(UNCHANGED), np.uint8(LOCAL))
    comes = np.where(is_first, np.uint8(REMOTE), np.uint8(DUPLICATE))
    kind = np.where(on_rank, stays, comes)

    primary = np.flatnonzero(kind == REMOTE)
    requests = Requests(key[primary], num_experts, num_ranks)
    _refuse_without_source(new, holders, requests, position[primary], dst_slot[primary])
    bound = None
    if senders == "vllm":
        chosen = vllm_senders(holders, requests)
    else:
        chosen, bound = balanced_senders(holders, requests, weights, ranks_per_node)
    away = np.flatnonzero(~on_rank)
    position[away] = chosen[np.cumsum(is_first[away]) - 1]
    src_slot = np.where(unchanged, same_slot, holders.slot[position])

    moves = _in_wire_order(old, new, MoveTable(layer, expert, src_slot, dst_slot, kind))
    return ReshardPlan(old, new, moves, senders, ranks_per_node, expert_nbytes, bound)


def holders_of(old: Placement, num_experts: int, num_ranks: int) -> Holders:
    """The first slot of every (layer, expert, rank) of OLD, sorted by that key."""
    group, slot = filled_slots(old, num_experts)
    key = group * num_ranks + old.rank_of_slot[slot]
    first = np.flatnonzero(begins(key))
    return Holders(key[first], num_experts, num_ranks, slot[first])


def filled_slots(placement: Placement, num_experts: int) -> tuple[Int, Int]:
    """(N,) `layer * num_experts + expert` and slot of what is filled, sorted by both, and so by rank."""
    table, bits = placement.physical_to_logical, placement.num_slots.bit_length()
    group = table + np.arange(placement.num_layers)[:, None] * num_experts
    packed = ((group << bits) | np.arange(placement.num_slots))[table != EMPTY]
    packed.sort()
    return packed >> bits, packed & ((1 << bits) - 1)


def unchanged_slots(
    old: Placement, new: Placement, layer: Int, expert: Int, dst_slot: Int
) -> tuple[Int, NDArray[np.bool_]]:
    """Per wanted slot: the slot of OLD with the same rank and row, and whether it holds the expert."""
    rank, row = new.rank_of_slot, new.row_of_slot
    known_rank = np.minimum(rank, old.num_ranks - 1)
    exists = (rank < old.num_ranks) & (row < old.slots_per_rank[known_rank])
    same_slot = np.where(exists, old.first_slot[known_rank] + row, 0)[dst_slot]
    return same_slot, exists[dst_slot] & (old.physical_to_logical[layer, same_slot] == expert)


def _refuse_without_source(
    new: Placement, holders: Holders, requests: Requests, position: Int, slot: Int
) -> None:
    """Refuse an expert that neither of the holders beside its place among them has."""
    group = np.concatenate([[-1], holders.group, [-1]])
    lost = np.flatnonzero((group[position] != requests.group) & (group[position + 1] != requests.group))
    if len(lost):
        first = lost[0]
        layer, expert = divmod(int(requests.group[first]), holders.num_experts)
        raise PlacementError(
            "EP106",
            f"layer {new.layer_number(layer)}, slot {slot[first]}: "
            f"expert {expert} is in NEW but nowhere in OLD",
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
