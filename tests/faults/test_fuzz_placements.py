"""20,000 damaged and hostile placements: each is one that can be planned with, or errors with codes."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import numpy as np
import pytest

from eplb_cli.errors import CODES, EplbError
from eplb_cli.models.model import MAX_EXPERTS
from eplb_cli.placements.findings import check_pair, check_placement
from eplb_cli.placements.hints import Hints
from eplb_cli.placements.own_format import format_placement
from eplb_cli.placements.placement import EMPTY, Placement
from eplb_cli.placements.read import parse_placement
from eplb_cli.plan.check import verify_plan
from eplb_cli.plan.plan import plan_reshard
from tests.support.mutations import mutate
from tests.support.placements import content, placement, text

NUM_CASES = 20_000
BATCH = 2_000
CORPUS = sorted((Path(__file__).parents[1] / "data" / "corpus" / "placements").iterdir())

SEEDS = [
    text(),
    text(num_ranks=None, slots_per_rank=[3, 1], layer_ids=None),
    text(num_ranks=None, slots_per_rank=2, num_logical_experts=None),
    json.dumps(content(), indent=1).encode(),
    format_placement(placement([[0, 1, 2, 3, 4, 5, 0, 1]] * 3, 4)).encode(),
    b'{"format": "eplb-placement/1", "num_ranks": 1, "physical_to_logical_map": [[0]]}',
]
HINTS = [
    Hints(),
    Hints(num_ranks=2, num_logical_experts=3, layer_ids=np.array([3, 4])),
    Hints(slots_per_rank=np.array([3, 1]), num_layers=2),
    Hints(num_ranks=1),
]


def check(data: bytes, hints: Hints) -> Placement | None:
    """The placement of a text; without one there is a finding, and every finding can be printed."""
    result, findings = parse_placement(data, "p.json", hints)
    assert (result is None) == any(finding.severity == "error" for finding in findings)
    for finding in findings:
        assert finding.code in CODES
        assert finding.message.isprintable()
        assert len(finding.message) < 500
    return result


def assert_sound(found: Placement) -> None:
    """Shapes and ids are what everything after relies on, and what is written is read back."""
    assert found.physical_to_logical.dtype == np.int64
    assert found.physical_to_logical.shape == (found.num_layers, found.num_slots)
    assert EMPTY <= found.physical_to_logical.min() <= found.physical_to_logical.max()
    assert found.physical_to_logical.max() < found.num_logical_experts <= MAX_EXPERTS
    assert found.first_slot[0] == 0
    assert found.first_slot[-1] == found.num_slots
    assert (found.slots_per_rank >= 0).all()
    assert found.layer_ids is None or len(set(found.layer_ids.tolist())) == found.num_layers
    again, findings = parse_placement(format_placement(found).encode(), "again.json")
    assert again is not None
    assert again.digest == found.digest
    assert findings == []


def assert_plannable(old: Placement, new: Placement) -> bool:
    """Whether the pair can be planned; a plan is right, and what is no plan has findings with codes."""
    if any(finding.severity == "error" for finding in check_pair(old, new)):
        return False
    try:
        verify_plan(plan_reshard(old, new))
    except EplbError as error:
        assert error.code in CODES  # noqa: PT017 - both ends are right
        return False
    return True


@pytest.mark.parametrize("seed", range(NUM_CASES // BATCH))
def test_damaged_placements(seed, watchdog, count):
    """No crash and no hang, and neither a placement nor a plan is rare."""
    rng, planned = Random(seed), 0
    found: list[Placement] = []
    for number in range(BATCH):
        if number % 100 == 0:
            watchdog()
        result = check(mutate(rng, rng.choice(SEEDS), SEEDS), rng.choice(HINTS))
        if result is not None:
            assert_sound(result)
            check_placement(result)
            planned += assert_plannable(rng.choice(found) if found else result, result)
            found.append(result)
    count("mutated placements", BATCH)
    count("mutated placements, of which accepted", len(found))
    count("mutated placements, of which planned with", planned)
    assert BATCH / 100 < planned <= len(found) < BATCH / 2


@pytest.mark.parametrize("file", CORPUS, ids=lambda file: file.name)
def test_what_was_once_wrong(file):
    """Texts of hostile shapes, kept so that they stay refused."""
    for hints in HINTS:
        assert check(file.read_bytes(), hints) is None


@pytest.mark.parametrize("data", SEEDS)
def test_the_placements_to_begin_with_are_good(data):
    """So that what is refused is refused for its mutation."""
    assert check(data, Hints()) is not None
