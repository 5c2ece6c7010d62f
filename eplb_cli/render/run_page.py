"""What `reshard` prints beside the plan: what the run took, what it proved and what loads the result."""

from __future__ import annotations

from rich.console import Console

from eplb_cli.render.page import heading, show_list, table
from eplb_cli.render.text import format_bytes, format_rate, format_seconds, plural
from eplb_cli.report.report import RunReport

_COLUMNS = ["", "time", "bytes", "rate"]
_ACTIVITIES = {
    "read": "reading files",
    "digest": "digests",
    "write": "writing files",
    "exchange": "the exchange",
    "wait": "waiting",
}
"""What `RunReport.seconds` has of moving, and its name in a sentence."""

MAX_WORKERS = 8
"""Workers whose peak memory is listed one by one."""


def show_run(console: Console, run: RunReport) -> None:
    """Print the steps, what was busy while bytes moved, the proof, the memory, and how an engine loads it."""
    heading(console, "steps")
    steps = [step for step in run.seconds if step not in _ACTIVITIES]
    console.print(table(_COLUMNS, [_line(run, step) for step in steps]))
    heading(console, "busy while bytes moved, side by side")
    console.print(table(_COLUMNS, [_line(run, stage) for stage in _ACTIVITIES if run.seconds.get(stage)]))
    console.print()
    console.print(f"bound by {_ACTIVITIES[run.bound_by]}, {run.busy:.0%} busy")
    if run.exchange_hidden is not None:
        console.print(f"exchange {run.exchange_hidden:.0%} hidden behind files")
    console.print(f"between workers {format_bytes(run.wire_bytes)}")
    if run.linked_bytes:
        console.print(f"written once for all ranks, which saved {format_bytes(run.linked_bytes)}")
    console.print(_memory(run.peak_anonymous_bytes))
    console.print(_proof(run))
    show_list(console, "notes", run.notes)
    show_list(console, "how an engine loads it", run.serving)


def _line(run: RunReport, name: str) -> tuple[str, str, str, str]:
    seconds, nbytes = run.seconds[name], run.stage_bytes.get(name)
    if nbytes is None:
        return name, format_seconds(seconds), "", ""
    return name, format_seconds(seconds), format_bytes(nbytes), format_rate(nbytes, seconds)


def _memory(peaks: list[int]) -> str:
    """Each worker's peak, or the range of many."""
    if not peaks:
        return "peak memory unknown"
    if len(peaks) <= MAX_WORKERS:
        return f"peak memory per worker {', '.join(map(format_bytes, peaks))}"
    least, most = format_bytes(min(peaks)), format_bytes(max(peaks))
    return f"peak memory per worker {least} to {most}, over {plural(len(peaks), 'worker')}"


def _proof(run: RunReport) -> str:
    proved = f"{run.rows_proved:,} of {plural(run.rows_total, 'row')} proved against SRC"
    return proved if run.verified else f"not verified: {proved}"
