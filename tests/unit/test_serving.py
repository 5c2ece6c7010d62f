"""How an engine loads a tree, or that none does."""

from __future__ import annotations

import pytest

from eplb_cli.output.serving import NO_ENGINE, serving_notes
from tests.support.placements import placement


def notes(rows, num_ranks, experts=None, slots=None, layout="sharded-state"):
    return serving_notes(placement(rows, num_ranks, experts, slots_per_rank=slots), layout)


def test_the_default_placement():
    """VLLM loads it as it is, SGLang as any other."""
    found = notes([[0, 1, 2, 3]] * 2, 2)
    assert found[0].startswith("vLLM: --load-format sharded_state")
    assert "--enable-eplb" not in found[0]
    assert any(note.startswith("SGLang") for note in found)
    assert NO_ENGINE not in " ".join(found)


def test_the_default_placement_with_replicas():
    """VLLM starts with it where EPLB is on."""
    assert "--enable-eplb" in notes([[0, 1, 2, 3, 0, 1]] * 2, 2)[0]


def test_round_robin():
    """An option of vLLM, with what it asks for; uneven ranks as vLLM has them."""
    assert "--expert-placement-strategy round_robin" in notes([[0, 2, 1, 3]] * 2, 2)[0]
    uneven = notes([[0, 4, 8, 1, 5, 9, 2, 6, 3, 7]], None, 10, [3, 3, 2, 2])
    assert "round_robin" in uneven[0]
    assert not any(note.startswith("SGLang") for note in uneven)


@pytest.mark.parametrize(
    ("rows", "num_ranks"),
    [([[3, 1, 2, 0]], 2), ([[0, 1, 2, 3], [0, 2, 1, 3]], 2), ([[0, 1, 2, 3, 1, 0]], 2)],
)
def test_any_other_placement(rows, num_ranks):
    """SGLang with a map file; no stock vLLM."""
    found = notes(rows, num_ranks)
    assert found[-1] == f"vLLM: {NO_ENGINE}"
    assert "--init-expert-location" in found[0]


def test_empty_slots():
    """No engine that we know of."""
    assert notes([[0, 1, 2, -1]], 2) == [f"vLLM: {NO_ENGINE}"]


@pytest.mark.parametrize("slots", [[1, 1, 0], [2, 0]])
def test_ranks_without_slots(slots):
    """Their stacked tensors have no element, and vLLM knows none of those; SGLang wants even ranks."""
    assert notes([[0, 1]], None, 2, slots) == [f"vLLM: {NO_ENGINE}"]


@pytest.mark.parametrize("layout", ["deepseek", "per-row", "mine"])
def test_other_layouts(layout):
    """Only who wrote their like knows."""
    assert notes([[0, 1, 2, 3]], 2, layout=layout) == [
        f"shards of layout {layout}: load them with the program that wrote their like"
    ]
