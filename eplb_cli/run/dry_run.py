"""`eplb reshard --dry-run`: what a run does before it writes, and what it would find in the place of DST."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from eplb_cli import files
from eplb_cli.errors import EplbError
from eplb_cli.output.destination import real_path, staging_path
from eplb_cli.output.journal import journals, read_written
from eplb_cli.output.shard_files import check_space
from eplb_cli.output.staging import WORK
from eplb_cli.progress import ProgressBar, silent
from eplb_cli.report.report import Report
from eplb_cli.run.preparing import Planned, plan_request
from eplb_cli.run.request import AnyRequest


def dry_run(request: AnyRequest, progress: ProgressBar = silent, *, full: bool = False) -> Report:
    """The report of a run on what it would move; nothing is written.

    Raises:
        EplbError: what ends a run before its first byte moves.
    """
    planned = plan_request(request, progress, compare=False, full=full)
    try:
        _try_destination(planned)
    except EplbError as error:
        if error.code not in {"EP305", "EP603"}:
            raise
        # With the other tensors that are written once, DST is smaller, or the one that was begun.
        planned = plan_request(request, progress, full=full)
        _try_destination(planned)
    return planned.report


def _try_destination(planned: Planned) -> None:
    """Whether a run could write DST, and go on with what is there of it.

    Raises:
        OutputError: EP603, it does not fit; EP604, it cannot be written.
        PlanError: EP305, what an earlier run has left is for other inputs.
    """
    destination, prepared = real_path(planned.request.destination), planned.prepared
    path = staging_path(destination)
    _require_writable(path)
    check_space(path, prepared.output, destination)
    if planned.request.resume:
        read_written(journals(path / WORK), prepared.digest, len(prepared.new_places.rank))


def _require_writable(path: Path) -> None:
    """EP604 where a staging directory can neither be made nor used."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    with files.writing(path):
        with contextlib.suppress(FileNotFoundError):
            os.close(files.attempt("open", os.open, path, flags))
        if not os.access(path.parent, os.W_OK | os.X_OK):
            is_read_only = os.statvfs(path.parent).f_flag & os.ST_RDONLY
            number = errno.EROFS if is_read_only else errno.EACCES
            raise OSError(number, os.strerror(number))
