"""What is wrong with a placement file: everything at once, each with file and line."""

from __future__ import annotations

from eplb_cli.placements.draft import Draft
from eplb_cli.placements.engines import Engine, check_engine
from eplb_cli.placements.findings import Finding, check_pair, check_placement, missing_experts
from eplb_cli.placements.notes import notes_on
from eplb_cli.placements.placement import Placement


def findings_of(
    draft: Draft, old: Placement | None = None, engine: Engine | None = None, *, has_load: bool = False
) -> list[Finding]:
    """The findings about one file, the way to it from OLD, and what an engine can do with it.

    Where only the ranks are wrong, the experts are looked at nevertheless.
    """
    if draft.rankless is None:
        return draft.findings
    checks = list(missing_experts(draft.rankless))
    if draft.placement is not None:
        checks = check_placement(draft.placement)
    if old is not None:
        checks += check_pair(old, draft.rankless)
    if draft.placement is not None:
        checks += [] if engine is None else check_engine(draft.placement, engine, draft.hints)
        checks += notes_on(draft.placement, has_load=has_load)
    return draft.findings + draft.origin.locate(checks, draft.rankless)
