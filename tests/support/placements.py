"""Placements for tests: short to write by hand, and random ones of any shape."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from hypothesis import strategies as st

from eplb_cli.placements.placement import Placement


def placement(rows, num_ranks=None, num_experts=None, layer_ids=None, slots_per_rank=None) -> Placement:
    """A placement of the given rows; one rank, and as many experts as the largest id says, by default."""
    table = np.array(rows, dtype=np.int64)
    slots = (
        [table.shape[1] // (num_ranks or 1)] * (num_ranks or 1) if slots_per_rank is None else slots_per_rank
    )
    return Placement(
        table,
        np.concatenate([[0], np.cumsum(slots)]),
        int(table.max()) + 1 if num_experts is None else num_experts,
        None if layer_ids is None else np.array(layer_ids),
    )


def content(**changes: Any) -> dict[str, Any]:
    """The JSON of a good placement: 2 layers, 4 slots, 2 ranks, 3 experts; a change to None drops a key."""
    good = {
        "format": "eplb-placement/1",
        "num_ranks": 2,
        "num_logical_experts": 3,
        "layer_ids": [3, 4],
        "physical_to_logical_map": [[0, 1, 2, 0], [2, -1, 0, 1]],
    }
    return {key: value for key, value in {**good, **changes}.items() if value is not None}


def text(**changes: Any) -> bytes:
    """`content` as a file, a key a line."""
    return json.dumps(content(**changes)).replace(', "', ',\n"').encode()


@st.composite
def placements(draw: st.DrawFn) -> Placement:
    """Any valid placement: replicas, empty slots, missing experts, uneven and bare ranks."""
    num_layers, num_experts = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    slots = draw(st.lists(st.integers(0, 4), min_size=1, max_size=5).filter(any))
    row = st.lists(st.integers(-1, num_experts - 1), min_size=sum(slots), max_size=sum(slots))
    rows = draw(st.lists(row, min_size=num_layers, max_size=num_layers))
    numbers = st.lists(st.integers(0, 99), min_size=num_layers, max_size=num_layers, unique=True)
    return placement(rows, None, num_experts, draw(st.none() | numbers), slots)
