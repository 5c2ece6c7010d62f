"""What commands print: results on stdout, progress on stderr."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from eplb_cli import render
from eplb_cli.cli.options import Format
from eplb_cli.progress import is_quiet

if TYPE_CHECKING:
    from eplb_cli.report.report import Report
    from eplb_cli.report.written import Written


NOTHING_TO_DO = "nothing to do: OLD and NEW are the same (`reshard --copy` copies SRC all the same)\n"

FINISHED = (
    "DST is there on all hosts: they had proved and agreed on it before, and only a rename was missing\n"
)

NOTHING_BUT_NAMES = (
    "nothing to do: NEW is OLD by other names, so OLD will do (`reshard --copy` copies SRC all the same)\n"
)


def print_written(what: str, done: Written, output_format: Format) -> None:
    """What `shard`, `merge` or `bake` has made."""
    from dataclasses import asdict

    for warning in done.warnings:
        render.print_warning(warning, is_grave=warning in done.misread)
    if output_format is Format.json:
        render.print_json({"format": f"eplb-{what}/1", **asdict(done), "output": str(done.output)})
    else:
        render.print_written(what, done)


def print_report(report: Report, output_format: Format, *, full: bool) -> None:
    """What a plan moves, or a run has moved."""
    is_json = output_format is Format.json
    if is_json or report.nothing_to_do or not sys.stdout.isatty():  # on a terminal the page has them
        print_warnings(report)
    if is_json:
        from eplb_cli.report.report import report_json

        render.print_json(report_json(report))
    elif report.is_finished:
        sys.stdout.write(FINISHED)
    elif report.nothing_to_do:
        sys.stdout.write(NOTHING_TO_DO if report.relabelled is None else NOTHING_BUT_NAMES)
        if report.load:
            render.print_balances(report.load)
    else:
        render.print_report(report, full=full)


def print_host(report: Report) -> None:
    """What one of several hosts has done, where another one prints the report of all."""
    run = report.run
    if run is not None and run.hosts:
        own = run.hosts[run.host]
        render.print_note(
            f"host {own.host} of {len(run.hosts)}: {len(own.new_ranks)} of {len(report.ranks)} ranks are in "
            f"{own.output}; host 0 has the report"
        )


def print_warnings(report: Report) -> None:
    """What a report warns of, on stderr."""
    misread = report.run.misread if report.run else []
    for warning in report.warnings:
        render.print_warning(warning, is_grave=warning in misread)


@contextlib.contextmanager
def progress_bar(total_nbytes: int, description: str) -> Iterator[Callable[[int], None]]:
    """What a command shows while bytes move; nothing where there are none, or with `-q`."""
    if total_nbytes == 0 or is_quiet.get():
        yield lambda _: None
        return
    with render.Progress(total_nbytes, description) as bar:
        yield bar.update
