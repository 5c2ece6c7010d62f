"""The map as it is now, in a file that eplb reads as OLD or NEW: what EPLB has rearranged is never lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from eplb_cli.arrays import Int
from eplb_cli.files import replace_file
from eplb_cli.placements.own_format import format_placement
from eplb_cli.placements.placement import Placement


@dataclass(eq=False)
class CurrentMap:
    """The placement that an engine serves, and the file that says it.

    Attributes:
        path: the file; a reader sees the old one or the whole new one.
        placement: of DST, and then of what was rearranged since; layers that the engine does not have, as
            those of MTP, stay as they are in DST.
        layers: for each layer of the engine, its index in the placement.
    """

    path: Path
    placement: Placement
    layers: Sequence[int]

    def write(self) -> None:
        """Write the file. Raises OutputError."""
        replace_file(self.path, format_placement(self.placement).encode())

    def rearrange(self, rows: Int, layers: slice = slice(None)) -> None:
        """Take over the slots (layers, P) of some layers of the engine, of all of them by default."""
        table = self.placement.physical_to_logical.copy()
        table[list(self.layers)[layers]] = rows
        self.placement = replace(self.placement, physical_to_logical=table)
