"""Maps that have a name instead of a file: `linear` and `round_robin` of vLLM, `trivial` of SGLang.

Ten experts on four ranks; the first 10 % 4 ranks hold one more::

    linear       [0 1 2] [3 4 5] [6 7] [8 9]
    round_robin  [0 4 8] [1 5 9] [2 6] [3 7]

Where there are more ranks than experts, the last ranks have no slot. Two experts on three ranks::

    linear       [0] [1] []

With redundant experts `linear` goes on from expert 0, and every rank has as many slots as the others. Six
experts and two redundant ones on four ranks::

    linear       [0 1] [2 3] [4 5] [0 1]

`trivial` is what `--init-expert-location trivial` makes: slot i holds expert i % E. That is `linear`, but
SGLang has as many slots on every rank with and without redundant experts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from eplb_cli.errors import PlacementError, UsageError
from eplb_cli.models.model import MAX_EXPERTS, MAX_LAYERS
from eplb_cli.placements.hints import Hints
from eplb_cli.placements.keys import compare_slots
from eplb_cli.placements.placement import MAX_ENTRIES, MAX_RANKS, Placement


def named_map(name: str, hints: Hints) -> Placement:
    """The map `name`, the same in every layer: as many layers as the hints say, or else one.

    Raises:
        PlacementError: EP114 for a number that is missing or out of range, EP108 for slots that do not
            divide over the ranks.
        UsageError: EP001 for redundant experts in `round_robin`.
    """
    known_ranks = hints.num_ranks if hints.slots_per_rank is None else len(hints.slots_per_rank)
    num_ranks = _number(name, "--num-ranks", known_ranks, MAX_RANKS)
    num_experts = _number(name, "--num-logical-experts", hints.num_logical_experts, MAX_EXPERTS)
    row = _experts_in_order(name, num_experts, num_ranks, hints.num_redundant_experts or 0)
    slots = slots_of_linear(len(row), num_ranks)
    compare_slots(slots, hints, "redundant experts need --num-redundant-experts N")
    num_layers = 1 if hints.layer_count is None else hints.layer_count
    _number(name, "a number of layers", num_layers, min(MAX_LAYERS, MAX_ENTRIES // len(row)))
    first_slot = np.concatenate([[0], np.cumsum(slots)])
    return Placement(np.tile(row, (num_layers, 1)), first_slot, num_experts, hints.layer_ids)


def _number(name: str, option: str, value: int | None, most: int) -> int:
    """A number the map cannot do without, from 1 to `most`."""
    if value is None:
        raise PlacementError("EP114", f"the map {name} needs {option}", f"say it with {option} N")
    if not 1 <= value <= most:
        raise PlacementError("EP114", f"the map {name} needs {option} from 1 to {most:,}, not {value:,}")
    return value


def _experts_in_order(name: str, num_experts: int, num_ranks: int, num_redundant: int) -> NDArray[np.int64]:
    """(P,) the expert in each slot."""
    if name == "round_robin":
        if num_redundant:
            raise UsageError("EP001", f"the map {name} has no redundant experts", "use linear, or a file")
        return np.argsort(np.arange(num_experts) % num_ranks, kind="stable")
    if num_redundant:
        _number(name, "--num-redundant-experts", num_redundant, MAX_EXPERTS)
    if (num_redundant or name == "trivial") and (num_experts + num_redundant) % num_ranks:
        total = f"{num_experts} experts and {num_redundant} redundant ones"
        hint = f"choose --num-redundant-experts so that both together are a multiple of {num_ranks}"
        raise PlacementError("EP108", f"{total} do not divide over {num_ranks} ranks", hint)
    return np.arange(num_experts + num_redundant) % num_experts


def slots_of_linear(num_slots: int, num_ranks: int) -> NDArray[np.int64]:
    """(R,) S of each rank, 0 for some where R > P; the first have one more where P is no multiple of R."""
    return num_slots // num_ranks + (np.arange(num_ranks) < num_slots % num_ranks)
