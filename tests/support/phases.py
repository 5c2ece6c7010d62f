"""Faults at a phase of a run: where a process makes a call to the file system of a kind, about a path."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from tests.support.faults import Fault, path_of


class SignalAt(Fault):
    """Send a signal to the process itself before its first call of an operation on a path, as `*/dst`."""

    def __init__(
        self,
        operation: str,
        pattern: str,
        number: signal.Signals = signal.SIGKILL,
        report: Path | None = None,
    ) -> None:
        super().__init__(-1, "kill", report)
        self._operation, self._pattern, self._signal = operation, pattern, number

    def __call__(self, operation: str, call: Callable[..., Any], *args: Any) -> Any:
        """Stands for `files.make_call`."""
        if self.hit is None and operation == self._operation:
            path = path_of(call, args[0] if args else None)
            if fnmatch(path, self._pattern):
                self.hit = (operation, path)
                if self.report is not None:
                    self.report.write_text("\n".join(self.hit))
                os.kill(os.getpid(), self._signal)
        return call(*args)


class Listing(Fault):
    """Lets every call through, and lists operations and paths in `report`."""

    def __init__(self, report: Path) -> None:
        super().__init__(-1, "kill", report)

    def __call__(self, operation: str, call: Callable[..., Any], *args: Any) -> Any:
        """Stands for `files.make_call`."""
        with self.report.open("a") as out:  # type: ignore[union-attr]
            out.write(f"{operation}\t{path_of(call, args[0] if args else None)}\n")
        return call(*args)
