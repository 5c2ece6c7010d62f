"""What is said of placements that are well-formed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eplb_cli.errors import CODES, PlacementError
from eplb_cli.placements.findings import Finding, check_pair, check_placement, raise_first
from tests.support.placements import placement, placements


def said(findings):
    return [(finding.code, finding.severity, finding.message) for finding in findings]


def test_nothing_is_said_of_a_good_placement():
    """Replicas on other ranks and empty slots are how it should be."""
    assert check_placement(placement([[0, 1, 2, 0], [2, -1, 1, 0]], 2, 3)) == []


def test_an_expert_without_a_slot_is_an_error():
    """The first missing expert of a layer is named, the others are counted."""
    (one, two) = check_placement(placement([[0, 1, 2, 4], [0, 1, 2, 2]], 1, 5, [7, 8]))[:2]
    assert said([one, two]) == [
        ("EP110", "error", "layer 7: expert 3 is in no slot"),
        ("EP110", "error", "layer 8: expert 3 is in no slot; 1 more like it in this layer"),
    ]
    assert (one.layer, two.layer) == (7, 8)


def test_the_same_expert_twice_on_a_rank_is_a_warning():
    """The second slot is named, with its rank; a replica elsewhere and empty slots are no repetition."""
    (finding,) = check_placement(placement([[0, 1, 0, 1, 0, -1, -1, 2]], 2, 3))
    assert said([finding]) == [
        ("EP112", "warning", "layer 0, slot 2: rank 0 already holds expert 0; 1 more like it in this layer")
    ]
    assert (finding.layer, finding.slot, finding.rank) == (0, 2, 0)


def test_a_rank_without_an_expert_is_a_warning():
    """Whether its slots are empty or it has none."""
    findings = check_placement(placement([[-1, -1, 0, 1], [0, -1, 1, -1]], None, 2, None, [2, 0, 2]))
    assert said(findings) == [
        ("EP113", "warning", "layer 0: rank 0 has no expert; 1 more like it in this layer"),
        ("EP113", "warning", "layer 1: rank 1 has no expert"),
    ]
    assert [finding.rank for finding in findings] == [0, 1]


def test_an_expert_of_new_needs_a_source():
    """EP106 in the words of the design, with the hint; slots of the same layer are counted."""
    old = placement([[0, 1, 2, 3], [0, 1, 2, 2]], 2, 4, [16, 17])
    new = placement([[3, 2, 1, 0], [3, 3, 1, 0]], 2, 4, [16, 17])
    source, dropped = check_pair(old, new)
    assert said([source, dropped]) == [
        (
            "EP106",
            "error",
            "layer 17, slot 0: expert 3 is in NEW but nowhere in OLD; 1 more like it in this layer",
        ),
        (
            "EP107",
            "error",
            "layer 17, slot 2 of OLD: expert 2 is in OLD but nowhere in NEW; 1 more like it in this layer",
        ),
    ]
    assert source.hint.startswith("was OLD written for another checkpoint?")
    assert (source.layer, source.slot, dropped.layer, dropped.slot) == (17, 0, 17, 2)


def test_layer_numbers_come_from_either_side():
    """One placement that knows them is enough."""
    old, new = placement([[0, 1]], 1, 2, [9]), placement([[0, 0]], 1, 2)
    assert [finding.layer for finding in check_pair(old, new)] == [9]
    assert [finding.layer for finding in check_pair(new, old)] == [9]


@pytest.mark.parametrize(
    ("old", "new", "messages"),
    [
        (placement([[0, 1]], 1, 2), placement([[0, 1]], 1, 3), ["OLD has 2 logical experts, NEW has 3"]),
        (placement([[0]], 1, 1), placement([[0], [0]], 1, 1), ["OLD has 1 MoE layers, NEW has 2"]),
        (placement([[0]], 1, 1, [3]), placement([[0]], 1, 1, [4]), ["row 0 is layer 3 in OLD, 4 in NEW"]),
        (placement([[0]], 1, 1, [3]), placement([[0]], 1, 1), []),
        (placement([[0, 1]], 2), placement([[1, 0, 1]], 1), []),
    ],
)
def test_old_and_new_are_of_one_checkpoint(old, new, messages):
    """Experts and layers are the same, where known; ranks and slots may differ."""
    findings = check_pair(old, new)
    assert [finding.message for finding in findings] == messages
    assert {finding.code for finding in findings} <= {"EP109"}


def places_by_definition(subject):
    """(code, layer, slot, rank) of what `check_placement` finds, by loops over layers, ranks and slots."""
    owner = subject.rank_of_slot
    for layer, row in enumerate(subject.physical_to_logical.tolist()):
        number, pairs = subject.layer_number(layer), list(zip(owner.tolist(), row, strict=True))
        if set(range(subject.num_logical_experts)) - set(row):
            yield "EP110", number, None, None
        repeats = [slot for slot, pair in enumerate(pairs) if pair[1] >= 0 and pair in pairs[:slot]]
        for slot in repeats[:1]:
            yield "EP112", number, slot, owner[slot]
        bare = set(range(subject.num_ranks)) - {rank for rank, expert in pairs if expert >= 0}
        for rank in sorted(bare)[:1]:
            yield "EP113", number, None, rank


@given(placements())
def test_findings_are_those_of_the_definition(subject):
    """Vectorised checks find the layers, slots and ranks that loops find."""
    found = {
        (finding.code, finding.layer, finding.slot, finding.rank) for finding in check_placement(subject)
    }
    assert found == set(places_by_definition(subject))


@given(placements(), st.data())
def test_pairs_are_judged_by_their_definition(old, data):
    """A layer has a finding if and only if one side has an expert that the other lacks."""
    expert = st.integers(-1, old.num_logical_experts - 1)
    rows = [data.draw(st.lists(expert, min_size=5, max_size=5)) for _ in range(old.num_layers)]
    new = placement(rows, 5, old.num_logical_experts)
    expected = []
    for layer, (before, after) in enumerate(zip(old.physical_to_logical.tolist(), rows, strict=True)):
        expected += [("EP106", old.layer_number(layer))] if set(after) - set(before) - {-1} else []
        expected += [("EP107", old.layer_number(layer))] if set(before) - set(after) - {-1} else []
    assert {(finding.code, finding.layer) for finding in check_pair(old, new)} == set(expected)


class TestRaiseFirst:
    def test_warnings_raise_nothing(self):
        """A warning leaves the placement usable."""
        raise_first([Finding("EP111", "warning", "a guess")])

    def test_the_first_error_is_raised_with_place_and_hint(self):
        """File and line are put before the message, the number of further errors after it."""
        findings = [
            Finding("EP111", "warning", "a guess"),
            Finding("EP105", "error", "layer 3, slot 1: 9", "look", file="p.json", line=7),
            Finding("EP106", "error", "another"),
        ]
        with pytest.raises(PlacementError, match=r"^p\.json:7: layer 3, slot 1: 9 \(and 1 more\)$") as caught:
            raise_first(findings)
        assert (caught.value.code, caught.value.hint) == ("EP105", "look")

    def test_without_a_file_the_message_stands_alone(self):
        """Findings about a pair have no file."""
        with pytest.raises(PlacementError, match=r"^alone$"):
            raise_first([Finding("EP109", "error", "alone")])


def test_every_code_is_in_the_list():
    """No check invents a code."""
    bad = check_placement(placement([[0, 0, -1]], None, 2, None, [2, 1]))
    assert {finding.code for finding in bad} == {"EP110", "EP112", "EP113"}
    assert {finding.code for finding in bad} <= CODES.keys()
