"""Placement files checked with all that is known beside them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path

import numpy as np

from eplb_cli.inputs.options import NO_OPTIONS, PlacementOptions, model_of
from eplb_cli.placements.choice import NAMED_MAPS
from eplb_cli.placements.findings import Finding
from eplb_cli.placements.hints import Hints
from eplb_cli.placements.validate import validate_files


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
    old = None if against is None else os.fspath(against)
    hints, old_hints = _hints(options, old, None if checkpoint is None else Path(checkpoint))
    return validate_files([os.fspath(file) for file in files], hints, old, old_hints)


def _hints(options: PlacementOptions, against: str | None, checkpoint: Path | None) -> tuple[Hints, Hints]:
    """Hints for the files, and for the one that they are checked against."""
    hints = replace(options.hints, num_ranks=options.num_ranks, dialect=options.dialect)
    old_ranks = options.old_num_ranks or (options.num_ranks if against in NAMED_MAPS else None)
    old_hints = replace(hints, num_ranks=old_ranks, dialect=options.old_dialect)
    if checkpoint is None:
        return hints, old_hints
    from eplb_cli.checkpoint.shards import open_shards

    shards = open_shards(checkpoint)
    layer_ids, model = np.array(shards.moe_layers, np.int64), model_of(shards)
    slots = shards.slots_per_rank
    hints = replace(hints, layer_ids=layer_ids, model=model, slots_per_rank=None if against else slots)
    return hints, replace(old_hints, layer_ids=layer_ids, model=model, slots_per_rank=slots)
