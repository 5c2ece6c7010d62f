"""The placement file, `eplb-placement/1`: read with suspicion, written for people."""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Iterator
from typing import Any

from eplb_cli import files
from eplb_cli.errors import PlacementError
from eplb_cli.findings import Finding, raise_first
from eplb_cli.named_map import NAMED_MAPS, named_map
from eplb_cli.placement import NO_HINTS, Hints, Placement
from eplb_cli.placement_draft import FORMAT, MAP, Draft, Origin, draft_of_text

__all__ = [
    "MAX_FILE_NBYTES",
    "NO_HINTS",
    "Hints",
    "format_placement",
    "parse_placement",
    "placement_from_json",
    "placement_to_json",
    "read_bytes",
    "read_draft",
    "read_placement",
]

MAX_FILE_NBYTES = 64 << 20
"""Larger files are not read: ten bytes for each of the values that `parse_json` takes are enough."""


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
        return draft_of_text(read_bytes(source), source, hints)
    draft = Draft(hints, Origin(source))
    draft.placement = draft.rankless = named_map(source, hints)
    return draft


def parse_placement(
    text: bytes, name: str, hints: Hints = NO_HINTS
) -> tuple[Placement | None, list[Finding]]:
    """The placement that `text` describes, None after an error; and all findings about its form."""
    draft = draft_of_text(text, name, hints)
    return draft.placement, draft.findings


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


def read_bytes(path: str) -> bytes:
    """The content of a regular file, or of one that a link points at; pipes and devices are not read.

    Raises:
        PlacementError: EP101.
    """
    with _reading(path):
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        descriptor = files.attempt("open", os.open, path, flags)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise PlacementError("EP101", f"{path} is no regular file")
        if status.st_size > MAX_FILE_NBYTES:
            problem = f"has {status.st_size:,} bytes; more than {MAX_FILE_NBYTES:,} are not read"
            raise PlacementError("EP101", f"{path} {problem}")
        with _reading(path), open(descriptor, "rb", closefd=False) as stream:
            return files.attempt("read", stream.read, status.st_size)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _reading(path: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise PlacementError("EP101", f"{path} cannot be read: {reason}") from error


def _usable(draft: Draft) -> Placement:
    """The placement of a draft without errors; raises the first error of any other."""
    raise_first(draft.findings)
    if draft.placement is None:
        raise PlacementError("EP103", f"{draft.origin.name} is not a placement")
    return draft.placement
