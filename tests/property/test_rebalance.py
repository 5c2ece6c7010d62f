"""Placements made for any load: what always holds of them, and how good they are beside all there are."""

from __future__ import annotations

from functools import cache
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from eplb_cli.balance.anew import balanced_anew
from eplb_cli.balance.balance import balance
from eplb_cli.balance.curve import within
from eplb_cli.balance.imbalance import judge
from eplb_cli.balance.shape import Shape, placement_of
from eplb_cli.balance.state import State
from eplb_cli.balance.way import SAME, Way
from eplb_cli.placements.placement import EMPTY
from eplb_cli.plan.moves import REMOTE
from eplb_cli.plan.plan import plan_reshard
from scripts.benchmarks.deepseek import rebalance
from tests.support.placements import placement


@st.composite
def shapes(draw):
    """Up to 12 experts, 6 ranks of up to 4 slots, nodes and groups; those that fit are as likely as not."""
    num_nodes = draw(st.sampled_from([1, 1, 2, 3]))
    num_ranks = num_nodes * draw(st.integers(1, 2))
    num_groups = draw(st.sampled_from([1, 2, 3, 4, 6]))
    num_experts = num_groups * draw(st.integers(1, 12 // num_groups))
    least = -(-num_experts // num_ranks)
    num_slots = num_ranks * draw(st.integers(least, least + 2))
    return Shape(num_experts, num_slots - num_experts, num_ranks, num_ranks // num_nodes, num_groups)


def loads(shape, num_layers=2):
    """Ties and zeros are likely."""
    count = st.integers(0, 3) | st.integers(0, 1000) | st.floats(0, 1e6)
    layer = st.lists(count, min_size=shape.num_experts, max_size=shape.num_experts)
    return st.lists(layer, min_size=num_layers, max_size=num_layers).map(lambda rows: np.array(rows, float))


@st.composite
def shapes_and_loads(draw, num_loads=1):
    shape = draw(shapes())
    return shape, *(draw(loads(shape)) for _ in range(num_loads))


def assert_good(found, shape):
    """Every expert is there, no slot is empty, none is twice on a rank unless it must, groups are kept."""
    table = found.physical_to_logical
    assert table.shape[1] == shape.num_slots
    assert found.slots_per_rank.tolist() == [shape.num_slots // shape.num_ranks] * shape.num_ranks
    for row in table:
        assert set(row.tolist()) == set(range(shape.num_experts))
        for rank in row.reshape(shape.num_ranks, -1).tolist():
            in_reach = shape.num_experts // (shape.num_nodes if shape.keeps_groups else 1)
            assert len(set(rank)) == min(len(rank), in_reach)
        if shape.keeps_groups:
            groups = row.reshape(shape.num_nodes, -1) // (shape.num_experts // shape.num_groups)
            on_nodes = [set(node.tolist()) for node in groups]
            assert sum(map(len, on_nodes)) == shape.num_groups


def remote_rows(old, new):
    """(L,) as a plan counts them."""
    moves = plan_reshard(old, new).moves
    return np.bincount(moves.layer[moves.kind == REMOTE], minlength=old.num_layers)


@given(shapes_and_loads())
def test_what_always_holds(drawn):
    """It is a placement as it should be, always the same one, and above no bound of itself."""
    shape, load = drawn
    found = balance(load, shape)
    assert_good(found, shape)
    assert balance(load.copy(), shape).digest == found.digest
    judged = judge(found, load)
    assert (judged.max_over_mean >= judged.bound * (1 - 1e-9)).all()


@given(shapes_and_loads())
def test_never_less_balanced_than_deepseek(drawn):
    """In any layer in which that has no expert twice on a rank."""
    shape, load = drawn
    table = rebalance(load, shape.num_slots, shape.num_groups, shape.num_nodes, shape.num_ranks)
    experts = table.reshape(len(load), shape.num_ranks, -1)
    held = np.sort(experts, axis=2)
    is_once = (held[..., 1:] != held[..., :-1]).all(axis=(1, 2))
    ours, peer = balanced_anew(load, shape).worst, State(load, experts).worst
    assert (ours[is_once] <= peer[is_once] * (1 + 1e-4)).all()


@given(shapes_and_loads(2))
def test_what_is_balanced_stays(drawn):
    """The same load and the placement made for it: not a row moves."""
    shape, before, load = drawn
    found = balance(load, shape, old=balance(before, shape))
    assert_good(found, shape)
    assert balance(load, shape, old=found).digest == found.digest


@given(shapes_and_loads(2), st.data())
def test_a_limit_is_kept_as_a_plan_counts(drawn, data):
    """Whatever the sizes of experts; more is never worse than nothing, and enough is the best."""
    shape, before, load = drawn
    old = balance(before, shape)
    sizes = np.array(data.draw(st.lists(st.integers(1, 9), min_size=2, max_size=2)))
    way = Way(load, shape, old)
    whole = int((remote_rows(old, way.at(way.best)) * sizes).sum())
    limit = data.draw(st.integers(0, whole))
    found = balance(load, shape, old=old, expert_nbytes=sizes, max_moved_nbytes=limit)
    assert (remote_rows(old, found) * sizes).sum() <= limit
    assert_good(found, shape)
    assert judge(found, load).overall <= judge(old, load).overall * SAME
    everything = balance(load, shape, old=old, expert_nbytes=sizes, max_moved_nbytes=whole)
    assert everything.digest == way.at(way.best).digest


def test_groups_come_onto_nodes_where_all_of_a_node_is_on_each_rank():
    """OLD has them on two nodes, and is as balanced as can be."""
    shape = Shape(4, 0, 2, 1, 2)
    old = placement_of(np.array([[[0, 1], [2, 3]], [[0, 2], [1, 3]]]), 4, None)
    assert_good(balance(np.zeros((2, 4)), shape, old=old), shape)


@st.composite
def odd_olds(draw, shape):
    """OLD of other ranks and slots: empty slots, experts twice on a rank, bare ranks."""
    num_ranks = draw(st.integers(1, 5))
    num_slots = num_ranks * draw(st.integers(-(-shape.num_experts // num_ranks), 5 + shape.num_experts))
    more = st.integers(EMPTY, shape.num_experts - 1)
    rows = [
        draw(st.permutations([*range(shape.num_experts), *draw(st.lists(more, min_size=n, max_size=n))]))
        for n in [num_slots - shape.num_experts] * 2
    ]
    return placement(rows, num_ranks, shape.num_experts)


@given(shapes_and_loads(), st.data())
def test_every_step_from_any_old(drawn, data):
    """What is said to come at each step does so in a plan, and the busiest rank bears what is said."""
    shape, load = drawn
    old = data.draw(odd_olds(shape))
    way = Way(load, shape, old)
    for step in {0, 1, len(way.rows) // 2, len(way.rows) - 1}:
        found = way.at(np.full(2, step))
        assert (remote_rows(old, found) == way.rows[step]).all()
        assert judge(found, load).rank_load.max(axis=1) == pytest.approx(way.worst[step])
    assert_good(way.at(way.best), shape)


@cache
def all_placements(num_experts, num_ranks, room):
    """(N, R, E) which ranks have which experts, in all placements with no expert twice on a rank."""
    sets = [
        choice
        for choice in product(list(combinations(range(num_experts), room)), repeat=num_ranks)
        if len(set().union(*choice)) == num_experts
    ]
    return (np.array(sets)[..., None] == np.arange(num_experts)).any(axis=2)


SMALL = [
    (experts, ranks, room)
    for ranks, rooms in ((2, (2, 3)), (3, (2,)))
    for room in rooms
    for experts in range(room + 1, ranks * room + 1)
]


def small_loads(num_experts, number):
    """Seeded; every other load is of small numbers, with ties."""
    random = np.random.default_rng(num_experts)
    skewed = random.lognormal(0, 1.5, (number, num_experts))
    skewed[::2] = random.integers(0, 10, (len(skewed[::2]), num_experts))
    return skewed


@pytest.mark.parametrize(("num_experts", "num_ranks", "room"), SMALL)
def test_beside_every_placement_there_is(num_experts, num_ranks, room):
    """The optimum in at least 93 of 100 cases; 0.3% above it on average, and never by a third."""
    load = small_loads(num_experts, 400)
    has = all_placements(num_experts, num_ranks, room)
    gets = (has * (load[:, None] / has.sum(axis=1))[:, :, None]).sum(axis=3)
    optimum = gets.max(axis=2).min(axis=1)
    shape = Shape(num_experts, num_ranks * room - num_experts, num_ranks)
    over = balanced_anew(load, shape).worst / np.maximum(optimum, 1e-12)
    over[optimum == 0] = 1
    assert over.min() > 1 - 1e-9
    assert (over < 1 + 1e-9).mean() >= 0.93
    assert over.mean() < 1.003
    assert over.max() < 4 / 3


@pytest.mark.parametrize(("num_experts", "num_ranks", "room"), SMALL)
def test_beside_every_placement_within_a_limit(num_experts, num_ranks, room):
    """Of all that move no more rows the best in at least 9 of 10 cases, and 1% above it on average."""
    before, after = small_loads(num_experts, 20) + 1, small_loads(num_experts + 1, 20)[:, :num_experts] + 1
    has = all_placements(num_experts, num_ranks, room)
    shape = Shape(num_experts, num_ranks * room - num_experts, num_ranks)
    over = []
    for number in range(len(after)):
        load = after[number : number + 1]
        old = balance(before[number : number + 1], shape)
        held = (old.physical_to_logical.reshape(num_ranks, room, 1) == np.arange(num_experts)).any(axis=1)
        rows = (has & ~held).sum(axis=(1, 2))
        worst = (has * (load / has.sum(axis=1))[:, None]).sum(axis=2).max(axis=1)
        way = Way(load, shape, old)
        for limit in range(num_ranks * room + 1):
            found = way.worst[within(way, np.ones(1, np.int64), limit), 0].item()
            over.append(found / worst[rows <= limit].min())
    assert min(over) > 1 - 1e-9
    assert np.mean(np.array(over) < 1 + 1e-9) >= 0.9
    assert np.mean(over) < 1.01


@settings(max_examples=5)
@example(340)
@given(st.integers(0, 1000))
def test_a_real_size_beside_deepseek(seed):
    """64 experts on 16 ranks of 4 nodes, with and without groups: in no layer worse, and better in all.

    But for layers in which DeepSeek has an expert twice on a rank, which splits its load unevenly.
    """
    load = np.random.default_rng(seed).lognormal(0, 1, (8, 64))
    for shape in (Shape(64, 16, 16), Shape(64, 16, 16, 4, 8)):
        table = rebalance(load, shape.num_slots, shape.num_groups, shape.num_nodes, shape.num_ranks)
        experts = table.reshape(8, 16, -1)
        peer = State(load, experts).worst
        ours = balanced_anew(load, shape).worst
        held = np.sort(experts, axis=2)
        is_apart = (held[:, :, 1:] != held[:, :, :-1]).all(axis=(1, 2))
        assert (ours <= peer * SAME)[is_apart].all()
        assert ours.sum() < peer.sum()
        old = placement_of(experts, 64, None)
        assert remote_rows(old, balance(load, shape, old=old)).sum() < 0.7 * table.size
