"""Bytes done while a command runs: a bar on a terminal, quiet lines elsewhere; always on stderr."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Self

from eplb_cli.progress import before_bytes
from eplb_cli.render.text import format_bytes, format_rate, format_seconds, printable, write

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

LINE_INTERVAL_S = 10.0
"""Seconds between two lines where there is no terminal."""


class Progress:
    """Context manager that shows how many of `total_bytes` are done, how fast, and how long the rest takes.

    Their clock starts with the first byte; until then it says what is waited for. Without a terminal there is
    a line each `LINE_INTERVAL_S` at most, and one at the end.
    """

    def __init__(self, total_bytes: int, description: str) -> None:
        self._total_bytes = total_bytes
        self._description = printable(description)
        self._done_bytes = 0
        self._began_s = 0.0
        self._spoke_s = 0.0
        self._bar: RichProgress | None = None

    def __enter__(self) -> Self:
        self._began_s = self._spoke_s = time.monotonic()
        if sys.stderr.isatty():
            self._bar = _started_bar(self._total_bytes, self._description, self._state(0.0))
        return self

    def update(self, done_bytes: int) -> None:
        """Say that `done_bytes` are done since the start; cheap enough for every poll."""
        self._done_bytes = done_bytes
        now_s = time.monotonic()
        if not done_bytes:
            self._began_s = now_s
        self._show(now_s, final=False)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or self._done_bytes or self._bar:  # an error before the first byte speaks for itself
            self._show(time.monotonic(), final=True)
        if self._bar:
            self._bar.stop()

    def _show(self, now_s: float, *, final: bool) -> None:
        state = self._state(now_s - self._began_s, final=final)
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=self._done_bytes, state=state)
        elif final or now_s - self._spoke_s >= LINE_INTERVAL_S:
            self._spoke_s = now_s
            write(sys.stderr, f"{self._description}: {state}\n")

    def _state(self, seconds: float, *, final: bool = False) -> str:
        """`1.23 GB of 4.56 GB, 512 MB/s, 6.50 s left`, and in the end `4.56 GB, 512 MB/s, 8.90 s`."""
        done, total = self._done_bytes, self._total_bytes
        if not done and not final and before_bytes.get():
            return before_bytes.get()
        parts = [format_bytes(done) if done == total else f"{format_bytes(done)} of {format_bytes(total)}"]
        if done and seconds > 0:
            parts.append(format_rate(done, seconds))
        if final:
            parts.append(format_seconds(seconds))
        elif done:
            parts.append(f"{format_seconds(seconds * max(total - done, 0) / done)} left")
        return ", ".join(parts)


def _started_bar(total_bytes: int, description: str, state: str) -> RichProgress:
    """A bar with one task; it never captures stdout, which carries the result."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[state]}", markup=False),
    )
    bar = RichProgress(*columns, console=Console(file=sys.stderr), redirect_stdout=False, expand=True)
    bar.add_task(description, total=total_bytes, state=state)
    bar.start()
    return bar
