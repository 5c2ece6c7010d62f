"""The table of moves, against plain loops over slots."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eplb_cli.errors import PlacementError, PlanError
from eplb_cli.placements.placement import Placement
from eplb_cli.plan.check import verify_plan
from eplb_cli.plan.choice import Senders
from eplb_cli.plan.hosting import Hosting
from eplb_cli.plan.moves import DUPLICATE, REMOTE, MoveTable, ReshardPlan
from eplb_cli.plan.nodes import Nodes
from eplb_cli.plan.pieces import row_pieces
from eplb_cli.plan.plan import plan_reshard
from eplb_cli.report.tally import plan_report
from eplb_cli.transfer.traffic import plan_traffic
from tests.support.hostings import nodes
from tests.support.pairs import Pair, pairs
from tests.support.plans import holders, is_valid, moves_of, rank_and_row, slots, wanted

SENDERS: st.SearchStrategy[Senders] = st.sampled_from(("balanced", "vllm"))


@st.composite
def plans(draw: st.DrawFn) -> ReshardPlan:
    """A plan for any pair, with either choice of senders, with and without nodes and sizes."""
    old, new = draw(pairs())
    sizes = draw(st.none() | st.lists(st.integers(1, 9), min_size=3, max_size=3))
    senders: Senders = draw(SENDERS)
    return plan_reshard(
        old,
        new,
        senders,
        expert_nbytes=None if sizes is None else np.array(sizes[: old.num_layers]),
        nodes=draw(nodes(old.num_ranks, new.num_ranks)),
    )


@given(plans())
def test_every_plan_is_good_in_its_own_eyes_and_in_ours(plan):
    """`verify_plan` accepts it, and so do plain loops."""
    verify_plan(plan)
    assert is_valid(plan)


@given(plans())
def test_every_slot_gets_the_cheapest_kind_of_move(plan):
    """Unchanged if it can be, else from the first such row of its rank, else over the wire; see `wanted`."""
    found = sorted(moves_of(plan), key=lambda move: (move.layer, move.dst_slot))
    for move, due in zip(found, wanted(plan), strict=True):
        assert move._replace(src_slot=due.src_slot) == due
        if due.kind in (REMOTE, DUPLICATE):
            assert move.src_slot in holders(plan.old, move.layer, move.expert).values()
        else:
            assert move.src_slot == due.src_slot


@given(plans())
def test_no_more_rows_travel_than_must(plan):
    """An expert comes to a rank that lacks it once, and to no other."""
    moved = Counter(
        (move.layer, rank_and_row(plan.new, move.dst_slot)[0], move.expert)
        for move in moves_of(plan)
        if move.kind == REMOTE
    )
    lacking = {
        (layer, rank_and_row(plan.new, slot)[0], expert)
        for layer in range(plan.new.num_layers)
        for slot, expert in enumerate(slots(plan.new, layer))
        if expert >= 0 and rank_and_row(plan.new, slot)[0] not in holders(plan.old, layer, expert)
    }
    assert moved == Counter(lacking)


@given(pairs())
def test_senders_change_nothing_but_who_sends(pair):
    """Kinds, experts and rows filled are the same for both; only sources of what travels may differ."""

    def told(senders: Senders):
        moves = moves_of(plan_reshard(pair[0], pair[1], senders))
        return sorted(move._replace(src_slot=-1 if move.kind >= REMOTE else move.src_slot) for move in moves)

    assert told("vllm") == told("balanced")


@given(plans().filter(lambda plan: plan.senders == "balanced" and plan.nodes is not None))
def test_nodes_are_crossed_only_where_no_sender_is_near(plan):
    """A receiver is served from its node wherever a rank that was there has the expert."""
    for move in moves_of(plan):
        if move.kind != REMOTE:
            continue
        node = plan.nodes.of_new[rank_and_row(plan.new, move.dst_slot)[0]]
        sender = plan.nodes.of_old[rank_and_row(plan.old, move.src_slot)[0]]
        near = {plan.nodes.of_old[rank] for rank in holders(plan.old, move.layer, move.expert)}
        assert sender == node or node not in near


@given(pairs(), st.integers(1, 4))
def test_blocks_of_ranks_are_nodes(pair, ranks_per_node):
    """G says the same as the node of each rank, and follows from it."""
    plan = plan_reshard(*pair, ranks_per_node=ranks_per_node)
    ranks = range(pair[0].num_ranks), range(pair[1].num_ranks)
    own = Nodes(*(np.array([rank // ranks_per_node for rank in side]) for side in ranks))
    by_nodes = plan_reshard(*pair, nodes=own)
    assert by_nodes.digest == plan.digest
    assert by_nodes.ranks_per_node == min(ranks_per_node, plan.num_ranks)
    assert plan.uneven_nodes is by_nodes.uneven_nodes is None


@given(plans().filter(lambda plan: plan.senders == "vllm"))
def test_vllm_deals_the_receivers_of_an_expert_evenly(plan):
    """No holder of an expert serves two receivers more than another holder of it."""
    served: dict[tuple[int, int], Counter] = defaultdict(Counter)
    for move in moves_of(plan):
        if move.kind == REMOTE:
            served[move.layer, move.expert][rank_and_row(plan.old, move.src_slot)[0]] += 1
    for (layer, expert), counts in served.items():
        each = [counts[rank] for rank in holders(plan.old, layer, expert)]
        assert max(each) - min(each) <= 1


def every_choice(plan: ReshardPlan) -> tuple[int, int]:
    """Bytes between nodes and of the busiest sender, in this order the least over all choices of senders."""
    sizes = [1] * plan.new.num_layers if plan.expert_nbytes is None else plan.expert_nbytes.tolist()
    one_node = Nodes(np.zeros(plan.old.num_ranks, np.int64), np.zeros(plan.new.num_ranks, np.int64))
    node = plan.nodes or one_node
    remote = [move for move in moves_of(plan) if move.kind == REMOTE]
    choices = [sorted(holders(plan.old, move.layer, move.expert)) for move in remote]
    costs = []
    for senders in product(*choices):
        load, crossed = Counter({0: 0}), 0
        for move, sender in zip(remote, senders, strict=True):
            receiver = rank_and_row(plan.new, move.dst_slot)[0]
            load[sender] += sizes[move.layer]
            crossed += sizes[move.layer] * int(node.of_old[sender] != node.of_new[receiver])
        costs.append((crossed, max(load.values())))
    return min(costs)


def cost(plan: ReshardPlan) -> tuple[int, int]:
    """What the plan itself comes to, read from its report."""
    sizes = np.ones(plan.new.num_layers, np.int64) if plan.expert_nbytes is None else plan.expert_nbytes
    totals = plan_report(plan, sizes).totals
    return totals.cross_node_bytes or 0, totals.busiest_sender_bytes or 0


def bounds(plan: ReshardPlan) -> tuple[int, int]:
    """What the report says that no choice goes below."""
    sizes = np.ones(plan.new.num_layers, np.int64) if plan.expert_nbytes is None else plan.expert_nbytes
    totals = plan_report(plan, sizes).totals
    assert totals.cross_node_bound_bytes is not None
    assert totals.busiest_sender_bound_bytes is not None
    return totals.cross_node_bound_bytes, totals.busiest_sender_bound_bytes


def is_small(pair: Pair) -> bool:
    """Whether all choices of senders can be tried."""
    plan = plan_reshard(*pair)
    choices = [
        len(holders(plan.old, move.layer, move.expert)) for move in moves_of(plan) if move.kind == REMOTE
    ]
    return math.prod(choices) <= 3000


@settings(suppress_health_check=[HealthCheck.filter_too_much])
@given(pairs(max_experts=4).filter(is_small), st.data())
def test_balanced_is_the_best_of_all_choices(pair, data):
    """Cross-node bytes first, then the busiest sender; and both bounds say so."""
    own = data.draw(nodes(pair[0].num_ranks, pair[1].num_ranks))
    plan = plan_reshard(*pair, expert_nbytes=np.full(pair[0].num_layers, 7), nodes=own)
    assert cost(plan) == bounds(plan) == every_choice(plan)


@settings(suppress_health_check=[HealthCheck.filter_too_much])
@given(
    pairs(max_experts=4).filter(is_small),
    st.data(),
    st.lists(st.integers(1, 9), min_size=3, max_size=3),
)
def test_with_sizes_that_differ_the_bounds_are_true(pair, data, sizes):
    """Still as few bytes between nodes as possible; the busiest is between the best of all and its bound."""
    nbytes = np.array(sizes[: pair[0].num_layers])
    own = data.draw(nodes(pair[0].num_ranks, pair[1].num_ranks))
    plan = plan_reshard(*pair, expert_nbytes=nbytes, nodes=own)
    (crossed, busiest), (crossed_bound, busiest_bound) = cost(plan), bounds(plan)
    assert crossed == crossed_bound == every_choice(plan)[0]
    assert busiest_bound <= every_choice(plan)[1] <= busiest


@given(pairs(), st.none() | st.integers(1, 3))
def test_no_choice_is_better_than_the_bounds(pair, ranks_per_node):
    """The bounds beside a plan with vLLM's senders are not above what it comes to."""
    plan = plan_reshard(pair[0], pair[1], "vllm", ranks_per_node=ranks_per_node)
    assert all(bound <= found for bound, found in zip(bounds(plan), cost(plan), strict=True))


def test_bounds_are_of_the_sizes_in_the_report():
    """A plan made without sizes and reported with some has the bounds of those."""
    old = Placement(np.array([[0, 1], [0, 1]]), np.array([0, 1, 2]), 2)
    new = Placement(np.array([[1, 0], [0, 1]]), np.array([0, 1, 2]), 2)
    totals = plan_report(plan_reshard(old, new), np.array([5, 9])).totals
    assert (totals.busiest_sender_bytes, totals.busiest_sender_bound_bytes) == (5, 5)
    assert totals.busiest_sender_bound_rows is None


def test_without_sizes_bounds_are_in_rows():
    """Two holders of an expert that three ranks need: one of them sends it twice."""
    old = Placement(np.array([[0, 0, 1, 1, 1]]), np.arange(6), 2)
    new = Placement(np.array([[1, 1, 0, 0, 0]]), np.arange(6), 2)
    totals = plan_report(plan_reshard(old, new, ranks_per_node=2)).totals
    assert (totals.busiest_sender_rows, totals.busiest_sender_bound_rows) == (2, 2)
    assert (totals.cross_node_rows, totals.cross_node_bound_rows) == (5, 5)
    assert totals.busiest_sender_bytes is totals.busiest_sender_bound_bytes is None


def test_balanced_senders_relieve_the_busiest():
    """Over many random plans the busiest sender has less to send than with vLLM's senders, not more."""
    generator = np.random.default_rng(7)
    busiest: Counter[str] = Counter()
    for _ in range(60):
        num_ranks, num_experts = int(generator.choice([2, 4, 8])), int(generator.choice([8, 16]))
        num_slots = num_ranks * -(-(num_experts + num_experts // 2) // num_ranks)
        old, new = (
            Placement(
                np.stack([_random_layer(generator, num_experts, num_slots) for _ in range(6)]),
                np.arange(num_ranks + 1) * (num_slots // num_ranks),
                num_experts,
            )
            for _ in range(2)
        )
        senders: Senders
        for senders in ("balanced", "vllm"):
            plan = plan_reshard(old, new, senders)
            sent = np.bincount(plan.src_rank[plan.moves.kind == REMOTE], minlength=num_ranks)
            busiest[senders] += int(sent.max())
    assert busiest["balanced"] < busiest["vllm"]


def _random_layer(generator: np.random.Generator, num_experts: int, num_slots: int) -> np.ndarray:
    replicas = generator.integers(0, num_experts, num_slots - num_experts)
    return generator.permutation(np.r_[np.arange(num_experts), replicas])


@given(plans(), st.integers(1, 7))
def test_workers_decide_only_what_travels(plan, num_workers):
    """Of W workers, the REMOTE rows between two of them travel, in the order of the table; no others."""
    pieces = row_pieces(plan, np.full((plan.new.num_layers, 2), 3))
    wire = plan_traffic(pieces, Hosting.one_host(plan.old.num_ranks, plan.new.num_ranks, num_workers), 100)
    kinds = {(move.layer, move.dst_slot): move.kind for move in moves_of(plan)}
    expected = [
        piece
        for piece, (cell, destination) in enumerate(
            zip(pieces.cell.tolist(), pieces.destination.tolist(), strict=True)
        )
        if kinds[cell // 2, destination % plan.new.num_slots] == REMOTE
        and pieces.src_rank[piece] % num_workers != pieces.dst_rank[piece] % num_workers
    ]
    assert wire.piece.tolist() == expected
    assert (wire.sender != wire.receiver).all()
    if num_workers >= plan.num_ranks:
        assert len(expected) == 2 * int((plan.moves.kind == REMOTE).sum())


@given(pairs())
def test_the_digest_is_that_of_the_plan(pair):
    """The same for the same inputs, another one for another table."""
    plan = plan_reshard(*pair)
    assert plan.digest == plan_reshard(*pair).digest
    kind = plan.moves.kind.copy()
    kind[0] ^= 1
    assert replace(plan, moves=replace(plan.moves, kind=kind)).digest != plan.digest


@given(pairs(), st.data())
def test_an_expert_without_a_source_is_refused(pair, data):
    """EP106 names layer, slot and expert, before anything is planned."""
    old, new = pair
    layer = data.draw(st.integers(0, old.num_layers - 1))
    held = sorted({expert for expert in slots(new, layer) if expert >= 0})
    expert = data.draw(st.sampled_from(held))
    table = old.physical_to_logical.copy()
    table[layer][table[layer] == expert] = -1
    with pytest.raises(PlacementError) as raised:
        plan_reshard(replace(old, physical_to_logical=table), new)
    first = slots(new, layer).index(expert)
    assert raised.value.code == "EP106"
    assert f"layer {new.layer_number(layer)}, slot {first}: expert {expert} " in raised.value.message


HOW = ("change", "kind", "source", "send", "drop", "double", "swap", "sort")
COLUMNS = ("layer", "expert", "src_slot", "dst_slot", "kind")


@st.composite
def tampered(draw: st.DrawFn) -> ReshardPlan:
    """A plan of which an entry was changed, dropped, doubled or put elsewhere, up to three times.

    The changes that are hardest to see take the expert from another slot that holds it, or send it to a rank
    that has it.
    """
    plan = draw(plans())
    table = np.stack([column.astype(np.int64) for column in plan.moves.columns], axis=1)
    for _ in range(draw(st.integers(1, 3))):
        if not len(table):
            break
        at = draw(st.integers(0, len(table) - 1))
        how = draw(st.sampled_from(HOW))
        if how == "change":
            column = draw(st.sampled_from(range(5)))
            table[at, column] = draw(st.integers(*_range_of(plan, COLUMNS[column])))
        elif how == "kind":
            table[at, 4] = draw(st.integers(0, 3))
        elif how in ("source", "send"):
            table[at, 4] = REMOTE if how == "send" else table[at, 4]
            layer = int(table[at, 0]) % plan.old.num_layers
            held = [slot for slot, expert in enumerate(slots(plan.old, layer)) if expert == table[at, 1]]
            table[at, 2] = draw(st.sampled_from(held or [0]))
            table = _sorted(plan, table)
        elif how == "drop":
            table = np.delete(table, at, axis=0)
        elif how == "double":
            table = np.insert(table, at, table[at], axis=0)
        elif how == "swap":
            other = draw(st.integers(0, len(table) - 1))
            table[[at, other]] = table[[other, at]]
        else:
            table = _sorted(plan, table)
    layer, expert, src_slot, dst_slot, kind = table.T.copy()
    return replace(plan, moves=MoveTable(layer, expert, src_slot, dst_slot, kind.astype(np.uint8)))


def _range_of(plan: ReshardPlan, column: str) -> tuple[int, int]:
    """All values that a column may have, and one to either side of them."""
    return {
        "layer": (-1, plan.new.num_layers),
        "expert": (-1, plan.new.num_logical_experts),
        "src_slot": (-1, plan.old.num_slots),
        "dst_slot": (-1, plan.new.num_slots),
        "kind": (0, 4),
    }[column]


def _sorted(plan: ReshardPlan, table: np.ndarray) -> np.ndarray:
    """Put in the order of the wire again, so that order alone does not give a change away."""
    layer, expert, src_slot, dst_slot = table[:, :4].T
    src = plan.old.rank_of_slot[np.clip(src_slot, 0, plan.old.num_slots - 1)]
    dst = plan.new.rank_of_slot[np.clip(dst_slot, 0, plan.new.num_slots - 1)]
    return table[np.lexsort((dst_slot, expert, dst, src, layer))]


@settings(max_examples=500)
@given(tampered())
def test_a_table_is_refused_exactly_if_it_is_wrong(plan):
    """EP301 for whatever would fill a slot wrongly, twice or not at all, or move a byte too many."""
    if is_valid(plan):
        verify_plan(plan)
        return
    with pytest.raises(PlanError) as raised:
        verify_plan(plan)
    assert raised.value.code == "EP301"
