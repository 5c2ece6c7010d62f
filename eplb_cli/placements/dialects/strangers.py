"""Files that are no placement: called what they are, with what to do about it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from eplb_cli.errors import PlacementError
from eplb_cli.formats.csv_text import Table
from eplb_cli.formats.json_text import shown, shown_keys
from eplb_cli.placements.dialects.by_rank import EXPERT_TO_RANK, cube
from eplb_cli.placements.dialects.registry import NAMES
from eplb_cli.placements.keys import MAP

_MAPS = (MAP, "phy2log", "initial_global_assignments", "layer_list", EXPERT_TO_RANK)
"""What holds a map, in the one dialect or the other."""

_READ = f"read are placements of {', '.join(NAMES)}: docs/dialects.md shows each"
_LOAD = "a load dump, which counts the tokens of each expert", "`eplb inspect FILE` shows it"
_BY_KEYS: tuple[tuple[frozenset[str], tuple[str, str]], ...] = (
    (frozenset({"logical_count"}), _LOAD),
    (frozenset({"records", "last_physical_to_logical_map"}), _LOAD),
    (frozenset({"expert_load", "p2l_map"}), _LOAD),
    (frozenset({"num_experts", "num_experts_per_token"}), _LOAD),
    (frozenset({"model_type"}), ("the config.json of a model", "give it with --model")),
    (frozenset({"weight_map"}), ("the index of a checkpoint", "give its directory, where one is taken")),
)
"""Keys that are all there, what has them, and what to do with it."""


def stranger(value: object, of: str = "") -> PlacementError:
    """EP103 for a value that is of no dialect, or EP116 for one that is not of the dialect that was named."""
    what, hint = _told(value)
    hint = f"{hint}; {_READ}" if hint else _READ
    if of:
        return PlacementError("EP116", f"not a placement of {of}: {what}", hint)
    return PlacementError("EP103", f"not a placement: {what}", hint)


def _told(value: object) -> tuple[str, str]:
    """What a value is, and what to do with it."""
    if isinstance(value, Table):
        return "a table of comma-separated values", "where they count tokens, `eplb inspect FILE` shows them"
    if isinstance(value, list):
        records = [item for item in value if isinstance(item, dict)]
        return _of_keys(records[0]) if records else _of_list(value)
    return _of_keys(value) if isinstance(value, dict) else (f"{shown(value)} instead of an object", "")


def _of_list(value: list[Any]) -> tuple[str, str]:
    array = cube(value)
    if array is None:
        return "a list instead of an object", ""
    sizes = " x ".join(map(str, array.shape))
    forms = (
        "vllm's expert maps (layers, ranks, experts) nor OmniPlacement's patterns (ranks, layers, experts)"
    )
    return f"{sizes} numbers, which are neither {forms}", ""


def _of_keys(value: Mapping[str, Any]) -> tuple[str, str]:
    nested = list(_places(value))
    if nested:
        places = shown_keys([".".join(place) for place in nested])
        return f"its maps are further inside, in {places}", _way_to(nested[0])
    for keys, told in _BY_KEYS:
        if keys <= value.keys():
            return told
    return f"an object with {shown_keys(list(map(str, value))) or 'no key'}", ""


def _places(value: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The keys down to each of the inner objects that have a map."""
    if above and any(key in value for key in _MAPS):
        yield above
        return
    for key, item in value.items():
        if isinstance(item, dict):
            yield from _places(item, (*above, str(key)))


def _way_to(place: tuple[str, ...]) -> str:
    """How to take out the object at `place`, with a command where its keys need no quotes."""
    if all(key.isidentifier() and key.isascii() for key in place):
        return (
            f"which one is meant nothing says: take it out, as `jq .{'.'.join(place)} FILE > map.json` does"
        )
    return "which one is meant nothing says: put it into a file of its own"
