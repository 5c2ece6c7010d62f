"""`eplb reshard --dry-run`: what a run does before it writes, and what it would find in the place of DST."""

from __future__ import annotations

from eplb_cli.errors import EplbError
from eplb_cli.output.destination import real_path, staging_path
from eplb_cli.output.shard_files import check_space
from eplb_cli.output.staging import WORK
from eplb_cli.progress import ProgressBar, silent
from eplb_cli.report.report import Report
from eplb_cli.run.preparing import Planned, plan_request
from eplb_cli.run.request import AnyRequest
from eplb_cli.run.resume import written_before


def dry_run(request: AnyRequest, progress: ProgressBar = silent, *, full: bool = False) -> Report:
    """The report of a run on what it would move; nothing is written.

    Raises:
        EplbError: what ends a run before its first byte moves.
    """
    planned = plan_request(request, progress, compare=False, full=full)
    if planned.report.nothing_to_do:
        return planned.report
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
    """Whether DST has room, and a run could go on with what is there of it.

    Raises:
        OutputError: EP603, it does not fit.
        PlanError: EP305, what an earlier run has left is for other inputs.
    """
    destination, prepared = real_path(planned.request.destination), planned.prepared
    path = staging_path(destination)
    check_space(path, prepared.output, destination)
    if planned.request.resume:
        written_before(prepared, path / WORK)
