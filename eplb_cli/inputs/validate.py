"""Placement files checked with all that is known beside them."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from eplb_cli.errors import UsageError
from eplb_cli.inputs.checking import Checking
from eplb_cli.inputs.found import find_files
from eplb_cli.inputs.options import NO_OPTIONS, PlacementOptions, expert_size
from eplb_cli.placements.choice import EngineName
from eplb_cli.placements.findings import Finding
from eplb_cli.values import dataclass

if TYPE_CHECKING:
    from eplb_cli.report.balance import Balances


@dataclass(frozen=True)
class Gates:
    """What a placement has to keep to besides; None for whatever is not asked.

    Attributes:
        load: a load dump, which has to be of its layers and experts.
        max_imbalance: the most that the busiest rank may have in any layer under the load, over the mean.
        max_moved_bytes: the most that may go from rank to rank on the way from OLD.
        expert_nbytes: bytes of an expert, for that, where neither a model nor shards say them.
        engine: what has to take it as its map.
    """

    load: str | None = None
    max_imbalance: float | None = None
    max_moved_bytes: int | None = None
    expert_nbytes: int | None = None
    engine: EngineName | None = None

    def require_used(self, old: str | None, checkpoint: Path | None) -> None:
        """Refuse what is about something that is not there. Raises EP001."""
        limit, moved = self.max_imbalance, self.max_moved_bytes
        if limit is not None and self.load is None:
            problem = "--max-imbalance is of a load, and there is none"
            raise UsageError("EP001", problem, "add --load LOAD")
        if limit is not None and not 1 <= limit < math.inf:
            problem = f"--max-imbalance is {limit:g}, and 1 is perfect balance"
            raise UsageError("EP001", problem, "say 1 or more")
        if moved is not None and old is None:
            problem = "--max-moved-bytes is of the way from OLD, and there is none"
            raise UsageError("EP001", problem, "add --against OLD")
        if self.expert_nbytes is not None and moved is None:
            problem = "--expert-bytes is for --max-moved-bytes, which is not there"
            raise UsageError("EP001", problem, "add it")
        if self.expert_nbytes is not None and checkpoint is not None:
            raise UsageError("EP001", "--checkpoint and --expert-bytes both say sizes", "leave one out")


NO_GATES = Gates()


@dataclass(frozen=True, eq=False)
class Checked:
    """What a check of placements comes to.

    Attributes:
        findings: in the order of the files.
        files: those that were checked; in the place of a directory, its own.
        skipped: files of directories that are no placements.
        load: all placements without errors under the load, OLD first; None without a load.
    """

    findings: list[Finding]
    files: tuple[str, ...]
    skipped: tuple[str, ...] = ()
    load: Balances | None = None


def validate(  # noqa: PLR0913 - each of them is an option of its own
    files: Sequence[str | PathLike[str]],
    *,
    against: str | PathLike[str] | None = None,
    checkpoint: str | PathLike[str] | None = None,
    options: PlacementOptions = NO_OPTIONS,
    load: str | PathLike[str] | None = None,
    max_imbalance: float | None = None,
    max_moved_bytes: int | None = None,
    expert_nbytes: int | None = None,
    engine: EngineName | None = None,
) -> list[Finding]:
    """Say all that is wrong with placements at once.

    Args:
        files: placement files, directories of them, named maps, or "-" for what stdin has.
        against: OLD: check too that it can be turned into each of them.
        checkpoint: shards whose layers, ranks and slots each of them has to have; with `against`, OLD has to.
        options: what the files may leave out.
        load: a load dump, which has to be of their layers and experts.
        max_imbalance: the most that the busiest rank may have in any layer under the load, over the mean.
        max_moved_bytes: the most that may go from rank to rank on the way from OLD.
        expert_nbytes: bytes of an expert, for that, where neither a model nor shards say them.
        engine: "vllm", "sglang", "tensorrt-llm" or "ascend", which has to take each of them as its map.

    Returns:
        Findings in the order of the files; errors make a placement unusable, or unfit for what is asked.

    Raises:
        PlacementError: EP101, a file cannot be read; EP128, a directory has none; any code where `against` or
            the load is not usable.
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
    dump = None if load is None else os.fspath(load)
    gates = Gates(dump, max_imbalance, max_moved_bytes, expert_nbytes, engine)
    return check(names, old, source, options, gates).findings


def check(
    names: Sequence[str],
    old: str | None,
    checkpoint: Path | None,
    options: PlacementOptions,
    gates: Gates = NO_GATES,
) -> Checked:
    """As `validate`, with the files that were meant, and the placements under the load."""
    gates.require_used(old, checkpoint)
    found = find_files(names)
    options.require_used(old, found.files)
    if old is None and options.old_num_ranks is not None:
        raise UsageError("EP001", "--old-num-ranks is of OLD, and there is none", "add --against OLD")
    judging, moving, shards = None, None, None
    if checkpoint is not None:
        from eplb_cli.checkpoint.shards import open_shards

        shards = open_shards(checkpoint)
    if gates.load is not None:
        from eplb_cli.inputs.load import given_load

        given = given_load(gates.load, options.model, checkpoint)
        judging = given.judging(() if shards is None else shards.layers.beside, gates.max_imbalance)
    if gates.max_moved_bytes is not None:
        from eplb_cli.inputs.moved import Moving

        size = expert_size(gates.expert_nbytes, options.model)
        moving = Moving(gates.max_moved_bytes, size, shards)
    options = options if shards is None else options.beside(shards)
    checking = Checking(found.files, old, shards, options, gates.engine, moving, judging)
    findings = list(checking.findings())
    return Checked(findings, found.files, found.skipped, None if judging is None else judging.balances)
