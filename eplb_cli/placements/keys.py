"""The numbers of a placement file: each from its key, or else from the hints, and the same in both.

`content` is the outermost object of the file, of which nothing is known yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eplb_cli.errors import PlacementError
from eplb_cli.formats.json_text import shown
from eplb_cli.models.model import MAX_EXPERTS
from eplb_cli.placements.hints import Hints
from eplb_cli.placements.placement import MAX_RANKS

FORMAT = "eplb-placement/1"
FORMAT_OF_SHARDS = "eplb-checkpoint/1"
"""What the eplb.json beside shards says it is, which has their placement under `placement`."""
MAP = "physical_to_logical_map"
KEYS = ("format", "num_ranks", "slots_per_rank", "num_logical_experts", "layer_ids", MAP)
"""All keys of eplb's own files."""

_ELSEWHERE = "OLD, the checkpoint or the command line"
_MAX_LAYER_ID = (1 << 31) - 1


def find_num_experts(content: Mapping[str, Any], hints: Hints) -> int | None:
    """E, or None where nothing says it. Raises EP103, EP109."""
    said, hinted = _integer(content, "num_logical_experts"), hints.num_logical_experts
    if said is None:
        return hinted
    if not 1 <= said <= MAX_EXPERTS:
        problem = f"{shown(said)}, not from 1 to {MAX_EXPERTS:,}"
        raise PlacementError("EP103", f'"num_logical_experts" is {problem}')
    if hinted not in (None, said):
        raise PlacementError("EP109", f'"num_logical_experts" is {said:,}; {_ELSEWHERE} says {hinted:,}')
    return said


def find_layer_ids(content: Mapping[str, Any], num_layers: int, hints: Hints) -> NDArray[np.int64] | None:
    """(L,) the model's own layer numbers, or None where nothing says them. Raises EP103, EP109."""
    if "layer_ids" not in content:
        return _hinted_layer_ids(num_layers, hints)
    numbers = content["layer_ids"]
    problem = _problem_of_layer_ids(numbers, num_layers)
    if problem:
        raise PlacementError("EP103", f'"layer_ids" {problem}')
    known = set() if hints.layer_ids is None else set(hints.layer_ids.tolist())
    known |= set(() if hints.model is None else hints.model.mtp_layers)
    unknown = [] if hints.layer_ids is None else sorted(set(numbers) - known)
    if unknown:
        raise PlacementError("EP109", f'"layer_ids" has {unknown[0]}, a layer unknown to {_ELSEWHERE}')
    return np.array(numbers, dtype=np.int64)


def find_slots_per_rank(content: Mapping[str, Any], num_slots: int, hints: Hints) -> NDArray[np.int64]:
    """(R,) S of each rank, which may be 0; `num_slots` in all. Raises EP103 where nothing says it, EP108."""
    num_ranks = _integer(content, "num_ranks")
    if "slots_per_rank" in content:
        slots = _said_slots(content["slots_per_rank"], num_slots)
        if num_ranks not in (None, len(slots)):
            problem = f'{shown(num_ranks)}, but "slots_per_rank" is of {len(slots):,} ranks'
            raise PlacementError("EP108", f'"num_ranks" is {problem}')
    elif num_ranks is not None:
        slots = even_slots(num_slots, num_ranks)
    else:
        slots = _hinted_slots(num_slots, hints)
    if len(slots) > MAX_RANKS:
        raise PlacementError("EP108", f"{len(slots):,} ranks are more than {MAX_RANKS:,}")
    compare_slots(slots, hints)
    return slots


def even_slots(num_slots: int, num_ranks: int) -> NDArray[np.int64]:
    """(R,) as many slots on each rank. Raises EP108."""
    if 1 <= num_ranks <= num_slots and num_slots % num_ranks == 0:
        return np.full(num_ranks, num_slots // num_ranks)
    hint = '"slots_per_rank": [3, 3, 2, 2] says how many each rank has where they differ'
    raise PlacementError("EP108", f"{num_slots:,} slots do not divide over {shown(num_ranks)} ranks", hint)


def compare_slots(slots: NDArray[np.int64], hints: Hints, hint: str = "") -> None:
    """EP108 where the hints say other ranks, or other slots, than the placement has."""
    hinted = slots if hints.slots_per_rank is None else hints.slots_per_rank
    for num_ranks in (hints.num_ranks, len(hinted)):
        if num_ranks not in (None, len(slots)):
            message = f"the placement has {len(slots):,} ranks; {_ELSEWHERE} says {num_ranks:,}"
            raise PlacementError("EP108", message, hint)
    if (slots != hinted).any():
        rank = int(np.flatnonzero(slots != hinted)[0])
        message = f"rank {rank} has {slots[rank]:,} slots; {_ELSEWHERE} says {hinted[rank]:,}"
        raise PlacementError("EP108", message, hint)


def _integer(content: Mapping[str, Any], key: str) -> int | None:
    """The integer that a key says; None without the key. Raises EP103."""
    value = content.get(key)
    if type(value) is int or key not in content:
        return value
    raise PlacementError("EP103", f'"{key}" is {shown(value)}, not an integer')


def _hinted_layer_ids(num_layers: int, hints: Hints) -> NDArray[np.int64] | None:
    """The numbers of so many rows: those of OLD, or of the model's layers without MTP, which no map names."""
    if hints.layer_count in (None, num_layers):
        return hints.layer_ids
    if hints.own_layers is not None and len(hints.own_layers) == num_layers:
        # In the order of what they come from, as where all of its layers are meant.
        known = hints.own_layers if hints.layer_ids is None else hints.layer_ids.tolist()
        return np.array([layer for layer in known if layer in hints.own_layers], np.int64)
    message = f"the map has {num_layers:,} layers; {_ELSEWHERE} says {hints.layer_count:,}"
    raise PlacementError("EP109", message, '"layer_ids" says which layers its rows are')


def _problem_of_layer_ids(numbers: object, num_layers: int) -> str:
    if not isinstance(numbers, list):
        return f"is {shown(numbers)}, not a list"
    if len(numbers) != num_layers:
        return f"has {len(numbers):,} numbers for a map of {num_layers:,} layers"
    wrong = [number for number in numbers if type(number) is not int or not 0 <= number <= _MAX_LAYER_ID]
    if wrong:
        return f"has {shown(wrong[0])}, which is no layer number"
    return "" if len(set(numbers)) == len(numbers) else "names a layer more than once"


def _said_slots(said: object, num_slots: int) -> NDArray[np.int64]:
    """(R,) as `slots_per_rank` says: one number, or one per rank."""
    if type(said) is int and 1 <= said <= num_slots and num_slots % said == 0:
        return np.full(num_slots // said, said)
    if type(said) is int:
        problem = f"{shown(said)}, which does not divide {num_slots:,} slots"
        raise PlacementError("EP108", f'"slots_per_rank" is {problem}')
    if not isinstance(said, list):
        raise PlacementError("EP103", f'"slots_per_rank" is {shown(said)}, neither a number nor a list')
    problem = _problem_of_slots(said, num_slots)
    if problem:
        raise PlacementError("EP108", f'"slots_per_rank" {problem}')
    return np.array(said)


def _problem_of_slots(said: list[Any], num_slots: int) -> str:
    wrong = [slots for slots in said if type(slots) is not int or not 0 <= slots <= num_slots]
    if wrong:
        return f"has {shown(wrong[0])}, which is no number of slots from 0 to {num_slots:,}"
    if sum(said) != num_slots:
        return f"makes {sum(said):,} slots; the map has {num_slots:,}"
    return ""


def _hinted_slots(num_slots: int, hints: Hints) -> NDArray[np.int64]:
    if hints.slots_per_rank is None and hints.num_ranks is not None:
        return even_slots(num_slots, hints.num_ranks)
    slots = hints.spare_slots if hints.slots_per_rank is None else hints.slots_per_rank
    if slots is None:
        hint = 'say it: "num_ranks" in the file, or --num-ranks R'
        raise PlacementError("EP103", 'neither "num_ranks" nor "slots_per_rank" is there', hint)
    if slots.sum() != num_slots:
        message = f"the map has {num_slots:,} slots; {_ELSEWHERE} says {slots.sum():,}"
        raise PlacementError("EP108", message)
    return slots
