"""eplb-placement/1: says everything, in the model's own layer numbers. The eplb.json of shards holds one."""

from __future__ import annotations

from typing import Any

from eplb_cli.placements.dialects.dialect import Dialect, Note
from eplb_cli.placements.hints import Hints
from eplb_cli.placements.keys import FORMAT_OF_SHARDS, KEYS, MAP
from eplb_cli.placements.placement import Placement

FORMAT_PREFIX = "eplb-"
_OWN_KEYS = {"num_ranks", "slots_per_rank", "layer_ids"}


def _fits(value: object) -> bool:
    """Whether it says so itself, or has keys that only eplb's own files have."""
    if not isinstance(value, dict):
        return False
    name = value.get("format")
    is_ours = isinstance(name, str) and name.startswith(FORMAT_PREFIX)
    return is_ours or (bool(value.keys() & _OWN_KEYS) and (MAP in value or value.keys() <= {*KEYS}))


def _read(value: Any, hints: Hints, note: Note) -> Any:  # noqa: ANN401 - the draft checks whatever it is
    del hints, note
    is_of_shards = isinstance(value, dict) and value.get("format") == FORMAT_OF_SHARDS
    return value.get("placement") if is_of_shards else value


def _write(placement: Placement, hints: Hints, suffix: str) -> str:
    from eplb_cli.placements.own_format import format_placement

    del hints, suffix
    return format_placement(placement)


DIALECT = Dialect("eplb", (".json",), _fits, _read, _write, has_mtp=True)
