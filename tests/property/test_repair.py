"""Ranks that are lost: every expert alive again, as little changed as can be, and where bytes come from."""

from __future__ import annotations

from itertools import chain, combinations, product

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from eplb_cli.balance.repair import repair
from eplb_cli.errors import UsageError
from eplb_cli.placements.placement import EMPTY, Placement
from eplb_cli.placements.survivors import without_ranks
from eplb_cli.plan.check import verify_plan
from eplb_cli.plan.moves import REMOTE
from eplb_cli.plan.plan import plan_reshard
from tests.support.pairs import pairs


def placed(*ranks):
    """A placement of one layer, rank by rank."""
    first_slot = np.concatenate([[0], np.cumsum([len(rank) for rank in ranks])])
    return Placement(np.array([[*chain(*ranks)]]), first_slot, max(chain(*ranks)) + 1)


def ranks_of(placement, layer=0):
    row = placement.physical_to_logical[layer]
    return [
        row[begin:end].tolist()
        for begin, end in zip(placement.first_slot, placement.first_slot[1:], strict=False)
    ]


def losses(old):
    """Every set of ranks that can be lost."""
    ranks = range(old.num_ranks)
    return [lost for count in range(1, old.num_ranks) for lost in combinations(ranks, count)]


def least_changed(left, experts):
    """By trying all tables: the fewest slots to change so that every expert has one; None without any."""
    held = left.physical_to_logical[0].tolist()
    tables = product(sorted(experts), repeat=len(held))
    changes = [
        sum(a != b for a, b in zip(table, held, strict=True)) for table in tables if {*table} == experts
    ]
    return min(changes, default=None)


@pytest.mark.parametrize(
    "old",
    [
        placed([0, 1], [2, 0], [1, 3]),
        placed([0, 1], [2, 3], [0, 1]),
        placed([0, 0], [1, 2], [0, 2]),
        placed([0, 1, 2], [2, 3, 0], [1, 3, 4]),
        placed([0, 1, 2], [3, 4, 0]),
        placed([0], [1, 2, 0], [3, 1]),
        placed([0, 1], [1, 2], [2, 3], [3, 0]),
    ],
)
def test_every_subset_of_lost_ranks(old):
    """As few slots change as in the best of all tables, or it is refused because there is none."""
    experts = {*old.physical_to_logical[0].tolist()}
    for lost in losses(old):
        survivors = without_ranks(old, lost)
        least = least_changed(survivors.placement, experts)
        if least is None:
            with pytest.raises(UsageError, match="ranks that are left have"):
                repair(old, lost)
            continue
        found = repair(old, lost)
        changed = found.new.physical_to_logical != survivors.placement.physical_to_logical
        assert {*found.new.physical_to_logical[0].tolist()} == experts
        assert changed.sum() == least == survivors.num_lost


@given(pairs(max_ranks=5, max_slots=4), st.data())
def test_a_repaired_placement(pair, data):
    """Any losses: alive where OLD was, and only lost experts change a slot and come from elsewhere."""
    old = pair[0]
    assume(old.num_ranks > 1)
    lost = data.draw(st.sets(st.integers(0, old.num_ranks - 1), min_size=1, max_size=old.num_ranks - 1))
    left = [rank for rank in range(old.num_ranks) if rank not in lost]
    assume(old.slots_per_rank[left].sum() > 0)
    seed = data.draw(st.integers(0, 9))
    load = np.random.default_rng(seed).random((old.num_layers, old.num_logical_experts))
    try:
        found = repair(old, sorted(lost), load)
    except UsageError:
        alive = [len({*row} - {EMPTY}) for row in old.physical_to_logical.tolist()]
        assert old.slots_per_rank[left].sum() < max(alive)
        return
    new, survivors = found.new, found.survivors
    assert survivors.old_rank.tolist() == left
    for layer in range(old.num_layers):
        before, after = ranks_of(old, layer), ranks_of(new, layer)
        had, have = ({*chain(*ranks)} - {EMPTY} for ranks in (before, after))
        gone = had - {*chain(*(before[rank] for rank in left))}
        assert had == have
        assert sorted(gone) == survivors.lost_experts[layer].tolist()
        assert [len(rank) for rank in after] == [len(before[rank]) for rank in left]
        changed = [
            now
            for rank, old_rank in enumerate(left)
            for was, now in zip(before[old_rank], after[rank], strict=True)
            if was != now
        ]
        assert sorted(changed) == sorted(gone)
    plan = plan_reshard(survivors.with_lost, new)
    verify_plan(plan)
    remote = plan.moves.kind == REMOTE
    assert remote.sum() == survivors.num_lost
    assert (plan.src_rank[remote] == len(left)).all()


def test_what_makes_room_is_what_is_missed_least():
    """Empty slots first; then a replica whose expert has the least on each that stays."""
    old = placed([0, 1, -1], [2, 0, 1], [3, 4, 0])
    found = repair(old, [2], np.array([[8.0, 1.0, 4.0, 2.0, 6.0]]))
    # 4 goes to the empty slot, 3 into the place of a replica of 1: it has 1 without it, and 0 would have 8.
    # Rank 1 has 4 + 4 + 0.5 against 4 + 0.5; when its 1 is gone the heavy one goes to rank 0.
    assert ranks_of(found.new) == [[0, 1, 4], [2, 0, 3]]


def test_more_slots_where_there_are_too_few():
    """It says which number will do; what lost experts do not need goes to the heaviest of the others."""
    old = placed([0, 1, 2], [3, 4, 5], [6, 7, 8])
    with pytest.raises(UsageError, match="ranks that are left have 6 slots, for 9 experts") as refused:
        repair(old, [1])
    assert "--num-redundant-experts 1 gives each rank 2 more" in refused.value.hint
    load = np.array([[1.0, 1, 1, 1, 1, 1, 1, 9, 1]])
    found = repair(old, [1], load, 1)
    assert [rank[:3] for rank in ranks_of(found.new)] == [[0, 1, 2], [6, 7, 8]]
    assert sorted(found.new.physical_to_logical[0].tolist()) == [0, 1, 2, 3, 4, 5, 6, 7, 7, 8]
    for wrong in (0, 2):
        with pytest.raises(UsageError, match="redundant experts are"):
            repair(old, [1], load, wrong)


@pytest.mark.parametrize(("lost", "says"), [([3], "rank 3"), ([-1], "rank -1"), ([0, 1, 2], "no rank")])
def test_what_cannot_be_lost(lost, says):
    """Ranks that OLD has not, and all of them."""
    with pytest.raises(UsageError, match=says):
        repair(placed([0, 1], [2, 0], [1, 3]), lost)
