"""A placement in one dialect in, the same placement in another out, or the reason why not."""

from __future__ import annotations

from dataclasses import replace
from os import PathLike
from pathlib import Path

import numpy as np

from eplb_cli.errors import UsageError
from eplb_cli.files import write_whole
from eplb_cli.placements.dialects.dialect import Dialect
from eplb_cli.placements.dialects.registry import dialect_called
from eplb_cli.placements.findings import Finding, check_placement, raise_first
from eplb_cli.placements.hints import NO_HINTS, Hints
from eplb_cli.placements.placement import Placement
from eplb_cli.placements.read import read_placement


def convert(
    source: str | PathLike[str], output: str | PathLike[str], to: str, hints: Hints = NO_HINTS
) -> tuple[Placement, list[Finding]]:
    """Write a placement in the dialect of another engine.

    Args:
        source: a file in any dialect, or one of the named maps "linear", "round_robin" and "trivial".
        output: a new file: .json, for "vllm" .jsonl too, for "tensorrt-llm" .yaml.
        to: "eplb", "vllm", "sglang", "tensorrt-llm", "ascend" or "deepseek".
        hints: what `source` leaves out, or `to` needs to know.

    Returns:
        What was written, and warnings about it.

    Raises:
        UsageError: EP001, there is no such dialect, or it has no files named like `output`.
        PlacementError: it cannot be read, misses an expert, or has something that `to` cannot say (EP117).
        OutputError: EP601, `output` exists; EP603 or EP604, it cannot be written.

    Examples:
        >>> placement, warnings = eplb_cli.convert("new.json", "new.yaml", "tensorrt-llm")
        >>> placement.num_slots
        20
    """
    placement, warnings, text = convert_text(source, Path(output), to, hints)
    write_whole(Path(output), text.encode())
    return placement, warnings


def convert_text(
    source: str | PathLike[str], output: Path | None, to: str, hints: Hints
) -> tuple[Placement, list[Finding], str]:
    """What `convert` does, with the text that it writes instead of the file.

    Args:
        output: the file that the text is for; None where it is for no file, and has the usual form.

    Raises:
        UsageError, PlacementError: as `convert`.
    """
    _suffix(output, dialect_called(to))
    placement, warnings = read_placement(source, hints)
    raise_first(check_placement(placement))
    placement, left_out, text = text_in_dialect(placement, output, to, hints)
    return placement, warnings + left_out, text


def text_in_dialect(
    placement: Placement, output: Path | None, to: str, hints: Hints
) -> tuple[Placement, list[Finding], str]:
    """A placement in a dialect: what that has of it, a warning where that is not all, and the text.

    Raises:
        UsageError, PlacementError: as `convert`.
    """
    dialect = dialect_called(to)
    suffix = _suffix(output, dialect)
    placement, left_out = _sayable(placement, dialect, hints)
    return placement, left_out, dialect.write(placement, hints, suffix)


def _suffix(output: Path | None, dialect: Dialect) -> str:
    """The suffix of OUT, or the usual one. Raises EP001."""
    suffix = dialect.suffixes[0] if output is None else output.suffix.lower()
    if output is not None and suffix not in dialect.suffixes:
        problem = f"{dialect.name} is written to {' or '.join(dialect.suffixes)}, and OUT is {output.name!r}"
        raise UsageError("EP001", problem, "rename OUT")
    return suffix


def _sayable(placement: Placement, dialect: Dialect, hints: Hints) -> tuple[Placement, list[Finding]]:
    """A placement without rows of MTP layers, with a warning, where the dialect counts none of those."""
    mtp = [] if hints.model is None or dialect.has_mtp else hints.model.mtp_layers
    if placement.layer_ids is None or not (is_mtp := np.isin(placement.layer_ids, mtp)).any():
        return placement, []
    numbers = ", ".join(map(str, placement.layer_ids[is_mtp]))
    message = f"left out: MTP layer {numbers}, for which {dialect.name} has no row"
    hint = "the engine places MTP experts in order"
    table, layer_ids = placement.physical_to_logical[~is_mtp], placement.layer_ids[~is_mtp]
    rest = replace(placement, physical_to_logical=table, layer_ids=layer_ids)
    return rest, [Finding("EP117", "warning", message, hint)]
