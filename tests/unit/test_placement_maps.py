"""Maps with a name: `linear` and `round_robin`."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eplb_cli.errors import EplbError
from eplb_cli.placements.findings import check_placement
from eplb_cli.placements.hints import Hints
from eplb_cli.placements.read import read_placement


def ranks_of(name: str, hints: Hints) -> list[list[int]]:
    """The experts of each rank, the same in every layer of the named map."""
    placement, findings = read_placement(name, hints)
    table = placement.physical_to_logical
    assert findings == []
    assert (table == table[0]).all()
    return [rank.tolist() for rank in np.split(table[0], placement.first_slot[1:-1])]


@pytest.mark.parametrize(
    ("name", "num_ranks", "num_experts", "num_redundant", "expected"),
    [
        ("linear", 4, 10, None, [[0, 1, 2], [3, 4, 5], [6, 7], [8, 9]]),
        ("round_robin", 4, 10, None, [[0, 4, 8], [1, 5, 9], [2, 6], [3, 7]]),
        ("linear", 2, 4, None, [[0, 1], [2, 3]]),
        ("round_robin", 2, 4, 0, [[0, 2], [1, 3]]),
        ("linear", 4, 6, 2, [[0, 1], [2, 3], [4, 5], [0, 1]]),
        ("linear", 2, 2, 6, [[0, 1, 0, 1], [0, 1, 0, 1]]),
        ("linear", 1, 1, None, [[0]]),
        ("trivial", 2, 4, None, [[0, 1], [2, 3]]),
        ("trivial", 4, 6, 2, [[0, 1], [2, 3], [4, 5], [0, 1]]),
        ("trivial", 2, 2, 6, [[0, 1, 0, 1], [0, 1, 0, 1]]),
        ("linear", 5, 3, None, [[0], [1], [2], [], []]),
        ("round_robin", 5, 3, None, [[0], [1], [2], [], []]),
    ],
)
def test_named_maps_are_those_of_vllm(name, num_ranks, num_experts, num_redundant, expected):
    """The first ranks hold one more; redundant experts go on from expert 0."""
    hints = Hints(num_ranks, None, num_experts, num_redundant_experts=num_redundant)
    assert ranks_of(name, hints) == expected


def test_layers_come_from_the_hints():
    """Without a hint there is one layer, without a number."""
    numbers = np.array([3, 4, 5])
    one = read_placement("linear", Hints(2, None, 4))[0]
    two = read_placement("linear", Hints(2, None, 4, num_layers=2))[0]
    three = read_placement("linear", Hints(2, None, 4, numbers))[0]
    assert [one.num_layers, two.num_layers, three.num_layers] == [1, 2, 3]
    assert one.layer_ids is None
    assert three.layer_ids is numbers


def test_known_slots_say_the_number_of_ranks():
    """Shards with three and two rows are two ranks."""
    assert ranks_of("round_robin", Hints(None, np.array([3, 2]), 5)) == [[0, 2, 4], [1, 3]]


@pytest.mark.parametrize(
    ("name", "hints", "code", "message"),
    [
        ("linear", Hints(), "EP114", "needs --num-ranks"),
        ("linear", Hints(4), "EP114", "needs --num-logical-experts"),
        ("round_robin", Hints(0, None, 4), "EP114", "needs --num-ranks from 1 to 1,000,000, not 0"),
        ("linear", Hints(4, None, 10**12), "EP114", "not 1,000,000,000,000"),
        ("linear", Hints(4, None, 4, num_redundant_experts=-4), "EP114", "--num-redundant-experts from 1"),
        ("linear", Hints(1, None, 1_000_000, num_layers=5), "EP114", "a number of layers from 1 to 4, not 5"),
        ("linear", Hints(4, None, 10, num_redundant_experts=1), "EP108", "do not divide over 4 ranks"),
        ("linear", Hints(8, None, 4, num_redundant_experts=2), "EP108", "do not divide over 8 ranks"),
        ("linear", Hints(4, np.array([3, 2]), 5), "EP108", "has 2 ranks; OLD"),
        ("linear", Hints(None, np.array([3, 3, 2, 3]), 10), "EP108", "rank 3 has 2 slots; OLD"),
        ("round_robin", Hints(2, None, 4, num_redundant_experts=2), "EP001", "has no redundant experts"),
    ],
)
def test_what_a_map_cannot_be_made_of(name, hints, code, message):
    """A number that is missing, or that does not fit, is named together with its option."""
    with pytest.raises(EplbError, match=message) as caught:
        read_placement(name, hints)
    assert caught.value.code == code


@given(st.sampled_from(["linear", "round_robin"]), st.integers(1, 40), st.integers(1, 60))
def test_every_expert_has_one_slot(name, num_ranks, num_experts):
    """Without redundancy each expert is on one rank, and no rank has two more than another."""
    placement, _ = read_placement(name, Hints(num_ranks, None, num_experts))
    assert {finding.code for finding in check_placement(placement)} <= {"EP113"}
    assert sorted(placement.physical_to_logical[0].tolist()) == list(range(num_experts))
    assert np.ptp(placement.slots_per_rank) <= 1
