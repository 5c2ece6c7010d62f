"""A tree of which only the files of some ranks are in a directory: what one host of several has of it."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from eplb_cli.checkpoint.layout import Layout
from eplb_cli.checkpoint.manifest import Manifest
from eplb_cli.errors import CheckpointError
from eplb_cli.placements.spans import spans


def files_of(names: Iterable[str], layout: Layout) -> dict[str, int]:
    """The rank of each file, by its name; names that are none of a shard are not there."""
    return {name: found.rank for name in names if (found := layout.match_file(name)) is not None}


def part_there(path: Path, names: Collection[str], layout: Layout, manifest: Manifest) -> str:
    """What to do with a directory that has all files of some ranks and none of the others; else empty.

    Args:
        names: the files that are there.
    """
    ranks = files_of(manifest.files, layout)
    there = {rank for name, rank in ranks.items() if name in names}
    missing = {rank for name, rank in ranks.items() if name not in names}
    if not there or not missing or there & missing:
        return ""
    have, count = spans(sorted(there)), len(there | missing)
    noun = "rank" if len(there) == 1 else "ranks"
    return f"{path} has {noun} {have} of {count:,}: `eplb verify {path} --ranks {have}` proves those"


def ranks_away(names: Iterable[str], layout: Layout, manifest: Manifest) -> set[int]:
    """The ranks of a manifest of which no file is among the names."""
    return set(files_of(manifest.files, layout).values()) - set(files_of(names, layout).values())


def refuse_part(path: Path, names: Collection[str], layout: Layout, manifest: Manifest) -> None:
    """EP202 for the files of some ranks alone, where those of all are needed."""
    if hint := part_there(path, names, layout, manifest):
        away = sorted(ranks_away(names, layout, manifest))
        problem = f"{path} has no file of {'rank' if len(away) == 1 else 'ranks'} {spans(away)}"
        raise CheckpointError("EP202", problem, f"copy the files of all ranks there; {hint}")
