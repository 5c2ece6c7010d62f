"""`eplb convert`: a placement in one dialect in, the same placement in another out, or the reason why not."""

from __future__ import annotations

from pathlib import Path

from eplb_cli.errors import UsageError
from eplb_cli.files import write_whole
from eplb_cli.placements.dialects.registry import dialect_called
from eplb_cli.placements.findings import Finding, check_placement, raise_first
from eplb_cli.placements.hints import Hints
from eplb_cli.placements.placement import Placement
from eplb_cli.placements.read import read_placement


def convert(source: str, output: Path, to: str, hints: Hints) -> tuple[Placement, list[Finding]]:
    """Write the placement `source` to `output` in the dialect `to`; what it is, and the warnings about it.

    Raises:
        PlacementError: it cannot be read, misses an expert, or has something that `to` cannot say (EP117).
        OutputError: EP601, `output` exists; EP603 or EP604, it cannot be written.
    """
    dialect = dialect_called(to)
    suffix = output.suffix.lower()
    if suffix not in dialect.suffixes:
        problem = f"{to} is written to {' or '.join(dialect.suffixes)}, and OUT is {output.name!r}"
        raise UsageError("EP001", problem, "rename OUT")
    placement, warnings = read_placement(source, hints)
    raise_first(check_placement(placement))
    write_whole(output, dialect.write(placement, hints, suffix).encode())
    return placement, warnings
