"""Whole commands in processes of their own, forked from a server that has loaded torch.

    tests ──► command (launcher) ──► agent, in torchrun's place ──► worker 0, worker 1, ...

Starting Python, torch and torchrun takes seconds; this takes a tenth of one, and the launcher, the workers
and the messages between them are the real ones. Any of these processes can have a fault.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.support.faults import Ended, Fault

_PRELOADED = [
    "numpy",
    "torch",
    "torch.distributed",
    "eplb_cli.cli",
    "eplb_cli.run.reshard",
    "eplb_cli.run.work",
    "eplb_cli.hosts.tcp_board",
]
_GIVE_UP_S = 60.0
"""Only ends a test that would hang; no result depends on it."""

LAUNCHER = "launcher"


def run_forked(
    directory: Path,
    arguments: list[object],
    faults: Mapping[str, Fault],
    interval_s: float = 30.0,
    second_s: float = 1.0,
) -> Ended:
    """Run a command to its end; its code is negative where a signal ended it.

    Args:
        directory: for what it says, apart from what it works on.
        faults: by process, `LAUNCHER` or the number of a worker.
        interval_s: of the journals. second_s: within which a second signal says to keep nothing.
    """
    says = (directory / "out", directory / "err")
    process = Forked(says, arguments, faults, interval_s, second_s)
    try:
        code = process.wait(_GIVE_UP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError("the command did not end") from None
    out, err = (path.read_text() for path in says)
    return Ended(code, out, err)


class Forked:
    """A command that was started, and may run somewhere else: what `subprocess.Popen` has of that name.

    Args:
        says: the files of what it says, and what it says on stderr.
        arguments, faults, interval_s, second_s: as for `run_forked`.
        enter: called in its process before anything else.
    """

    def __init__(
        self,
        says: tuple[Path, Path],
        arguments: list[object],
        faults: Mapping[str, Fault],
        interval_s: float = 30.0,
        second_s: float = 1.0,
        enter: Callable[[], None] | None = None,
    ) -> None:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # as the command does before it loads torch
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOADED)
        words = [str(argument) for argument in arguments]
        given = (says, words, dict(faults), interval_s, second_s, enter)
        self._process = context.Process(target=_command, args=given)
        self._process.start()
        self.pid = self._process.pid or 0

    def poll(self) -> int | None:
        """The exit code, None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float) -> int:
        """Wait for its end."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("command", timeout)
        return self._process.exitcode

    def kill(self) -> None:
        """End it."""
        self._process.kill()


def _command(
    says: tuple[Path, Path],
    arguments: list[str],
    faults: dict[str, Fault],
    interval_s: float,
    second_s: float,
    enter: Callable[[], None] | None,
) -> None:
    """Be the command."""
    from eplb_cli import files, interrupts
    from eplb_cli.cli import entry
    from eplb_cli.output import journal
    from eplb_cli.run import request, shared_others

    for number, path in enumerate(says, 1):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    if enter is not None:
        enter()
    journal.INTERVAL_S = interval_s
    interrupts.SECOND_S = second_s
    shared_others.LEAST_SHARED_NBYTES = 0
    request.LEAST_BUFFER_NBYTES = 1
    workers = {name: fault for name, fault in faults.items() if name != LAUNCHER}
    subprocess.Popen = lambda command, **options: Agent(command, workers, options)  # type: ignore[assignment,misc]
    if LAUNCHER in faults:
        files.make_call = faults[LAUNCHER]
    sys.argv = ["eplb", *arguments]
    code = 0
    try:
        entry.main()
    except SystemExit as end:
        code = int(end.code or 0)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class Agent:
    """Stands for the process of torchrun: forks the workers, says how they ended, ends all if one fails."""

    def __init__(self, command: list[str], faults: Mapping[str, Fault], options: Mapping[str, Any]) -> None:
        number = next(word for word in command if word.startswith("--nproc-per-node="))
        self._code: int | None = None
        self.pid = os.fork()
        if not self.pid:
            try:
                os.setpgid(0, 0)
                log = options["stdout"].fileno()
                for opened, kept in ((options["stdin"], 0), (log, 1), (log, 2)):
                    os.dup2(opened, kept)
                os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # as Popen does: connections are the command's
                _tie(command[-1])
                _supervise(int(number.partition("=")[2]), command[-1], faults, options["env"])
            finally:
                os._exit(1)
        with suppress(OSError):
            os.setpgid(self.pid, self.pid)

    def poll(self) -> int | None:
        """The exit code, None while it runs."""
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code

    def wait(self, timeout: float = _GIVE_UP_S) -> int:
        """Wait for its end."""
        give_up = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > give_up:
                raise subprocess.TimeoutExpired("agent", timeout)
            time.sleep(0.005)
        return self._code or 0


def _tie(job: str) -> None:
    """Be a child of the command, as `eplb_cli.run.torchrun` is, without the faults of the command."""
    from eplb_cli import files
    from eplb_cli.run.leash import tie

    files.make_call = files_make_call
    tie(Path(job), generations=1)


def _supervise(
    num_workers: int, job: str, faults: Mapping[str, Fault], environment: Mapping[str, str]
) -> None:
    """Be the agent."""
    from eplb_cli.run.torchrun import leave_ends

    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_DFL)
    workers = {}
    for number in range(num_workers):
        pid = os.fork()
        if not pid:
            try:
                _work(number, job, faults.get(str(number)), environment)
            finally:
                os._exit(1)
        workers[pid] = number
    failed = False
    while workers:
        pid, status = os.wait()
        number, code = workers.pop(pid), os.waitstatus_to_exitcode(status)
        if code and not failed:
            failed = True
            leave_ends(Path(job).parent, {number: code})
            for other in workers:
                os.kill(other, signal.SIGTERM)
    os._exit(int(failed))


def _work(number: int, job: str, fault: Fault | None, environment: Mapping[str, str]) -> None:
    """Be a worker."""
    from eplb_cli import files
    from eplb_cli.run import worker

    os.environ.update({**environment, "RANK": str(number), "LOCAL_RANK": str(number)})
    files.make_call = fault or files_make_call
    sys.argv = ["worker", job]
    os._exit(worker.main())


def files_make_call(operation: str, call: Any, *args: Any) -> Any:
    """`files.make_call` as it is without a fault."""
    del operation
    return call(*args)
