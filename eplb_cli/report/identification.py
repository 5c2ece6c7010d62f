"""Which expert each row of some shards turned out to be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from eplb_cli.placements.placement import EMPTY, Placement
from eplb_cli.values import dataclass


@dataclass(frozen=True, eq=False)
class Identification:
    """The placement of some shards, told by their bytes.

    Attributes:
        path: the shards.
        against: the Hugging Face checkpoint whose experts they hold.
        placement: which expert each slot holds; `EMPTY` where the row is zeros.
        warnings: experts with the same bytes, of which the first was taken.
        output: the file that the placement was written to, if it was.
    """

    path: Path
    against: Path
    placement: Placement
    warnings: tuple[str, ...] = ()
    output: Path | None = None

    @property
    def num_empty(self) -> int:
        """Slots without an expert, over all layers."""
        return int((self.placement.physical_to_logical == EMPTY).sum())


def identification_json(found: Identification) -> dict[str, Any]:
    """An identification as `--format json` shows it."""
    placement = found.placement
    return {
        "format": "eplb-identification/1",
        "path": str(found.path),
        "against": str(found.against),
        "out": None if found.output is None else str(found.output),
        "num_ranks": placement.num_ranks,
        "num_layers": placement.num_layers,
        "num_slots": placement.num_slots,
        "num_logical_experts": placement.num_logical_experts,
        "empty_slots": found.num_empty,
        "warnings": list(found.warnings),
    }
