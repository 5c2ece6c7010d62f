"""Placements made for a load: replicas, packing, groups, the way from OLD, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from eplb_cli.balance.anew import balanced_anew
from eplb_cli.balance.balance import balance
from eplb_cli.balance.curve import Point, curve, knee, within
from eplb_cli.balance.imbalance import judge
from eplb_cli.balance.packing import apart, pack
from eplb_cli.balance.replicas import replicate
from eplb_cli.balance.search import improved
from eplb_cli.balance.shape import Shape, placement_of
from eplb_cli.balance.state import State
from eplb_cli.balance.way import Way
from eplb_cli.errors import PlacementError, UsageError
from eplb_cli.placements.placement import EMPTY
from tests.support.placements import placement


def ranks(found, layer=0):
    """The experts of each rank, in ascending order."""
    rows = np.split(found.physical_to_logical[layer], found.first_slot[1:-1])
    return [sorted(row.tolist()) for row in rows]


class TestReplicas:
    @pytest.mark.parametrize(("num_slots", "counts"), [(3, [1, 1, 1]), (4, [2, 1, 1]), (5, [3, 1, 1])])
    def test_the_heaviest_gets_one_after_the_other(self, num_slots, counts):
        assert replicate(np.array([[13.0, 6, 2]]), num_slots, 4).tolist() == [counts]

    def test_of_equals_the_first(self):
        assert replicate(np.array([[4.0, 4, 4]]), 4, 3).tolist() == [[2, 1, 1]]

    def test_no_more_than_there_are_ranks(self):
        """What is left goes to the next heaviest."""
        assert replicate(np.array([[90.0, 2, 1]]), 6, 2).tolist() == [[2, 2, 2]]

    def test_without_any_load(self):
        assert replicate(np.zeros((1, 3)), 6, 2).tolist() == [[2, 2, 2]]

    def test_some_to_the_lightest(self):
        assert replicate(np.array([[9.0, 5, 1]]), 5, 2, 1).tolist() == [[2, 1, 2]]


class TestPacking:
    def test_the_largest_first_to_whoever_bears_least(self):
        """5 | 4, then 3 to the second, which is full: 2 and 1 go to the first."""
        load = np.array([[5.0, 4, 3, 2]])
        assert pack(load, np.ones((1, 4), np.int64), 2).tolist() == [[[0, 3], [1, 2]]]

    def test_problems_do_not_mix(self):
        load = np.array([[5.0, 4, 3, 2], [2, 3, 4, 5]])
        assert pack(load, np.ones((2, 4), np.int64), 2).tolist()[1] == [[3, 0], [2, 1]]

    def test_second_copies_are_swapped_away(self):
        """Also where every rank has one."""
        load = np.array([[6.0, 4, 2]])
        found = apart(np.array([[[0, 0], [1, 1], [2, 2]]]), load / 2)
        assert all(len(set(rank)) == 2 for rank in found[0].tolist())
        assert np.bincount(found.ravel()).tolist() == [2, 2, 2]

    def test_the_last_ranks_with_room_may_all_have_it(self):
        """Nine replicas, of which the lightest three are of one expert, for ranks that fill up before."""
        load = np.array([[9.0, 8, 7, 1, 1, 1.5]])
        found = pack(load, np.array([[1, 1, 1, 1, 2, 3]]), 3)
        assert all(len(set(rank)) == 3 for rank in found[0].tolist())


class TestSearch:
    @pytest.mark.parametrize(
        ("load", "before", "worst"),
        [
            ([5.0, 3, 4, 1], [[0, 1], [2, 3]], 7),  # swap 3 for 1, and so on
            ([9.0, 1, 4], [[0, 1], [2, 2]], 8.5),  # the second rank needs no two replicas of one expert
            ([8.0, 2, 2, 0], [[0, 1, 2], [0, 1, 3]], 6),  # the slot of a replica goes to the lightest
        ],
    )
    def test_a_step_of_each_kind(self, load, before, worst):
        load, before = np.array([load]), np.array([before])
        after = improved(load, before)
        assert State(load, after).worst.item() <= worst < State(load, before).worst.item()

    def test_one_rank(self):
        experts = np.array([[[0, 1, 2]]])
        assert improved(np.array([[3.0, 2, 1]]), experts).tolist() == experts.tolist()


class TestShapes:
    def test_all_alike_where_every_rank_has_room_for_all(self):
        """Then all bear the same, whatever the load."""
        found = balance(np.array([[7.0, 1, 0]]), Shape(3, 5, 2))
        assert ranks(found) == [[0, 0, 1, 2], [0, 0, 1, 2]]
        assert judge(found, np.array([[7.0, 1, 0]])).overall == 1

    def test_fewer_experts_than_ranks(self):
        found = balance(np.array([[6.0, 3]]), Shape(2, 1, 3))
        assert sorted(ranks(found)) == [[0], [0], [1]]

    def test_no_load_at_all(self):
        found = balance(np.zeros((2, 4)), Shape(4, 2, 3))
        assert judge(found, np.zeros((2, 4))).overall == 1
        assert all(len(set(rank)) == 2 for rank in ranks(found))

    def test_groups_are_on_one_node_where_they_fit(self):
        """Four groups of two experts on two nodes; the two heaviest groups are on different ones."""
        load = np.array([[9.0, 9, 8, 8, 1, 1, 2, 2]])
        found = balance(load, Shape(8, 4, 4, 2, 4))
        nodes = [{expert // 2 for rank in ranks(found)[at : at + 2] for expert in rank} for at in (0, 2)]
        assert sorted(map(sorted, nodes)) == [[0, 2], [1, 3]]

    def test_groups_that_do_not_fit_are_spread(self):
        """Three groups on two nodes: all ranks alike, as in one node."""
        load = np.array([[9.0, 1, 1, 1, 1, 1]])
        one, spread = balance(load, Shape(6, 2, 4)), balance(load, Shape(6, 2, 4, 2, 3))
        assert one.digest == spread.digest

    @pytest.mark.parametrize(
        ("arguments", "says", "hint"),
        [
            ((8, 1, 4), "8 experts and 1 redundant ones do not divide over 4 ranks", "experts 0 or 4 would"),
            ((6, 0, 4), "6 experts and 0 redundant ones", "experts 2 would do"),
            ((2, 0, 4), "2 experts and 0 redundant ones", "experts 2 would do"),
            ((8, 0, 4, 2, 3), "8 experts are not 3 groups", "--num-groups has to divide them"),
            ((8, 0, 4, 0), "--ranks-per-node is 0", ""),
            ((8, 0, 0), "--num-ranks is 0", ""),
            ((8, 0, 4, 2, 9), "--num-groups is 9, not from 1 to 8", ""),
        ],
    )
    def test_what_no_placement_has(self, arguments, says, hint):
        """With the numbers that would do."""
        with pytest.raises(UsageError, match=says) as error:
            Shape(*arguments)
        assert error.value.code == "EP001"
        assert hint in error.value.hint


LOAD = np.array([[8.0, 1, 1, 1, 6, 1]])
OLD = placement([[0, 4, 1, 2, 3, 5]], 2, 6)


class TestFromOld:
    def test_nothing_moves_for_a_limit_of_nothing(self):
        found = balance(LOAD, Shape(6, 0, 2), old=OLD, expert_nbytes=np.array([10]), max_moved_nbytes=0)
        assert found.digest == OLD.digest

    def test_a_swap_costs_two(self):
        """Within 19 bytes nothing helps; within 20 the second heavy expert changes ranks."""
        way = Way(LOAD, Shape(6, 0, 2), OLD)
        size = np.array([10])
        assert within(way, size, 19).tolist() == [0]
        found = way.at(within(way, size, 20))
        assert judge(found, LOAD).rank_load.max() == 10
        assert len({0, 4} & set(ranks(found)[0])) == 1

    def test_rows_stay_where_they_are(self):
        """What a rank keeps is in the row that OLD has it in."""
        found = balance(LOAD, Shape(6, 0, 2), old=OLD)
        assert (found.physical_to_logical == OLD.physical_to_logical).sum() == 4

    def test_ranks_get_the_names_of_old(self):
        """A placement that is as good as can be is OLD, whatever order its ranks have."""
        anew = balance(LOAD, Shape(6, 0, 2))
        other = placement([anew.physical_to_logical[0][::-1].tolist()], 2, 6)
        assert balance(LOAD, Shape(6, 0, 2), old=other).digest == other.digest

    def test_an_expert_twice_on_a_rank_is_spread(self):
        """It costs a row, and OLD itself is only left alone where nothing may move."""
        old = placement([[0, 0, 1, 2, 3, 1]], 2, 4)
        load = np.array([[6.0, 2, 1, 1]])
        way = Way(load, Shape(4, 2, 2), old)
        assert way.rows[:2, 0].tolist() == [0, 1]
        assert all(len(set(rank)) == 3 for rank in ranks(way.at(way.best)))
        assert way.at(np.array([0])).digest == old.digest

    @pytest.mark.parametrize("shape", [Shape(6, 3, 3), Shape(6, 0, 3), Shape(6, 4, 2), Shape(6, 2, 4)])
    def test_other_ranks_and_slots(self, shape):
        """What there is stays as far as there is room; what has to come costs what it costs."""
        old = placement([[0, 1, 2, 3, 4, 5, 0, 1]], 2, 6)
        way = Way(LOAD, shape, old)
        least = int(way.rows[0, 0])
        with pytest.raises(
            UsageError, match=rf"is {10 * least - 1}, and NEW has ranks .* {10 * least} bytes have"
        ):
            within(way, np.array([10]), 10 * least - 1)
        found = way.at(within(way, np.array([10]), 10 * least))
        assert set(range(6)) <= set(found.physical_to_logical[0].tolist())
        assert all(len(set(rank)) == len(rank) for rank in ranks(found))

    def test_empty_slots_are_filled(self):
        """With what bears most, where that is not there yet."""
        old = placement([[0, 4, 1, EMPTY, 2, 3, 5, EMPTY]], 2, 6)
        found = Way(LOAD, Shape(6, 2, 2), old).at(np.array([1]))
        assert [sorted({0, 4} & set(rank)) for rank in ranks(found)] in ([[0, 4], [0, 4]], [[0, 4], [0]])

    def test_groups_stay_on_their_nodes(self):
        """Also within a limit, where OLD keeps them."""
        load = np.random.default_rng(3).lognormal(0, 1, (4, 16))
        shape = Shape(16, 8, 4, 2, 4)
        old = balance(load[::-1], shape)
        way = Way(load, shape, old)
        for share in (0, 0.3, 1):
            limit = int(share * way.rows[way.best, np.arange(4)].sum())
            table = way.at(within(way, np.ones(4, np.int64), limit)).physical_to_logical
            nodes = (table // 4).reshape(4, 2, -1)
            assert all(not set(one) & set(other) for one, other in nodes.tolist())

    def test_groups_that_old_has_on_several_nodes(self):
        """Without a limit they are brought together."""
        load = np.random.default_rng(3).lognormal(0, 1, (1, 8))
        old = placement([[0, 4, 1, 5, 2, 6, 3, 7]], 4, 8)
        found = balance(load, Shape(8, 0, 4, 2, 2), old=old)
        first, second = (found.physical_to_logical[0] // 4).reshape(2, -1).tolist()
        assert not set(first) & set(second)

    def test_what_cannot_be(self):
        shape = Shape(6, 0, 2)
        with pytest.raises(UsageError, match="needs OLD"):
            balance(LOAD, shape, max_moved_nbytes=1)
        with pytest.raises(UsageError, match="needs the bytes of an expert"):
            balance(LOAD, shape, old=OLD, max_moved_nbytes=1)
        with pytest.raises(PlacementError) as error:
            balance(LOAD, shape, old=placement([[0, 0, 1, 2, 3, 5]], 2, 6))
        assert error.value.code == "EP110"


class TestCurve:
    def test_from_nothing_to_the_best(self):
        """Eight points at the least, more bytes for more balance, one of them the knee."""
        random = np.random.default_rng(0)
        before = random.lognormal(0, 1, (8, 32))
        after = before * random.lognormal(0, 0.5, before.shape)
        shape = Shape(32, 8, 8)
        old = placement_of(balanced_anew(before, shape).experts, 32, None)
        way = Way(after, shape, old)
        mean = after.sum(axis=1) / 8
        points = curve(way, np.full(8, 1000), mean)
        assert len(points) >= 8
        assert (points[0].moved, points[0].overall) == (0, judge(old, after).overall)
        assert points[-1].overall == pytest.approx(judge(way.at(way.best), after).overall)
        moved, overall = ([getattr(point, name) for point in points] for name in ("moved", "overall"))
        assert moved == sorted(moved)
        assert overall == sorted(overall, reverse=True)
        assert sum(point.is_knee for point in points) == 1
        for point in points:
            step = within(way, np.full(8, 1000), point.limit)
            assert point.moved <= point.limit
            assert judge(way.at(step), after).overall == pytest.approx(point.overall)

    @pytest.mark.parametrize(
        ("overall", "expected"),
        [([3, 1.2, 1.1, 1], 1), ([3, 2.9, 1.1, 1], 2), ([3, 2, 1, 0], None), ([1], None)],
    )
    def test_the_knee_is_farthest_below_the_line(self, overall, expected):
        assert knee([Point(at, at, at, value) for at, value in enumerate(overall)]) == expected
