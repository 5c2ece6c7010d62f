"""What `reshard` prints beside the plan: what the run took, what it proved and what loads the result."""

from __future__ import annotations

from rich.console import Console

from eplb_cli.render.page import heading, show_list, table
from eplb_cli.render.text import format_bytes, format_rate, format_seconds, plural
from eplb_cli.report import RunReport

MAX_WORKERS = 8
"""Workers whose peak memory is listed one by one."""


def show_run(console: Console, run: RunReport) -> None:
    """Print the stages, the proof, the memory, and how an engine loads the output."""
    heading(console, "stages")
    rows = [(stage, seconds, run.stage_bytes.get(stage)) for stage, seconds in run.seconds.items()]
    console.print(table(["", "time", "bytes", "rate"], [_stage(*row) for row in rows]))
    console.print()
    console.print(f"between workers {format_bytes(run.wire_bytes)}")
    console.print(_memory(run.peak_rss_bytes))
    console.print(_proof(run))
    show_list(console, "notes", run.notes)
    show_list(console, "how an engine loads it", run.serving)


def _stage(name: str, seconds: float, nbytes: int | None) -> tuple[str, str, str, str]:
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
