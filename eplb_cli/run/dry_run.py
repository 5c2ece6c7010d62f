"""`eplb reshard --dry-run`: what a run does before it writes, and what it would find in the place of DST."""

from __future__ import annotations

from eplb_cli.errors import EplbError
from eplb_cli.output.commit import check_carried
from eplb_cli.progress import ProgressBar, silent
from eplb_cli.report.report import Report
from eplb_cli.run.meeting import meeting
from eplb_cli.run.preparing import Planned, plan_request
from eplb_cli.run.request import AnyRequest, require_usable
from eplb_cli.transfer.resume import try_destination


def dry_run(request: AnyRequest, progress: ProgressBar = silent, *, full: bool = False) -> Report:
    """The report of a run on what it would move; nothing is written.

    Raises:
        EplbError: what ends a run before its first byte moves.
    """
    require_usable(request)
    with meeting(request) as crew:
        if crew.hosts.count > 1:
            from eplb_cli.run.finishing import agreed_before

            if agreed := agreed_before(request, progress, crew, full=full):
                return agreed.report
        planned = plan_request(request, progress, compare=False, full=full, crew=crew)
        if planned.report.nothing_to_do:
            return planned.report
        error = _tried(planned)
        if any(crew.hosts.gather(b"1" if error else b"", "room for DST")):
            # With the other tensors that are written once, DST is smaller, or the one that was begun.
            planned = plan_request(request, progress, full=full, crew=crew)
            if error := _tried(planned):
                raise error
        check_carried(planned.prepared.checkpoint.shards.to_carry())
        crew.hosts.gather(b"", "tried")  # no host says that all is well where it is not on another
        return planned.report


def _tried(planned: Planned) -> EplbError | None:
    """What is wrong with the place of DST, and may not be where tensors are written once."""
    request, node = planned.request, planned.crew.hosts.node
    try:
        try_destination(planned.prepared, request.destination, resume=request.resume, node=node)
    except EplbError as error:
        if error.code not in {"EP305", "EP603"}:
            raise
        return error
    return None
