"""Any placement that a dialect can express survives a round trip through it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eplb_cli.models.model import Model
from eplb_cli.placements.dialects.registry import NAMES, dialect_called
from eplb_cli.placements.hints import Hints
from eplb_cli.placements.placement import Placement
from eplb_cli.placements.read import parse_placement
from tests.support.placements import placement, placements

WRITTEN = [(name, suffix) for name in NAMES for suffix in dialect_called(name).suffixes]


@st.composite
def expressible(draw: st.DrawFn) -> tuple[Placement, Model]:
    """Every expert in a slot, ranks of the same size, no expert twice on one of them; and its model."""
    hidden = draw(st.integers(1, 6))
    layers = sorted(draw(st.sets(st.integers(0, hidden - 1), min_size=1)))
    num_ranks, slots = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    num_slots = num_ranks * slots
    num_experts = draw(st.integers(slots, num_slots))
    rows = []
    for _ in layers:
        order = draw(st.permutations(range(num_experts)))
        # Dealt out in cycles of E >= S, no rank gets an expert twice.
        rows.append([order[slot % num_experts] for slot in range(num_slots)])
    model = Model("drawn", hidden, tuple(layers), num_logical_experts=num_experts)
    return placement(rows, num_ranks, num_experts, layers), model


@pytest.mark.parametrize(("name", "suffix"), WRITTEN)
@given(drawn=expressible())
def test_a_round_trip_changes_nothing(name, suffix, drawn):
    """With the ranks, experts and layers that the dialect leaves out, it is the same placement."""
    original, model = drawn
    hints = Hints(model=model)
    text = dialect_called(name).write(original, hints, suffix)
    known = Hints(original.num_ranks, None, original.num_logical_experts, model=model)
    result, findings = parse_placement(text.encode(), f"p{suffix}", known)
    assert findings == []
    assert result is not None
    assert result.digest == original.digest


@given(original=placements())
def test_the_own_dialect_says_everything(original):
    """Empty slots, uneven ranks and missing experts too, without any hint."""
    text = dialect_called("eplb").write(original, Hints(), ".json")
    result, findings = parse_placement(text.encode(), "p.json")
    assert findings == []
    assert result is not None
    assert result.digest == original.digest
    assert np.array_equal(result.first_slot, original.first_slot)
