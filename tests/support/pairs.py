"""Pairs of placements that a checkpoint can go between: any R, S and P on either side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st

from eplb_cli.placements.placement import EMPTY, Placement

Pair = tuple[Placement, Placement]


@st.composite
def pairs(
    draw: st.DrawFn,
    *,
    max_layers: int = 3,
    max_experts: int = 6,
    max_ranks: int = 5,
    max_slots: int = 4,
    once_per_rank: bool = False,
    same_shape: bool = False,
) -> Pair:
    """OLD and NEW of the same experts and layers, with replicas, empty slots, uneven and bare ranks.

    Args:
        once_per_rank: no rank holds an expert twice.
        same_shape: R and S are the same on both sides, and the same for all ranks.
    """
    num_experts = draw(st.integers(1, max_experts))
    layer_ids = np.array(
        draw(st.lists(st.integers(0, 40), min_size=1, max_size=max_layers, unique=True)), np.int64
    )
    one_shape = _even_slots(max_ranks, max_slots)
    old_slots = draw(one_shape if same_shape else _slots(max_ranks, max_slots))
    new_slots = old_slots if same_shape else draw(_slots(max_ranks, max_slots))
    rows: tuple[list[list[int]], list[list[int]]] = ([], [])
    room = min(sum(old_slots), sum(new_slots), num_experts)
    for _ in layer_ids:
        present = draw(st.permutations(range(num_experts)))[: draw(st.integers(1, room))]
        for side, slots in zip(rows, (old_slots, new_slots), strict=True):
            side.append(draw(_row(present, slots, once_per_rank=once_per_rank)))
    old, new = (
        Placement(
            np.array(side, np.int64),
            np.concatenate([[0], np.cumsum(slots)]).astype(np.int64),
            num_experts,
            layer_ids.copy(),
        )
        for side, slots in zip(rows, (old_slots, new_slots), strict=True)
    )
    return old, new


def _slots(max_ranks: int, max_slots: int) -> st.SearchStrategy[list[int]]:
    """S of each rank; some may have none, and there may be more ranks than slots."""
    uneven = st.lists(st.integers(0, max_slots), min_size=1, max_size=max_ranks).filter(any)
    return _even_slots(max_ranks, max_slots) | uneven


def _even_slots(max_ranks: int, max_slots: int) -> st.SearchStrategy[list[int]]:
    return st.builds(
        lambda ranks, slots: [slots] * ranks, st.integers(1, max_ranks), st.integers(1, max_slots)
    )


@st.composite
def _row(draw: st.DrawFn, present: Sequence[int], slots: Sequence[int], *, once_per_rank: bool) -> list[int]:
    """A layer in which the experts of `present`, and no others, have slots."""
    num_slots = sum(slots)
    anything = st.sampled_from([*present, EMPTY])
    rest = draw(st.lists(anything, min_size=num_slots - len(present), max_size=num_slots - len(present)))
    row = draw(st.permutations([*present, *rest]))
    if not once_per_rank:
        return list(row)
    kept: list[int] = []
    for count in slots:
        of_rank = row[len(kept) : len(kept) + count]
        kept += [expert if expert not in of_rank[:at] else EMPTY for at, expert in enumerate(of_rank)]
    return kept
