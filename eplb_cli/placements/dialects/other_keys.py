"""What files have beside a map: numbers and arrays that follow from it, and keys that mean nothing here.

What follows from the map is compared with it: a file that contradicts itself is wrong in one of the two.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

from eplb_cli.formats.json_text import shown, shown_keys
from eplb_cli.placements.dialects.dialect import Note, not_this
from eplb_cli.placements.dialects.eplb import DIALECT as EPLB
from eplb_cli.placements.dialects.inverse import COUNTS, SLOTS, compare_inverses
from eplb_cli.placements.keys import MAP

_EXPERTS, _REDUNDANT, _LAYERS = "num_logical_experts", "num_redundant_experts", "num_layers"
_NUM_SLOTS = ("num_physical_experts", "num_slots", "num_replicas")
_NUM_RANKS = ("ep_size", "num_gpus")
_HINT = "one of them is wrong: mend it, or delete the key"
_KNOWN = {_EXPERTS, _REDUNDANT, _LAYERS, *_NUM_SLOTS, *_NUM_RANKS, *COUNTS, *SLOTS}
"""`tp_size` is none of them: with data parallelism there are more ranks than that."""


def has_map(value: object) -> bool:
    """Whether a value is an object with a map under vLLM's and SGLang's name, and not eplb's own."""
    return isinstance(value, dict) and MAP in value and not EPLB.fits(value)


def note_ignored(value: Mapping[str, Any], known: Container[str], note: Note) -> None:
    """One warning that names the keys that mean nothing beside a map."""
    if ignored := [str(key) for key in value if key not in known]:
        note("EP103", f"ignored beside the map: {shown_keys(ignored)}")


def read_beside(name: str, value: Mapping[str, Any], note: Note, map_key: str = MAP) -> dict[str, Any]:
    """The numbers of experts and ranks that stand beside a map, as keys of eplb-placement/1.

    One warning names the keys that are ignored.

    Raises:
        PlacementError: EP103, a key contradicts the map, or another key.
    """
    note_ignored(value, {map_key, *_KNOWN}, note)
    rows, said = value[map_key], {key: value[key] for key in value if value[key] is not None}
    if not isinstance(rows, list) or not rows or not isinstance(rows[0], list):
        return {}  # what is wrong with a map is told with its layer
    num_slots = len(rows[0])
    for key, number in ((_LAYERS, len(rows)), *((key, num_slots) for key in _NUM_SLOTS)):
        if said.get(key, number) != number:
            raise not_this(name, f"{key} is {shown(said[key])}, and the map has {number:,}", _HINT)
    experts = {key: said[key] for key in (_EXPERTS,) if key in said}
    if _REDUNDANT in said:
        experts[_REDUNDANT] = _difference(name, num_slots, said[_REDUNDANT])
    if inverses := {key: said[key] for key in said if key in COUNTS | SLOTS}:
        experts[next(iter(inverses))] = compare_inverses(name, map_key, rows, inverses)
    ranks = {key: said[key] for key in _NUM_RANKS if key in said}
    return {**_one(name, "num_logical_experts", experts), **_one(name, "num_ranks", ranks)}


def _difference(name: str, num_slots: int, redundant: object) -> int:
    if type(redundant) is not int:
        raise not_this(name, f"{_REDUNDANT} is {shown(redundant)}, not an integer")
    return num_slots - redundant


def _one(name: str, meaning: str, said: dict[str, Any]) -> dict[str, Any]:
    """What all the keys say, under the key that means it in eplb-placement/1; nothing without any."""
    if not said:
        return {}
    first, expected = next(iter(said.items()))
    for key, number in said.items():
        if number != expected:
            problem = f"{meaning} is {shown(expected)} by {first}, and {shown(number)} by {key}"
            raise not_this(name, problem, _HINT)
    return {meaning: expected}
