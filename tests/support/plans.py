"""What a plan has to be, said slot by slot in plain loops, without any of the code under test."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from eplb_cli.placements.placement import Placement
from eplb_cli.plan.moves import DUPLICATE, LOCAL, REMOTE, UNCHANGED, ReshardPlan


class Move(NamedTuple):
    """One entry of a table."""

    layer: int
    expert: int
    src_slot: int
    dst_slot: int
    kind: int


def moves_of(plan: ReshardPlan) -> list[Move]:
    """The entries of a table, in its order."""
    return [Move(*entry) for entry in zip(*(column.tolist() for column in plan.moves.columns), strict=True)]


def slots(placement: Placement, layer: int) -> list[int]:
    """The expert in each slot of a layer."""
    row: list[int] = placement.physical_to_logical[layer].tolist()
    return row


def rank_and_row(placement: Placement, slot: int) -> tuple[int, int]:
    """Where a slot is, counted from the first slots of the ranks."""
    bounds = placement.first_slot.tolist()
    rank = max(rank for rank in range(placement.num_ranks) if bounds[rank] <= slot < bounds[rank + 1])
    return rank, slot - bounds[rank]


def slot_at(placement: Placement, rank: int, row: int) -> int | None:
    """The slot of a rank's row, None where there is none."""
    bounds = placement.first_slot.tolist()
    if rank >= placement.num_ranks or bounds[rank] + row >= bounds[rank + 1]:
        return None
    return int(bounds[rank]) + row


def holders(placement: Placement, layer: int, expert: int) -> dict[int, int]:
    """Rank to the first of its slots that holds the expert."""
    found: dict[int, int] = {}
    for slot, held in enumerate(slots(placement, layer)):
        if held == expert:
            found.setdefault(rank_and_row(placement, slot)[0], slot)
    return found


def wanted(plan: ReshardPlan) -> Iterator[Move]:
    """For each filled slot of NEW, by layer and slot, what has to become of it.

    `src_slot` is -1 where the sender is a choice; the first slot of a receiver is the REMOTE.
    """
    for layer in range(plan.new.num_layers):
        arrived = set()
        for slot, expert in enumerate(slots(plan.new, layer)):
            if expert < 0:
                continue
            rank, row = rank_and_row(plan.new, slot)
            here = holders(plan.old, layer, expert)
            same = slot_at(plan.old, rank, row)
            if same is not None and slots(plan.old, layer)[same] == expert:
                yield Move(layer, expert, same, slot, UNCHANGED)
            elif rank in here:
                yield Move(layer, expert, here[rank], slot, LOCAL)
            else:
                yield Move(layer, expert, -1, slot, DUPLICATE if (expert, rank) in arrived else REMOTE)
                arrived.add((expert, rank))


def is_valid(plan: ReshardPlan) -> bool:
    """Whether a table, carried out in its order, gives NEW and moves no more than it must."""
    moves = moves_of(plan)
    due = {(move.layer, move.dst_slot): move for move in wanted(plan)}
    if Counter((move.layer, move.dst_slot) for move in moves) != Counter(due.keys()):
        return False
    if not all(0 <= move.src_slot < plan.old.num_slots for move in moves):
        return False
    order = [(move.layer, *_ranks(plan, move), move.expert, move.dst_slot) for move in moves]
    fits = all(_fits(plan, move, due[move.layer, move.dst_slot]) for move in moves)
    return fits and _travels_once(plan, moves) and order == sorted(order)


def _ranks(plan: ReshardPlan, move: Move) -> tuple[int, int]:
    return rank_and_row(plan.old, move.src_slot)[0], rank_and_row(plan.new, move.dst_slot)[0]


def _fits(plan: ReshardPlan, move: Move, due: Move) -> bool:
    """Whether an entry does for its slot what is due: which of the slots that travel leads is left open."""
    sender, receiver = _ranks(plan, move)
    away = move.kind in (REMOTE, DUPLICATE)
    right_kind = due.kind in (REMOTE, DUPLICATE) if away else move.kind == due.kind
    right_row = move.kind != UNCHANGED or move.src_slot == due.src_slot
    holds = slots(plan.old, move.layer)[move.src_slot] == move.expert == due.expert
    return holds and right_kind and right_row and away == (sender != receiver)


def _travels_once(plan: ReshardPlan, moves: list[Move]) -> bool:
    """Whether each (layer, receiver, expert) has one REMOTE, whose source its DUPLICATEs name."""
    groups: dict[tuple[int, int, int], list[Move]] = defaultdict(list)
    for move in moves:
        if move.kind in (REMOTE, DUPLICATE):
            groups[move.layer, _ranks(plan, move)[1], move.expert].append(move)
    return all(
        [move.kind for move in group].count(REMOTE) == 1 and len({move.src_slot for move in group}) == 1
        for group in groups.values()
    )
