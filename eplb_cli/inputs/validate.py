"""Placement files checked with all that is known beside them."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
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
from eplb_cli.placements.placement import Placement
from eplb_cli.placements.read import read_draft
from eplb_cli.placements.validate import findings_of
from eplb_cli.values import dataclass

if TYPE_CHECKING:
    from eplb_cli.checkpoint.shards import Shards
    from eplb_cli.inputs.load import Judging
    from eplb_cli.report.balance import Balances


@dataclass(frozen=True, eq=False)
class Checked:
    """What a check of placements comes to.

    Attributes:
        findings: in the order of the files.
        load: all placements without errors under the load, OLD first; None without a load.
    """

    findings: list[Finding]
    load: Balances | None = None


def validate(
    files: Sequence[str | PathLike[str]],
    *,
    against: str | PathLike[str] | None = None,
    checkpoint: str | PathLike[str] | None = None,
    options: PlacementOptions = NO_OPTIONS,
    load: str | PathLike[str] | None = None,
    max_imbalance: float | None = None,
) -> list[Finding]:
    """Say all that is wrong with placements at once.

    Args:
        files: placement files, or named maps.
        against: OLD: check too that it can be turned into each of them.
        checkpoint: shards whose layers, ranks and slots each of them has to have; with `against`, OLD has to.
        options: what the files may leave out.
        load: a load dump, which has to be of their layers and experts.
        max_imbalance: the most that the busiest rank may have in any layer under the load, over the mean.

    Returns:
        Findings in the order of the files; errors make a placement unusable, or unfit for the load.

    Raises:
        PlacementError: EP101, a file cannot be read; any code where `against` or the load is not usable.
        CheckpointError: the shards cannot be used.
        UsageError: EP001, the options contradict each other.

    Examples:
        >>> findings = eplb_cli.validate(["new.json"], against="old.json", checkpoint="src")
        >>> [(finding.severity, finding.code, finding.place) for finding in findings[:1]]
        [('warning', 'EP112', 'new.json:6')]
    """
    names = [os.fspath(file) for file in files]
    old = None if against is None else os.fspath(against)
    source = None if checkpoint is None else Path(checkpoint)
    return check(
        names, old, source, options, None if load is None else os.fspath(load), max_imbalance
    ).findings


def check(
    names: Sequence[str],
    old: str | None,
    checkpoint: Path | None,
    options: PlacementOptions,
    load: str | None = None,
    max_imbalance: float | None = None,
) -> Checked:
    """As `validate`, with the placements under the load."""
    options.require_used(old, names)
    if old is None and options.old_num_ranks is not None:
        raise UsageError("EP001", "--old-num-ranks is of OLD, and there is none", "add --against OLD")
    _require_limit(max_imbalance, load)
    given, shards = None, None
    if load is not None:
        from eplb_cli.inputs.load import given_load

        given = given_load(load, options.model, checkpoint)
    if checkpoint is not None:
        from eplb_cli.checkpoint.shards import open_shards

        shards = open_shards(checkpoint)
        options = options.beside(shards)
    further = () if shards is None else shards.layers.beside
    judging = None if given is None else given.judging(further, max_imbalance)
    findings = list(_findings(names, old, shards, options, judging))
    return Checked(findings, None if judging is None else judging.balances)


def _findings(
    names: Sequence[str],
    old: str | None,
    shards: Shards | None,
    options: PlacementOptions,
    judging: Judging | None,
) -> Iterator[Finding]:
    """What is found about OLD, and about one file after the other."""
    known = None
    if old is not None:
        known, warnings = _read_old(old, names, shards, options)
        yield from listed(warnings)
    for name in names:
        if old is None:
            first, draft = None, read_draft(name, _hints(name, shards, options))
        else:
            first, draft = draft_beside(known, old, name, options)
        found = findings_of(draft, first)
        yield from found
        if judging is None:
            continue
        if old is not None and first is not None:
            yield from judging.of_placement(old, first)
        if not any(finding.severity == "error" for finding in found):
            yield from judging.of_file(draft)


def _read_old(
    old: str, names: Sequence[str], shards: Shards | None, options: PlacementOptions
) -> tuple[Placement | None, list[Finding]]:
    """OLD, None where it is a map that has to be made for each file; and warnings."""
    known, warnings = read_alone(old, options) if shards is None else read_old(shards, old, names, options)
    if known is not None and shards is not None:
        compare_slots(known.slots_per_rank, Hints(slots_per_rank=shards.slots_per_rank))
    return known, warnings


def _require_limit(limit: float | None, load: str | None) -> None:
    """EP001 for a limit of nothing, or one that no placement keeps."""
    if limit is None:
        return
    if load is None:
        raise UsageError("EP001", "--max-imbalance is of a load, and there is none", "add --load LOAD")
    if not 1 <= limit < math.inf:
        raise UsageError("EP001", f"--max-imbalance is {limit:g}, and 1 is perfect balance", "say 1 or more")


def _hints(name: str, shards: Shards | None, options: PlacementOptions) -> Hints:
    """For a file alone, or one that has to be the placement of shards."""
    hints = replace(options.hints, num_ranks=options.num_ranks, dialect=options.dialect)
    if shards is None:
        return hints
    if name in NAMED_MAPS:
        return named_hints(shards, name, options)
    layer_ids = np.array(shards.moe_layers, np.int64)
    return replace(hints, layer_ids=layer_ids, slots_per_rank=shards.slots_per_rank)
