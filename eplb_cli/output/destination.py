"""Where DST will be, where it is made, and whether it may be there."""

from __future__ import annotations

import os
from pathlib import Path

from eplb_cli import files
from eplb_cli.errors import OutputError


def real_path(path: Path) -> Path:
    """The path without links, `.` and `..`; a link that leads nowhere, or to itself, stays."""
    with files.writing(path):
        return Path(os.path.realpath(path))


def staging_path(destination: Path) -> Path:
    """The staging directory of a DST: hidden, beside it, on the same file system."""
    return destination.parent / f".{destination.name}.eplb-staging"


def check_destination(source: Path, destination: Path) -> None:
    """Refuse a DST that is not free.

    Raises:
        OutputError: EP601, it exists and is no empty directory, or is the current one; EP602, it and SRC
            overlap; EP604, its parent is no directory.
    """
    src, dst = real_path(source), real_path(destination)
    if src == dst or src in dst.parents or dst in src.parents:
        raise OutputError("EP602", f"DST {destination} and SRC {source} overlap")
    require_free(destination)
    if dst.exists() and Path().exists() and dst.samefile(Path()):
        hint = "name a new directory: the one you are in would be replaced under your feet"
        raise OutputError("EP601", f"{destination} is the current directory", hint)
    if not dst.parent.is_dir():
        raise OutputError("EP604", f"{dst.parent} is not a directory", "create it first")


def require_free(destination: Path) -> None:
    """EP601 unless DST can appear: it is not there, or an empty directory."""
    if os.path.lexists(destination):
        with files.writing(destination):
            occupied = not destination.is_dir() or destination.is_symlink() or any(destination.iterdir())
        if occupied:
            raise OutputError(
                "EP601",
                f"{destination} exists and is not an empty directory",
            )
