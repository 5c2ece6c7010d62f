"""Placement files checked with all that is known beside them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from eplb_cli.errors import UsageError
from eplb_cli.inputs.old_and_new import draft_beside, named_hints, read_alone, read_old
from eplb_cli.inputs.options import NO_OPTIONS, PlacementOptions
from eplb_cli.placements.choice import NAMED_MAPS
from eplb_cli.placements.findings import Finding, listed
from eplb_cli.placements.hints import Hints
from eplb_cli.placements.keys import compare_slots
from eplb_cli.placements.read import read_draft
from eplb_cli.placements.validate import findings_of

if TYPE_CHECKING:
    from eplb_cli.checkpoint.shards import Shards


def validate(
    files: Sequence[str | PathLike[str]],
    *,
    against: str | PathLike[str] | None = None,
    checkpoint: str | PathLike[str] | None = None,
    options: PlacementOptions = NO_OPTIONS,
) -> list[Finding]:
    """Say all that is wrong with placements at once.

    Args:
        files: placement files, or named maps.
        against: OLD: check too that it can be turned into each of them.
        checkpoint: shards whose layers, ranks and slots each of them has to have; with `against`, OLD has to.
        options: what the files may leave out.

    Returns:
        Findings in the order of the files; those that are errors make a placement unusable.

    Raises:
        PlacementError: EP101, a file cannot be read; any code where `against` is not usable.
        CheckpointError: the shards cannot be used.
        UsageError: EP001, the options contradict each other.

    Examples:
        >>> findings = eplb_cli.validate(["new.json"], against="old.json", checkpoint="src")
        >>> [(finding.severity, finding.code, finding.place) for finding in findings[:1]]
        [('warning', 'EP112', 'new.json:6')]
    """
    names = [os.fspath(file) for file in files]
    old = None if against is None else os.fspath(against)
    options.require_used(old, names)
    if old is None and options.old_num_ranks is not None:
        raise UsageError("EP001", "--old-num-ranks is of OLD, and there is none", "add --against OLD")
    shards = None
    if checkpoint is not None:
        from eplb_cli.checkpoint.shards import open_shards

        shards = open_shards(Path(checkpoint))
        options = options.beside(shards)
    if old is not None:
        return _against(old, names, shards, options)
    return [found for name in names for found in findings_of(read_draft(name, _hints(name, shards, options)))]


def _against(old: str, names: list[str], shards: Shards | None, options: PlacementOptions) -> list[Finding]:
    """Findings about OLD, and about each file beside it."""
    known, warnings = read_alone(old, options) if shards is None else read_old(shards, old, names, options)
    if known is not None and shards is not None:
        compare_slots(known.slots_per_rank, Hints(slots_per_rank=shards.slots_per_rank))
    findings = listed(warnings)
    for name in names:
        first, draft = draft_beside(known, old, name, options)
        findings += findings_of(draft, first)
    return findings


def _hints(name: str, shards: Shards | None, options: PlacementOptions) -> Hints:
    """For a file alone, or one that has to be the placement of shards."""
    hints = replace(options.hints, num_ranks=options.num_ranks, dialect=options.dialect)
    if shards is None:
        return hints
    if name in NAMED_MAPS:
        return named_hints(shards, name, options)
    layer_ids = np.array(shards.moe_layers, np.int64)
    return replace(hints, layer_ids=layer_ids, slots_per_rank=shards.slots_per_rank)
