"""eplb-placement/1: all that a placement says, as JSON and as text for people."""

from __future__ import annotations

import json
from typing import Any

from eplb_cli.errors import PlacementError
from eplb_cli.placements.draft import Draft, Origin
from eplb_cli.placements.findings import raise_first
from eplb_cli.placements.hints import NO_HINTS, Hints
from eplb_cli.placements.keys import FORMAT, MAP
from eplb_cli.placements.placement import Placement


def placement_from_json(obj: object, name: str, hints: Hints = NO_HINTS) -> Placement:
    """The placement that parsed JSON describes; `name` says where that is from. Raises PlacementError."""
    draft = Draft(hints, Origin(name))
    draft.understand(obj)
    return usable(draft)


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
    """The text of a placement file, in the form eplb-placement/1: a key a line, and then a layer a line.

    Examples:
        >>> placement, _ = eplb_cli.read_placement("new.json")
        >>> _ = Path("copy.json").write_text(eplb_cli.format_placement(placement))
    """
    content = placement_to_json(placement)
    rows = ",\n  ".join(json.dumps(row) for row in content.pop(MAP))
    keys = "".join(f'"{key}": {json.dumps(value)},\n ' for key, value in content.items())
    return f'{{{keys}"{MAP}": [\n  {rows}]}}\n'


def usable(draft: Draft) -> Placement:
    """The placement of a draft without errors; raises the first error of any other."""
    raise_first(draft.findings)
    if draft.placement is None:
        raise PlacementError("EP103", f"{draft.origin.name} is not a placement")
    return draft.placement
