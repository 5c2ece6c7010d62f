"""A table of moves, carried out in mind: it gives NEW, and moves no more than it must."""

from __future__ import annotations

import numpy as np

from eplb_cli.errors import PlanError
from eplb_cli.placements.placement import EMPTY
from eplb_cli.plan.moves import DUPLICATE, LOCAL, REMOTE, UNCHANGED, ReshardPlan
from eplb_cli.plan.plan import unchanged_slots


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
    _, can_stay = unchanged_slots(old, new, moves.layer, moves.expert, moves.dst_slot)
    _require((moves.kind == UNCHANGED) == can_stay, "a row moves that need not", plan)
    num_experts = max(old.num_logical_experts, new.num_logical_experts)
    wanted = (moves.layer * num_experts + moves.expert) * plan.num_ranks + plan.dst_rank
    layer, slot = np.nonzero(old.physical_to_logical != EMPTY)
    expert = old.physical_to_logical[layer, slot]
    had = (layer * num_experts + expert) * plan.num_ranks + old.rank_of_slot[slot]
    held = np.isin(wanted, had)
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
        layer = plan.new.layer_number(int(plan.moves.layer[entry]))
        place = f" (layer {layer}, slot {plan.moves.dst_slot[entry]})"
    raise PlanError("EP301", f"{complaint}{place}", "this is a defect of eplb: please report both placements")
