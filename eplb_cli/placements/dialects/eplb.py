"""eplb-placement/1: says everything, in the model's own layer numbers."""

from __future__ import annotations

from typing import Any

from eplb_cli.placements.dialects.dialect import Dialect, Note
from eplb_cli.placements.hints import Hints
from eplb_cli.placements.placement import Placement


def _fits(value: object) -> bool:
    return isinstance(value, dict) and "format" in value


def _read(value: Any, hints: Hints, note: Note) -> Any:  # noqa: ANN401 - the draft checks whatever it is
    del hints, note
    return value


def _write(placement: Placement, hints: Hints, suffix: str) -> str:
    from eplb_cli.placements.own_format import format_placement

    del hints, suffix
    return format_placement(placement)


DIALECT = Dialect("eplb", (".json",), _fits, _read, _write, keeps_rows=True)
