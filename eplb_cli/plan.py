"""From two placements to one table of moves.

Everything after this module is a fold over `MoveTable`: its order is the order of the wire, so a
transfer that only one side knows of cannot be expressed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from eplb_cli.errors import PlacementError, PlanError
from eplb_cli.placement import EMPTY, Placement
from eplb_cli.senders import Holders, Requests, balanced_senders, vllm_senders

UNCHANGED, LOCAL, REMOTE, DUPLICATE = range(4)
"""Kinds of moves: same rank and row; same rank, another row; another rank; a further copy of what a
REMOTE of the same layer, rank and expert brought."""

Senders = Literal["balanced", "vllm"]


@dataclass(frozen=True, eq=False)
class MoveTable:
    """One entry per filled slot of NEW, as columns of shape (N,).

    Sorted by (layer, src_rank, dst_rank, expert, dst_slot). For every entry
    `old[layer, src_slot] == expert == new[layer, dst_slot]`. `layer` is an index into the placement.
    """

    layer: NDArray[np.int64]
    expert: NDArray[np.int64]
    src_slot: NDArray[np.int64]
    dst_slot: NDArray[np.int64]
    kind: NDArray[np.uint8]

    def __post_init__(self) -> None:
        for column in self.columns:
            column.setflags(write=False)

    def __len__(self) -> int:
        return len(self.layer)

    @property
    def columns(self) -> tuple[NDArray[np.integer], ...]:
        """The five columns, in the order of the fields."""
        return self.layer, self.expert, self.src_slot, self.dst_slot, self.kind


@dataclass(frozen=True, eq=False)
class ReshardPlan:
    """Two placements, the table of moves between them, and the options that shaped it.

    Attributes:
        expert_nbytes: (L,) bytes of one expert in each layer, None where unknown.
        busiest_bound: bytes, or rows without sizes, that the busiest sender sends at the very least; known of
            "balanced" only.
    """

    old: Placement
    new: Placement
    moves: MoveTable
    senders: Senders
    ranks_per_node: int | None = None
    expert_nbytes: NDArray[np.int64] | None = None
    busiest_bound: int | None = None

    @property
    def num_ranks(self) -> int:
        """max(R, R'): old rank r and new rank r are one place."""
        return max(self.old.num_ranks, self.new.num_ranks)

    def of_layers(self, layers: slice) -> ReshardPlan:
        """The part of the plan that is about some consecutive layers, numbered from 0."""
        placements = [
            replace(placement, physical_to_logical=placement.physical_to_logical[layers], layer_ids=None)
            for placement in (self.old, self.new)
        ]
        part = slice(*np.searchsorted(self.moves.layer, [layers.start, layers.stop]).tolist())
        moves = MoveTable(
            self.moves.layer[part] - layers.start,
            self.moves.expert[part],
            self.moves.src_slot[part],
            self.moves.dst_slot[part],
            self.moves.kind[part],
        )
        return ReshardPlan(placements[0], placements[1], moves, self.senders, self.ranks_per_node)

    @cached_property
    def src_rank(self) -> NDArray[np.int64]:
        """(N,) the old rank each move reads from."""
        return self.old.rank_of_slot[self.moves.src_slot]

    @cached_property
    def dst_rank(self) -> NDArray[np.int64]:
        """(N,) the new rank each move writes to."""
        return self.new.rank_of_slot[self.moves.dst_slot]

    @cached_property
    def digest(self) -> str:
        """Hexadecimal sha256 of both placements and the table."""
        sha = hashlib.sha256((self.old.digest + self.new.digest).encode())
        for column in self.moves.columns:
            sha.update(np.ascontiguousarray(column, dtype="<i8").tobytes())
        return sha.hexdigest()


def plan_reshard(
    old: Placement,
    new: Placement,
    senders: Senders = "balanced",
    *,
    expert_nbytes: NDArray[np.int64] | None = None,
    ranks_per_node: int | None = None,
) -> ReshardPlan:
    """Plan the moves that turn `old` into `new`.

    Args:
        old, new: placements of the same experts and layers; R, S and P may differ.
        senders: "vllm" gives the senders of vLLM's rearrangement, "balanced" evens out bytes sent.
        expert_nbytes: (L,) bytes of one expert in each layer; all alike where unknown.
        ranks_per_node: G; with it "balanced" prefers a sender on the receiver's node.

    Raises:
        PlacementError: EP106, an expert of `new` has no source; EP109, the layers differ in number.
    """
    if old.num_layers != new.num_layers:
        raise PlacementError("EP109", f"OLD has {old.num_layers} layers and NEW has {new.num_layers}")
    weights = np.ones(old.num_layers, np.int64) if expert_nbytes is None else expert_nbytes
    num_experts = max(old.num_logical_experts, new.num_logical_experts)
    num_ranks = max(old.num_ranks, new.num_ranks)
    holders = holders_of(old, num_experts, num_ranks)

    layer, dst_slot = np.nonzero(new.physical_to_logical != EMPTY)
    expert = new.physical_to_logical[layer, dst_slot]
    dst_rank = new.rank_of_slot[dst_slot]
    key = (layer * num_experts + expert) * num_ranks + dst_rank

    position = np.searchsorted(holders.key, key)
    on_rank = np.searchsorted(holders.key, key, "right") > position
    src_slot = np.full(len(key), EMPTY)
    src_slot[on_rank] = holders.slot[position[on_rank]]
    same_slot, unchanged = _unchanged(old, new, layer, expert, dst_slot)
    src_slot[unchanged] = same_slot[unchanged]

    kind = np.where(unchanged, UNCHANGED, LOCAL).astype(np.uint8)
    away = np.flatnonzero(~on_rank)
    request_key, primary, request_of = np.unique(key[away], return_index=True, return_inverse=True)
    kind[away] = DUPLICATE
    kind[away[primary]] = REMOTE
    requests = Requests(request_key, num_experts, num_ranks)
    _refuse_without_source(new, holders, requests, dst_slot[away[primary]])
    bound = None
    if senders == "vllm":
        chosen = vllm_senders(holders, requests)
    else:
        chosen, bound = balanced_senders(holders, requests, weights, ranks_per_node)
    src_slot[away] = holders.slot[chosen][request_of]

    moves = _in_wire_order(old, new, MoveTable(layer, expert, src_slot, dst_slot, kind))
    return ReshardPlan(old, new, moves, senders, ranks_per_node, expert_nbytes, bound)


def holders_of(old: Placement, num_experts: int, num_ranks: int) -> Holders:
    """The first slot of every (layer, expert, rank) of OLD, sorted by that key."""
    layer, slot = np.nonzero(old.physical_to_logical != EMPTY)
    expert = old.physical_to_logical[layer, slot]
    key = (layer * num_experts + expert) * num_ranks + old.rank_of_slot[slot]
    unique_key, first = np.unique(key, return_index=True)
    return Holders(unique_key, num_experts, num_ranks, slot[first])


def _unchanged(
    old: Placement,
    new: Placement,
    layer: NDArray[np.int64],
    expert: NDArray[np.int64],
    dst_slot: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Per wanted slot: the slot of OLD with the same rank and row, and whether it holds the expert."""
    rank, row = new.rank_of_slot[dst_slot], new.row_of_slot[dst_slot]
    known_rank = np.minimum(rank, old.num_ranks - 1)
    exists = (rank < old.num_ranks) & (row < old.slots_per_rank[known_rank])
    same_slot = np.where(exists, old.first_slot[known_rank] + row, 0)
    return same_slot, exists & (old.physical_to_logical[layer, same_slot] == expert)


def _refuse_without_source(
    new: Placement, holders: Holders, requests: Requests, slot: NDArray[np.int64]
) -> None:
    begin, end = holders.span(requests.group)
    lost = np.flatnonzero(begin == end)
    if len(lost):
        first = lost[0]
        layer, expert = divmod(int(requests.group[first]), holders.num_experts)
        raise PlacementError(
            "EP106",
            f"layer {new.layer_name(layer)}, slot {slot[first]}: "
            f"expert {expert} is in NEW but nowhere in OLD",
            "was OLD written for another checkpoint? `eplb inspect SRC` shows what the shards hold",
        )


def _in_wire_order(old: Placement, new: Placement, moves: MoveTable) -> MoveTable:
    """Sort by (layer, src_rank, dst_rank, expert, dst_slot) what is sorted by (layer, dst_slot)."""
    receiver = new.rank_of_slot[moves.dst_slot] * new.num_logical_experts + moves.expert
    sender = moves.layer * old.num_ranks + old.rank_of_slot[moves.src_slot]
    order = np.lexsort((receiver, sender))
    return MoveTable(
        moves.layer[order],
        moves.expert[order],
        moves.src_slot[order],
        moves.dst_slot[order],
        moves.kind[order],
    )


def verify_plan(plan: ReshardPlan) -> None:
    """Check that the table, carried out, gives NEW and moves no more than it must.

    Raises:
        PlanError: EP301, naming the first entry that is wrong.
    """
    old, new, moves = plan.old, plan.new, plan.moves
    limits = (new.num_layers, new.num_logical_experts, old.num_slots, new.num_slots, DUPLICATE + 1)
    for column, limit in zip(moves.columns, limits, strict=True):
        in_range = (column >= 0) & (column < limit)
        _require(bool(in_range.all()), "a number of the table is out of range", plan)
    filled = np.zeros(new.physical_to_logical.shape, np.int64)
    np.add.at(filled, (moves.layer, moves.dst_slot), 1)
    _require(
        np.array_equal(filled, new.physical_to_logical != EMPTY), "a slot is not filled exactly once", plan
    )
    holds = old.physical_to_logical[moves.layer, moves.src_slot] == moves.expert
    wants = new.physical_to_logical[moves.layer, moves.dst_slot] == moves.expert
    _require(holds & wants, "a move carries another expert than its slots hold", plan)

    same_rank = plan.src_rank == plan.dst_rank
    same_row = old.row_of_slot[moves.src_slot] == new.row_of_slot[moves.dst_slot]
    stays = (moves.kind == UNCHANGED) | (moves.kind == LOCAL)
    _require(stays == same_rank, "a move stays on its rank that should not, or the reverse", plan)
    _require((moves.kind != UNCHANGED) | same_row, "an unchanged row changes", plan)
    _verify_least(plan)
    _verify_one_transfer(plan)
    order = np.lexsort((moves.dst_slot, moves.expert, plan.dst_rank, plan.src_rank, moves.layer))
    _require(order == np.arange(len(moves)), "the table is not in the order of the wire", plan)


def _verify_least(plan: ReshardPlan) -> None:
    """A row that can be left as it is stays, and an expert travels only to a rank without it."""
    old, new, moves = plan.old, plan.new, plan.moves
    _, can_stay = _unchanged(old, new, moves.layer, moves.expert, moves.dst_slot)
    _require((moves.kind == UNCHANGED) == can_stay, "a row moves that need not", plan)
    num_experts = max(old.num_logical_experts, new.num_logical_experts)
    wanted = (moves.layer * num_experts + moves.expert) * plan.num_ranks + plan.dst_rank
    held = np.isin(wanted, holders_of(old, num_experts, plan.num_ranks).key)
    _require(held == (moves.kind <= LOCAL), "an expert travels to a rank that has it", plan)


def _verify_one_transfer(plan: ReshardPlan) -> None:
    """At most one REMOTE per (layer, receiver, expert), and each DUPLICATE beside one with its source."""
    moves = plan.moves
    away = np.flatnonzero(moves.kind >= REMOTE)
    num_experts = plan.new.num_logical_experts
    group = (moves.layer * plan.num_ranks + plan.dst_rank)[away] * num_experts + moves.expert[away]
    is_transfer = moves.kind[away] == REMOTE
    order = np.lexsort((~is_transfer, group))
    starts = np.diff(group[order], prepend=-1) != 0
    _require(
        np.array_equal(is_transfer[order], starts), "an expert does not travel to a rank exactly once", plan
    )
    leader = order[starts][np.cumsum(starts) - 1]
    same_source = moves.src_slot[away[order]] == moves.src_slot[away[leader]]
    _require(same_source.all(), "a duplicate names another source than its transfer", plan)


def _require(holds: object, complaint: str, plan: ReshardPlan) -> None:
    holds = np.asarray(holds)
    if holds.all():
        return
    place = ""
    if holds.shape == plan.moves.layer.shape:
        entry = int(np.flatnonzero(~holds)[0])
        layer = plan.new.layer_name(int(plan.moves.layer[entry]))
        place = f" (layer {layer}, slot {plan.moves.dst_slot[entry]})"
    raise PlanError("EP301", f"{complaint}{place}", "this is a defect of eplb: please report both placements")
