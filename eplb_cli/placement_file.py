"""Placement files: read with suspicion in any dialect, written for people as `eplb-placement/1`."""

from __future__ import annotations

import json
from typing import Any

from eplb_cli.dialects import find_and_read
from eplb_cli.document import MAX_FILE_NBYTES, Document, NotReadableError, parse_document, read_bytes
from eplb_cli.errors import PlacementError
from eplb_cli.findings import Finding, raise_first
from eplb_cli.named_map import NAMED_MAPS, named_map
from eplb_cli.placement import NO_HINTS, Hints, Placement
from eplb_cli.placement_draft import Draft, Origin
from eplb_cli.placement_keys import FORMAT, MAP

__all__ = [
    "MAX_FILE_NBYTES",
    "NO_HINTS",
    "Hints",
    "draft_of_document",
    "format_placement",
    "parse_placement",
    "placement_from_json",
    "placement_to_json",
    "read_bytes",
    "read_draft",
    "read_placement",
]


def read_placement(source: str, hints: Hints = NO_HINTS) -> tuple[Placement, list[Finding]]:
    """The placement in the file `source`, or the named map `linear` or `round_robin`; and its warnings.

    Only its form is checked; `check_placement` and `check_pair` say whether it makes sense.

    Raises:
        PlacementError: of the first thing that is wrong.
        UsageError: EP001 for redundant experts in `round_robin`.
    """
    draft = read_draft(source, hints)
    return _usable(draft), draft.findings


def read_draft(source: str, hints: Hints = NO_HINTS) -> Draft:
    """A file or a named map as far as it is understood. Raises as `read_placement`, but not on content."""
    if source not in NAMED_MAPS:
        return draft_of_bytes(read_bytes(source), source, hints)
    draft = Draft(hints, Origin(source))
    draft.placement = draft.rankless = named_map(source, hints)
    return draft


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
    notes: list[Finding] = []

    def note(code: str, message: str) -> None:
        notes.append(Finding(code, "warning", message, file=document.name))

    try:
        dialect, content = find_and_read(document.value, hints, note)
    except PlacementError as error:
        draft = Draft(hints, Origin(document.name))
        draft.findings.append(Finding(error.code, "error", error.message, error.hint, document.name))
        return draft
    draft = Draft(hints, Origin(document.name, document.json_text, has_rows=dialect.keeps_rows))
    draft.findings += notes
    draft.understand(content)
    return draft


def placement_from_json(obj: object, name: str, hints: Hints = NO_HINTS) -> Placement:
    """The placement that parsed JSON describes; `name` says where that is from. Raises PlacementError."""
    draft = Draft(hints, Origin(name))
    draft.understand(obj)
    return _usable(draft)


def placement_to_json(placement: Placement) -> dict[str, Any]:
    """All that a placement says, as JSON."""
    slots = placement.slots_per_rank
    content: dict[str, Any] = {"format": FORMAT, "num_ranks": placement.num_ranks}
    if (slots != slots[0]).any():
        content["slots_per_rank"] = slots.tolist()
    content["num_logical_experts"] = placement.num_logical_experts
    if placement.layer_ids is not None:
        content["layer_ids"] = placement.layer_ids.tolist()
    return {**content, MAP: placement.physical_to_logical.tolist()}


def format_placement(placement: Placement) -> str:
    """The text of a placement file: a key a line, and then a layer a line."""
    content = placement_to_json(placement)
    rows = ",\n  ".join(json.dumps(row) for row in content.pop(MAP))
    keys = "".join(f'"{key}": {json.dumps(value)},\n ' for key, value in content.items())
    return f'{{{keys}"{MAP}": [\n  {rows}]}}\n'


def _usable(draft: Draft) -> Placement:
    """The placement of a draft without errors; raises the first error of any other."""
    raise_first(draft.findings)
    if draft.placement is None:
        raise PlacementError("EP103", f"{draft.origin.name} is not a placement")
    return draft.placement
