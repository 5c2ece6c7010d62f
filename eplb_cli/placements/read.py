"""Placement files: read with suspicion, in any dialect."""

from __future__ import annotations

import os
from collections.abc import Mapping
from os import PathLike
from typing import Any

import numpy as np

from eplb_cli.errors import PlacementError, did_you_mean
from eplb_cli.formats.budget import NotReadableError
from eplb_cli.formats.document import Document, parse_document
from eplb_cli.formats.reading import read_bytes
from eplb_cli.placements.choice import NAMED_MAPS
from eplb_cli.placements.dialects.dialect import Note
from eplb_cli.placements.dialects.eplb import DIALECT as EPLB
from eplb_cli.placements.draft import Draft, Origin
from eplb_cli.placements.findings import Finding
from eplb_cli.placements.hints import NO_HINTS, Hints
from eplb_cli.placements.named_map import named_map
from eplb_cli.placements.own_format import usable
from eplb_cli.placements.placement import MAX_ENTRIES, Placement
from eplb_cli.progress import tell

_KINDS = "biuf"
"""Arrays whose items Python has too. A map of booleans or floats is none, and which item is not is told."""

_MOST_ITEM_NBYTES = 8


def read_placement(source: str | PathLike[str], hints: Hints = NO_HINTS) -> tuple[Placement, list[Finding]]:
    """Read a placement in any dialect; only its form is checked, `validate` says whether it makes sense.

    Args:
        source: a file, or one of the named maps "linear", "round_robin" and "trivial".
        hints: what the file may leave out.

    Returns:
        The placement, and warnings about it.

    Raises:
        PlacementError: the first thing that is wrong.
        UsageError: EP001, there are redundant experts in `round_robin`, or no such dialect.

    Examples:
        >>> placement, warnings = eplb_cli.read_placement("old.json")
        >>> placement.physical_to_logical.shape
        (3, 20)
        >>> hints = eplb_cli.Hints(num_ranks=2, num_logical_experts=4, num_layers=1)
        >>> eplb_cli.read_placement("linear", hints)[0].physical_to_logical.tolist()
        [[0, 1, 2, 3]]
    """
    draft = read_draft(os.fspath(source), hints)
    return usable(draft), draft.findings


def read_draft(source: str, hints: Hints = NO_HINTS) -> Draft:
    """A file or a named map as far as it is understood. Raises as `read_placement`, but not on content."""
    if source not in NAMED_MAPS:
        return draft_of_bytes(_content(source), source, hints)
    draft = Draft(hints, Origin(source))
    draft.placement = draft.rankless = named_map(source, hints)
    return draft


def _content(source: str) -> bytes:
    """The bytes of a placement file. Raises EP101, with what was meant where that shows."""
    try:
        return read_bytes(source)
    except PlacementError as error:
        hint = "" if os.path.lexists(source) else did_you_mean(source, NAMED_MAPS)
        if os.path.isdir(source):  # noqa: PTH112 - a name, as it is everywhere here
            hint = "of a directory of shards, name the eplb.json in it"
        if not hint:
            raise
        raise PlacementError(error.code, error.message, hint, error.where) from error


def parse_placement(
    text: bytes, name: str, hints: Hints = NO_HINTS
) -> tuple[Placement | None, list[Finding]]:
    """The placement that `text` describes, None after an error; and all findings about its form."""
    draft = draft_of_bytes(text, name, hints)
    return draft.placement, draft.findings


def draft_of_bytes(data: bytes, name: str, hints: Hints) -> Draft:
    """What can be understood of a placement file; `name` is the file of its findings."""
    try:
        return draft_of_document(parse_document(name, data), hints)
    except NotReadableError as error:
        draft = Draft(hints, Origin(name))
        draft.findings.append(Finding("EP102", "error", error.message, file=name, line=error.line))
        return draft


def draft_of_document(document: Document, hints: Hints) -> Draft:
    """What can be understood of a placement in whichever dialect it is."""
    tell("placement", str(document.name))
    notes: list[Finding] = []

    def note(code: str, message: str) -> None:
        notes.append(Finding(code, "warning", message, file=document.name))

    try:
        value = document.value if document.text else _as_lists(document.value)
        content = content_of(value, hints, note)
    except PlacementError as error:
        draft = Draft(hints, Origin(document.name))
        draft.findings.append(Finding(error.code, "error", error.message, error.hint, document.name))
        return draft
    draft = Draft(hints, Origin(document.name, document.text))
    draft.findings += notes
    draft.understand(content)
    return draft


def content_of(value: object, hints: Hints, note: Note) -> Mapping[str, Any]:
    """The content of an eplb-placement/1 file that says what a value of any dialect says.

    Raises:
        PlacementError: EP116, it is not of the dialect that is named, or of several with other layers; EP103,
            EP104 or EP109, it is not well-formed.
    """
    if hints.dialect in {None, EPLB.name} and EPLB.fits(value):
        tell("dialect", EPLB.name)
        return EPLB.read(value, hints, note)
    from eplb_cli.placements.dialects.find import find_dialect

    dialect = find_dialect(value, hints)
    tell("dialect", dialect.name)
    return dialect.read(value, hints, note)


def _as_lists(value: Any) -> Any:  # noqa: ANN401 - whatever a document holds
    """Arrays as lists, as JSON has them.

    Raises:
        PlacementError: EP104, an array is larger than any map, or JSON could not say what is in it.
    """
    if isinstance(value, np.ndarray):
        if value.size > MAX_ENTRIES:
            raise PlacementError("EP104", f"an array of {value.size:,} numbers is no map")
        if value.dtype.kind not in _KINDS or value.dtype.itemsize > _MOST_ITEM_NBYTES:
            raise PlacementError(
                "EP104", f"an array of {str(value.dtype)[:80]} is no map, which is of integers"
            )
        return value.tolist()
    if isinstance(value, dict):
        return {key: _as_lists(item) for key, item in value.items()}
    if isinstance(value, list) and any(isinstance(item, list | dict | np.ndarray) for item in value):
        return [_as_lists(item) for item in value]
    return value
