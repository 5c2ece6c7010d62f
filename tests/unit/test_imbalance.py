"""How evenly a placement spreads a load, against numbers by hand and against a loop."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from eplb_cli.balance.fit import fitted
from eplb_cli.balance.imbalance import judge
from eplb_cli.errors import PlacementError
from eplb_cli.models.counted import Load
from tests.support.placements import placement, placements

TWO_RANKS = placement([[0, 1, 0, 2], [2, 1, 0, -1]], 2, 3, [3, 4])
LOAD = np.array([[8.0, 4, 2], [1, 2, 6]])


def test_by_hand():
    """The example of the module, and a layer whose heaviest expert has no replica."""
    found = judge(TWO_RANKS, LOAD)
    assert found.rank_load.tolist() == [[8, 6], [8, 1]]
    assert found.max_over_mean == pytest.approx([8 / 7, 8 / 4.5])
    assert found.bound == pytest.approx([1, 6 / 4.5])
    assert found.overall == pytest.approx(16 / 11.5)
    assert found.overall_bound == pytest.approx((7 + 6) / 11.5)
    assert found.busiest_rank.tolist() == [0, 0]
    assert found.worst_layer == 1


def test_replicas_on_one_rank():
    """Two replicas on one rank halve nothing, uneven ranks are all ranks, and one without slots counts."""
    uneven = placement([[0, 0, 1]], None, 2, None, [2, 0, 1])
    found = judge(uneven, np.array([[6.0, 3]]))
    assert found.rank_load.tolist() == [[6, 0, 3]]
    assert found.max_over_mean.tolist() == [2]
    assert found.bound.tolist() == [1]


def test_nothing_to_do_is_balanced():
    """A layer without a token is 1.0, and counts for nothing overall."""
    found = judge(TWO_RANKS, LOAD * [[1], [0]])
    assert found.max_over_mean == pytest.approx([8 / 7, 1])
    assert found.bound.tolist() == [1, 1]
    assert found.overall == pytest.approx(8 / 7)
    nothing = judge(TWO_RANKS, 0 * LOAD)
    assert (nothing.overall, nothing.overall_bound, nothing.worst_layer) == (1, 1, 0)


def test_values_are_for_reading():
    """What was judged is not written to."""
    with pytest.raises(ValueError, match="read-only"):
        judge(TWO_RANKS, LOAD).rank_load[0, 0] = 1


@given(st.data())
def test_against_a_loop(data):
    """Slot by slot in fractions, on any placement that holds every expert."""
    found = data.draw(placements().filter(lambda some: (some.num_replicas > 0).all()))
    shape = found.num_layers, found.num_logical_experts
    load = data.draw(arrays.arrays(np.float64, shape, elements=st.integers(0, 1000).map(float)))
    judged = judge(found, load)
    busiest, least, means = (Fraction(0), Fraction(0), Fraction(0))
    for layer, row in enumerate(found.physical_to_logical.tolist()):
        ranks = [Fraction(0)] * found.num_ranks
        for slot, expert in enumerate(row):
            if expert >= 0:
                ranks[found.rank_of_slot[slot]] += Fraction(int(load[layer, expert]), row.count(expert))
        mean = sum(ranks, Fraction()) / len(ranks)
        heaviest = max(Fraction(int(each), row.count(e)) for e, each in enumerate(load[layer]))
        assert judged.rank_load[layer] == pytest.approx(list(map(float, ranks)))
        assert judged.max_over_mean[layer] == pytest.approx(float(max(ranks) / mean) if mean else 1)
        assert judged.bound[layer] == pytest.approx(float(max(heaviest, mean) / mean) if mean else 1)
        busiest, least, means = busiest + max(ranks), least + max(heaviest, mean), means + mean
    assert judged.overall == pytest.approx(float(busiest / means) if means else 1)
    assert judged.overall_bound == pytest.approx(float(least / means) if means else 1)
    assert (judged.max_over_mean >= judged.bound - 1e-9).all()


@pytest.mark.parametrize("shape", [(2, 4), (1, 3), (3, 3), (2, 1), (3,)])
def test_a_load_of_another_shape(shape):
    """Nothing is stretched to fit, not even one layer or one expert."""
    with pytest.raises(PlacementError, match="2 layers of 3 experts") as error:
        judge(TWO_RANKS, np.ones(shape))
    assert error.value.code == "EP119"


def test_an_expert_without_a_slot():
    """Its tokens would be nobody's."""
    with pytest.raises(PlacementError, match="layer 3: expert 1 is in no slot") as error:
        judge(placement([[0, 0]], 2, 2, [3]), np.ones((1, 2)))
    assert error.value.code == "EP110"


def load_of(rows, layer_ids=None):
    """One step."""
    return Load("array", np.array([rows], float), None if layer_ids is None else np.array(layer_ids))


def test_layers_are_told_by_their_numbers():
    """In whatever order the placement has them; other layers of the load are left out."""
    both = fitted(load_of([[9, 9, 9], [1, 2, 3], [4, 5, 6]], [0, 3, 4]), TWO_RANKS, "load", "NEW")
    assert both.tolist() == [[1, 2, 3], [4, 5, 6]]
    turned = placement([[0, 1, 2], [0, 1, 2]], 1, 3, [7, 5])
    assert fitted(load_of([[1, 2, 3], [4, 5, 6]], [5, 7]), turned, "", "").tolist() == [[4, 5, 6], [1, 2, 3]]


def test_layers_without_numbers():
    """Rows of a load are the MoE layers in the model's order."""
    rows = [[1, 2, 3], [4, 5, 6]]
    assert fitted(load_of(rows), TWO_RANKS, "", "").tolist() == rows
    turned = placement([[0, 1], [0, 1], [0, 1]], 1, 2, [7, 9, 5])
    assert fitted(load_of([[5, 5], [7, 7], [9, 9]]), turned, "", "").tolist() == [[7, 7], [9, 9], [5, 5]]
    unnamed = placement([[0, 1, 2], [0, 1, 2]], 1, 3)
    assert fitted(load_of(rows, [5, 7]), unnamed, "", "").tolist() == rows


def test_steps_are_added_up():
    """What counts is the whole of a dump."""
    steps = Load("array", np.array([LOAD, LOAD]), None)
    assert fitted(steps, TWO_RANKS, "", "").tolist() == (2 * LOAD).tolist()


@pytest.mark.parametrize(
    ("load", "problem"),
    [
        (load_of([[1, 2, 3]]), "load.npy counts 1 layers of 3 experts, and NEW has 2 of 3"),
        (load_of([[1, 2, 3]] * 3), "load.npy counts 3 layers of 3 experts, and NEW has 2 of 3"),
        (load_of([[1, 2]] * 2, [3, 4]), "load.npy counts 2 layers of 2 experts, and NEW has 2 of 3"),
        (load_of([[1]] * 2, [3, 4]), "load.npy counts 2 layers of 1 experts, and NEW has 2 of 3"),
        (load_of([[1, 2, 3]] * 2, [4, 5]), "and NEW has 2 of 3; layer 3 is in NEW alone"),
    ],
)  # fmt: skip
def test_a_load_of_another_model(load, problem):
    """Numbers of both, and which layer it is."""
    with pytest.raises(PlacementError, match=problem) as error:
        fitted(load, TWO_RANKS, "load.npy", "NEW")
    assert error.value.code == "EP119"
    assert "--model" in error.value.hint
