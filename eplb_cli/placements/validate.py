"""What is wrong with a placement file: everything at once, each with file and line."""

from __future__ import annotations

from eplb_cli.placements.draft import Draft
from eplb_cli.placements.findings import Finding, check_pair, check_placement, listed, missing_experts
from eplb_cli.placements.placement import Placement


def findings_of(draft: Draft, old: Placement | None = None) -> list[Finding]:
    """The findings about one file, and about the way to it from OLD; the most frequent ones shortened.

    Where only the ranks are wrong, the experts are looked at nevertheless.
    """
    if draft.rankless is None:
        return listed(draft.findings)
    checks = list(missing_experts(draft.rankless))
    if draft.placement is not None:
        checks = check_placement(draft.placement)
    if old is not None:
        checks += check_pair(old, draft.rankless)
    return listed(draft.findings + draft.origin.locate(checks, draft.rankless))
