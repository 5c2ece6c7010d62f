"""`eplb convert`: a placement in one dialect in, the same placement in another out, or the reason why not."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from eplb_cli import files
from eplb_cli.dialects.registry import DIALECTS
from eplb_cli.errors import EplbError, OutputError, UsageError
from eplb_cli.findings import Finding, check_placement, raise_first
from eplb_cli.inputs import PlacementOptions, model_of
from eplb_cli.model import Model, find_model
from eplb_cli.placement import Placement
from eplb_cli.placement_file import read_placement


@dataclass(frozen=True)
class Converted:
    """What was written, and what the file left to guess."""

    placement: Placement
    dialect: str
    output: Path
    warnings: list[Finding]


def convert(source: str, output: Path, to: str, options: PlacementOptions) -> Converted:
    """Write the placement `source` to `output` in the dialect `to`.

    Raises:
        PlacementError: it cannot be read, misses an expert, or has something that `to` cannot say (EP117).
        OutputError: EP601, `output` exists; EP603 or EP604, it cannot be written.
    """
    dialect = DIALECTS[to]
    suffix = output.suffix.lower()
    if suffix not in dialect.suffixes:
        problem = f"{to} is written to {' or '.join(dialect.suffixes)}, and OUT is {output.name!r}"
        raise UsageError("EP001", problem, "rename OUT")
    hints = replace(options.hints, num_ranks=options.num_ranks, dialect=options.dialect)
    placement, warnings = read_placement(source, hints)
    raise_first(check_placement(placement))
    write_whole(output, dialect.write(placement, hints, suffix).encode())
    return Converted(placement, to, output, warnings)


def model_named(model: str | None, checkpoint: Path | None) -> Model | None:
    """The model that `--model` or `--checkpoint` says: its config.json, or the layers of its shards.

    Raises:
        EplbError: there is no such model, or the directory shows none.
    """
    if model is not None:
        return find_model(model)
    if checkpoint is None:
        return None
    try:
        return find_model(str(checkpoint))
    except EplbError as error:
        if error.code != "EP118":
            raise
    from eplb_cli.checkpoint import open_shards

    return model_of(open_shards(checkpoint))


def write_whole(path: Path, content: bytes) -> None:
    """A new file that appears whole or not at all. Raises EP601 where it exists, EP603, EP604."""
    if os.path.lexists(path):
        raise OutputError("EP601", f"{path} exists", "remove it, or choose another OUT")
    files.replace_file(path, content)
