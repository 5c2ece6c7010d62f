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
from eplb_cli.checkpoint.staged import OWNER, staging_of
from eplb_cli.errors import OutputError, WorkerError
from eplb_cli.machine import find_process
from eplb_cli.output.lock import Owner, inherited_owner, owner_in, share

POLL_S = 0.05
_PR_SET_PDEATHSIG = 1


def tie(job: Path, generations: int) -> Path:
    """Tie this process to the command whose job it is, or end it.

    It ends at once where it has not inherited the lock of the directory that the job is in, or where it does
    not descend from the process that has it; and later as soon as that process or its own parent has ended.

    Args:
        job: the job's file, beside that of the owner, in staging.
        generations: 1 for a child of the command, 2 for a child of that.

    Returns:
        The staging directory, open, as a path through its descriptor: another one that takes its name is
        never reached.
    """
    die_with_parent()
    parent = os.getppid()
    staging = staging_of(job)
    try:
        held = Path(f"/proc/self/fd/{files.open_directory(staging)}")
    except OutputError as error:
        sys.exit(error.message)
    owner = inherited_owner(held / job.parent.relative_to(staging) / OWNER)
    if owner is None:
        sys.exit(f"{staging} is not held by what started this process")
    if not _descends(owner, generations):
        sys.exit(f"process {owner.pid}, which started the run, has ended")
    threading.Thread(target=_end_with, args=(owner, parent), daemon=True).start()
    return held


def adopt(job: Path, run: str) -> Path:
    """The same for a process that something else has started, and that takes the job of a command.

    It holds the directory from here on, as the processes do that inherit it.

    Args:
        run: what the owner's file has to say.

    Raises:
        WorkerError: EP404, the command is gone, or there is another one.
    """
    staging = staging_of(job)
    held = Path(f"/proc/self/fd/{files.open_directory(staging)}")
    path = held / job.parent.relative_to(staging) / OWNER
    share(path, files.open_output(path))  # for as long as this process is there
    owner = owner_in(path)
    if owner is None or owner.run != run or not owner.is_running():
        problem = f"the command that this worker is for has left {staging}"
        raise WorkerError("EP404", problem, "its own message, on this host, says why")
    threading.Thread(target=_end_with, args=(owner, os.getppid()), daemon=True).start()
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
