"""What ties a process to the command that started it: it lives no longer, and writes for no other run.

This is what such a process runs before anything that takes long to import, so that it imports little.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path

from eplb_cli import files
from eplb_cli.checkpoint.staged import OWNER
from eplb_cli.errors import OutputError
from eplb_cli.machine import find_process
from eplb_cli.output.lock import Owner, inherited_owner

POLL_S = 0.05
_PR_SET_PDEATHSIG = 1


def tie(job: Path, generations: int) -> Path:
    """Tie this process to the command whose job it is, or end it.

    It ends at once where it has not inherited the lock of the directory that the job is in, or where it does
    not descend from the process that has it; and later as soon as that process or its own parent has ended.

    Args:
        job: the job's file, in the directory of the run's own files in staging.
        generations: 1 for a child of the command, 2 for a child of that.

    Returns:
        The staging directory, open, as a path through its descriptor: another one that takes its name is
        never reached.
    """
    die_with_parent()
    parent = os.getppid()
    try:
        held = Path(f"/proc/self/fd/{files.open_directory(job.parents[1])}")
    except OutputError as error:
        sys.exit(error.message)
    owner = inherited_owner(held / job.parent.name / OWNER)
    if owner is None:
        sys.exit(f"{job.parents[1]} is not held by what started this process")
    if not _descends(owner, generations):
        sys.exit(f"process {owner.pid}, which started the run, has ended")
    threading.Thread(target=_end_with, args=(owner, parent), daemon=True).start()
    return held


def die_with_parent() -> None:
    """Ask the kernel to kill this process when the one that started it dies: the quick way."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _descends(owner: Owner, generations: int) -> bool:
    """Whether this process was started by the owner, which has not ended."""
    process = find_process("self")
    for _ in range(generations):
        process = process and find_process(process.parent)
    return process is not None and (process.pid, process.start) == (owner.pid, owner.start)


def _end_with(owner: Owner, parent: int) -> None:
    """End this process, whatever it is at, when the owner or the parent has ended: the sure way."""
    while owner.is_running() and os.getppid() == parent:
        time.sleep(POLL_S)
    os._exit(1)
