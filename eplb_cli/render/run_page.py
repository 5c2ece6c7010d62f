"""What `reshard` prints beside the plan: what the run took, what it proved and what loads the result."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from rich.console import Console

from eplb_cli.render.page import heading, show_list, table
from eplb_cli.render.text import (
    format_bytes,
    format_rate,
    format_runs,
    format_seconds,
    plural,
    printable,
)
from eplb_cli.report.report import RunReport

_COLUMNS = ["", "time", "bytes", "rate", ""]
_STEPS = {
    "plan": "inputs read, moves planned",
    "compare": "other tensors of all ranks",
    "create": "files of their full size",
    "resume": "what was there, read again",
    "move": "the lines under it",
    "prove": "digests compared",
    "commit": "eplb.json, then the rename",
}
"""The parts of "total" in `RunReport.seconds`, in their order."""

_PARTS = {
    "start": "starting workers",
    "transfer": "each row to its place",
    "verify": "each row read back",
    "sync": "waiting for the disk",
    "finish": "files reopened",
}
"""The parts of "move"."""

_SHOWN_S = 0.005
"""Less than that would be printed as no time at all."""

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
    _show_hosts(console, run)
    heading(console, "time, and the parts that it adds up from")
    console.print(table(_COLUMNS, _tree(run), words=(0, 4)))
    heading(console, "busy while bytes moved, side by side")
    busy = [_line(run, stage, stage, "") for stage in _ACTIVITIES if run.seconds.get(stage)]
    console.print(table(_COLUMNS[:-1], [line[:-1] for line in busy]))
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


def _show_hosts(console: Console, run: RunReport) -> None:
    """One line for each of several hosts."""
    if not run.hosts:
        return
    heading(console, "per host")
    lines = [
        (
            str(host.host),
            printable(host.name),
            format_runs(host.old_ranks),
            format_runs(host.new_ranks),
            format_bytes(host.sent_bytes),
            format_bytes(host.received_bytes),
            format_bytes(host.written_bytes),
        )
        for host in run.hosts
    ]
    columns = ["host", "name", "old ranks", "new ranks", "sent", "received", "in DST"]
    console.print(table(columns, lines, words=(1,)))
    console.print(f"between hosts {format_bytes(run.cross_host_bytes)}, of rows and other tensors")


Line = tuple[str, str, str, str, str]


def _tree(run: RunReport) -> Iterator[Line]:
    """The whole, its steps, and the parts of the one that has some: each level adds up to the one above."""
    yield _line(run, "total", "total", "")
    steps = _shown(run, _STEPS)
    for step in steps:
        yield _line(run, step, f"{_branch(step, steps)}{step}", _STEPS[step])
        if step == "move":
            parts = _shown(run, _PARTS)
            stem = "│  " if step != steps[-1] else "   "
            for part in parts:
                is_start_of_none = part == "start" and run.backend == "file"
                meaning = "files opened" if is_start_of_none else _PARTS[part]
                yield _line(run, part, f"{stem}{_branch(part, parts)}{part}", meaning)


def _shown(run: RunReport, names: Iterable[str]) -> list[str]:
    return [name for name in names if run.seconds.get(name, 0.0) >= _SHOWN_S]


def _branch(name: str, names: Sequence[str]) -> str:
    return "└─ " if name == names[-1] else "├─ "


def _line(run: RunReport, name: str, label: str, meaning: str) -> Line:
    seconds, nbytes = run.seconds[name], run.stage_bytes.get(name)
    if nbytes is None:
        return label, format_seconds(seconds), "", "", meaning
    return label, format_seconds(seconds), format_bytes(nbytes), format_rate(nbytes, seconds), meaning


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
