"""What is wrong with placement files: everything at once, each with file and line."""

from __future__ import annotations

from collections.abc import Sequence

from eplb_cli.placements.findings import Finding, check_pair, check_placement, listed, missing_experts
from eplb_cli.placements.hints import NO_HINTS, Hints
from eplb_cli.placements.placement import Placement
from eplb_cli.placements.read import read_draft, read_placement


def validate_files(
    files: Sequence[str],
    hints: Hints = NO_HINTS,
    against: str | None = None,
    against_hints: Hints = NO_HINTS,
) -> list[Finding]:
    """All findings about each of the files, and about the way to it from the placement `against`.

    What a file leaves out is as in `against`, or else as the hints say it.

    Raises:
        PlacementError: EP101 for a file that cannot be read; any code where `against` is not usable.
    """
    findings: list[Finding] = []
    old = None
    if against is not None:
        old, warnings = read_placement(against, against_hints)
        findings += listed(warnings)
        hints = hints.after(old)
    for name in files:
        findings += _findings_of(name, hints, old)
    return findings


def _findings_of(name: str, hints: Hints, old: Placement | None) -> list[Finding]:
    """The findings about one file, the most frequent ones shortened.

    Where only the ranks are wrong, the experts are looked at nevertheless.
    """
    draft = read_draft(name, hints)
    if draft.rankless is None:
        return listed(draft.findings)
    checks = list(missing_experts(draft.rankless))
    if draft.placement is not None:
        checks = check_placement(draft.placement)
    if old is not None:
        checks += check_pair(old, draft.rankless)
    return listed(draft.findings + draft.origin.locate(checks, draft.rankless))
