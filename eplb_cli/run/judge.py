"""Who ends a command whose disk does not answer: its parent, which touches no disk itself.

A thread that waits for a frozen file system cannot be killed, and a process with such a thread does not end,
whatever it is told. So the command goes on in a child, and what the shell has started only looks on: at how
many calls to the file system the child has begun, and how many have come back.

    shell ──► judge ──► command ──► torchrun ──► workers
                └─ counts ─┘

Workers are judged by the command, which sees their bytes; the judge sees whether the command itself stands.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import sys
import threading
import time
from typing import NoReturn

from eplb_cli import files
from eplb_cli.errors import WorkerError
from eplb_cli.interrupts import handled, interrupts
from eplb_cli.run.leash import die_with_parent
from eplb_cli.run.relay import Relay

POLL_S = 0.1
REAP_S = 1.0
"""How long the child may take to die of SIGKILL: one whose disk does not answer dies when that does."""

_FIRST_OF_INTERRUPTS = 2
"""Where in the shared memory they are, behind the two numbers of calls."""


def go_on_judged(timeout_s: float, hint: str) -> None:
    """Go on in a child of this process, which waits for it and ends as it does; only the child returns.

    Where there are threads already, as in a program that calls the command line, it does nothing: a child
    would have none of them, and their locks for good. Nor does it in a child that is judged already.

    Args:
        timeout_s: seconds after which a call to the file system counts as one that does not come back, if
            no other comes back meanwhile. While no call is out the child computes, for as long as it likes.
        hint: what to do then.

    Raises:
        WorkerError: EP403, in the parent. The child is killed, and not waited for if it cannot die.
    """
    if threading.active_count() > 1 or files.calls.are_counted:
        return
    counts = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("q")
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [*handled(), signal.SIGCHLD])
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    interrupts.share(counts[_FIRST_OF_INTERRUPTS:])
    relay = Relay()
    judge, child = os.getpid(), os.fork()
    if not child:
        _end_with(judge)
        interrupts.leave_counting()
        relay.in_command()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        files.count_calls(counts)
        return
    relay.in_judge()
    try:
        _wait(child, relay, counts, timeout_s, hint)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with(parent: int) -> None:
    """Let the kernel kill this process when its parent dies, which it may have done already."""
    die_with_parent()
    if os.getppid() != parent:
        os._exit(1)


def _wait(child: int, relay: Relay, counts: memoryview, timeout_s: float, hint: str) -> None:
    """End as the child does, or raise EP403.

    The child, which a terminal tells as well, is told of the first signal; whether there is a second one
    this process knows alone, and the child can see it.
    """
    relayed = handled()
    came_back, idle_s, looked = -1, 0.0, time.monotonic()
    while idle_s <= timeout_s:
        came = signal.sigtimedwait([*relayed, signal.SIGCHLD], POLL_S)
        _end_like(child, relay)
        if came is not None and came.si_signo != signal.SIGCHLD:
            interrupts.count()
            os.kill(child, came.si_signo)
        now = time.monotonic()
        # A pause of the machine, or of this process, is none of the disk.
        idle_s, looked = idle_s + min(now - looked, 5 * POLL_S), now
        if counts[1] != came_back or counts[0] == counts[1]:
            came_back, idle_s = counts[1], 0.0
    os.kill(child, signal.SIGKILL)
    _reap(child)
    raise WorkerError("EP403", f"no progress for {timeout_s:g} s: the file system does not answer", hint)


def _end_like(child: int, relay: Relay) -> None:
    """End this process if the child has ended, with its exit code or by its signal."""
    ended, status = os.waitpid(child, os.WNOHANG)
    if not ended:
        return
    relay.finish()
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        os._exit(code)  # the child has said all that was to be said
    _die_of(-code)


def _die_of(number: int) -> NoReturn:
    """End this process by a signal."""
    with contextlib.suppress(OSError):  # of SIGKILL, which nobody handles
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
    os.kill(os.getpid(), number)
    os._exit(128 + number)


def _reap(child: int) -> None:
    """Wait a moment for a child that was killed."""
    give_up = time.monotonic() + REAP_S
    while not os.waitpid(child, os.WNOHANG)[0] and time.monotonic() < give_up:
        time.sleep(POLL_S / 10)
