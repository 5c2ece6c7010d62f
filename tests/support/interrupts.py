"""Signals in the middle of a command: at its Nth call, once, or twice within the second that counts."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eplb_cli.checkpoint.staged import OWNER, WORK
from eplb_cli.formats.safetensors_header import DATA_ALIGNMENT
from eplb_cli.interrupts import interrupts
from eplb_cli.machine import find_process
from tests.support.faults import Fault, path_of

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
APART_S = 0.5
"""Between two signals: more than what counts as one, less than what counts as no second."""


@dataclass
class Told(Fault):
    """Lets every call through, tells the command to end before one of them, and counts the bytes of rows.

    Attributes:
        signal_number: which signal. again: it comes twice, and this file is there afterwards.
        staging: where the command writes, of a fault in a worker: then its judge is told.
        nbytes: that were written to shards behind their headers.
    """

    signal_number: signal.Signals = signal.SIGTERM
    again: Path | None = None
    staging: Path | None = None
    nbytes: int = 0

    def __call__(self, operation: str, call: Callable[..., Any], *args: Any) -> Any:
        """Stands for `files.make_call`."""
        if operation == "write" and args[2] >= DATA_ALIGNMENT and path_of(call, args[0]).endswith("tensors"):
            self.nbytes += len(args[1])
        if next(self._count) == self.number:
            self.hit = (operation, path_of(call, args[0] if args else None))
            if self.report is not None:
                self.report.write_text("\n".join(self.hit))
            self._tell()
        return call(*args)

    def _tell(self) -> None:
        """Send the signal; what sends it again is started before, since the first one may interrupt this."""
        target = os.getpid() if self.staging is None else judge_of(self.staging)
        if self.again is not None and self.staging is None:
            threading.Thread(target=self._tell_again_here, daemon=True).start()
        elif self.again is not None:
            kill = f"kill -{self.signal_number.name[3:]} {target}; touch {self.again}"
            later = f"(sleep {APART_S}; {kill}) > /dev/null 2>&1 &"
            # By another process, of no group that is ended with a worker.
            os.spawnlp(os.P_WAIT, "setsid", "setsid", "sh", "-c", later)  # noqa: S606 - see above
        os.kill(target, self.signal_number)

    def _tell_again_here(self) -> None:
        """Two signals that nobody has looked at between them are one."""
        while not interrupts.cells[0]:
            time.sleep(0.001)
        time.sleep(0.01)
        os.kill(os.getpid(), self.signal_number)
        assert self.again is not None
        self.again.touch()


def judge_of(staging: Path) -> int:
    """The process that looks on at the command which writes there."""
    owner = json.loads((staging / WORK / OWNER).read_text())["pid"]
    process = find_process(owner)
    assert process is not None
    return process.parent
