"""Single files that commands write: where they may lie, and how they appear. `-` is stdout.

An output is absent or a regular file, which is replaced by a whole one and leaves its mode to it. Everything
else is refused: a device, a fifo or a socket would be gone for all who use it, and a link would let
whoever planted it choose what is replaced (the system's own protection of links in /tmp does not reach
renames).
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from eplb_cli import files
from eplb_cli.cli.options import Format
from eplb_cli.errors import OutputError, UsageError
from eplb_cli.progress import come_of_it
from eplb_cli.render.text import write

STDOUT = Path("-")


def check_outputs(
    outputs: Sequence[Path | None],
    output_format: Format,
    *,
    inputs: Iterable[str] = (),
    sources: Iterable[Path | None] = (),
    destination: Path | None = None,
    replace: bool,
) -> None:
    """Refuse outputs that cannot be, before any work is done.

    Args:
        outputs: None where there is none.
        inputs: names of files that are read.
        sources: directories that are only read.
        destination: a directory that is published whole.
        replace: whether a file that is there may be replaced.

    Raises:
        UsageError: EP001, a directory, a file that is read, or two things for one place.
        OutputError: EP602, inside one of these; EP601 or EP604, what is there is not to be replaced.
    """
    read, taken = {Path(name).resolve() for name in inputs}, set()
    directories = [(source, "only read") for source in sources] + [(destination, "published whole")]
    for path in filter(None, outputs):
        if path != STDOUT and path.is_dir():
            raise UsageError("EP001", f"{path} is a directory", "name a file in it")
        place = path if path == STDOUT else path.parent.resolve() / path.name
        if place in taken or place in read:
            raise UsageError("EP001", f"{path} would be written over", "name another file")
        taken.add(place)
        if path == STDOUT:
            continue
        for directory, what in directories:
            if directory is not None and _is_inside(place, directory):
                problem = f"{path} is inside {directory}, which is {what}"
                raise OutputError("EP602", problem, "name another place")
        files.require_replaceable(path, replace=replace)
    if STDOUT in taken and output_format is Format.json:
        raise UsageError("EP001", "both --format json and - are for stdout", "name a file, or leave one out")


def write_output(path: Path, content: str, *, replace: bool) -> None:
    """Write a file that `check_outputs` found possible: it is there whole, or as it was before.

    Raises:
        OutputError: EP601, EP603 or EP604.
    """
    if path == STDOUT:
        write(sys.stdout, content)
        return
    files.require_replaceable(path, replace=replace)
    before = _identity(path)
    try:
        files.replace_file(path, content.encode("utf-8", "backslashreplace"))
    finally:
        if _identity(path) != before:
            come_of_it.set(f"{path} is written")


def _is_inside(place: Path, directory: Path) -> bool:
    """Whether a path leads into a directory, whatever the two are called."""
    with contextlib.suppress(OSError):
        return any(parent.exists() and parent.samefile(directory) for parent in place.parents)
    return False


def _identity(path: Path) -> tuple[int, int] | None:
    with contextlib.suppress(OSError):
        status = path.lstat()
        return status.st_dev, status.st_ino
    return None
