"""Faults at the one door to the file system: the Nth call fails, does half of its work, or is the last.

A run that has no Nth call says so, and then all calls were tried.
"""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from eplb_cli import files
from eplb_cli.cli import entry
from eplb_cli.interrupts import SIGNALS

Kind = Literal["EIO", "ENOSPC", "EINTR", "short", "kill"]

_DESCRIPTORS = Path("/proc/self/fd")

HARMLESS = ("EINTR", "short")
"""After these a run goes on as if nothing had been."""


@dataclass
class Fault:
    """What to do to a call: number `number` of this process, from 0 on.

    Attributes:
        report: a file to write `hit` to, where this is a process of its own.
        hit: the operation and the path of the call it was, once it was made.
    """

    number: int
    kind: Kind
    report: Path | None = None
    hit: tuple[str, str] | None = None
    _count: Iterator[int] = field(default_factory=itertools.count, repr=False)

    def take_report(self) -> None:
        """Learn from the other process what was hit, and remove its report."""
        if self.report is not None and self.report.exists():
            operation, path = self.report.read_text().split("\n")
            self.hit = (operation, path)
            self.report.unlink()

    def __call__(self, operation: str, call: Callable[..., Any], *args: Any) -> Any:
        """Stands for `files.make_call`."""
        if next(self._count) != self.number:
            return call(*args)
        self.hit = (operation, path_of(call, args[0] if args else None))
        if self.report is not None:
            self.report.write_text("\n".join(self.hit))
        if self.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.kind == "short":
            return _half(operation, call, args)
        number = getattr(errno, self.kind)
        raise OSError(number, os.strerror(number))


class Recorder(Fault):
    """Lets every call through, and adds its operation and path to `calls`."""

    def __init__(self, calls: list[tuple[str, str]]) -> None:
        super().__init__(-1, "EIO")
        self._calls = calls

    def __call__(self, operation: str, call: Callable[..., Any], *args: Any) -> Any:
        """Stands for `files.make_call`."""
        self._calls.append((operation, path_of(call, args[0] if args else None)))
        return call(*args)


def path_of(call: Callable[..., Any], target: object) -> str:
    """The path behind the descriptor, the path or the open file that a call is about; else empty."""
    stream = getattr(call, "__self__", None)
    if stream is not None and hasattr(stream, "fileno"):
        target = stream.fileno()
    if isinstance(target, int):
        return str(Path(f"/proc/self/fd/{target}").readlink())
    if not isinstance(target, str | os.PathLike):
        return ""
    path = Path(target)
    if path.parts[:4] == _DESCRIPTORS.parts:
        path = (_DESCRIPTORS / path.parts[4]).readlink().joinpath(*path.parts[5:])
    return str(path)


def _half(operation: str, call: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    if operation == "read" and call is os.preadv:
        descriptor, (view,), offset = args
        return os.preadv(descriptor, [view[: (len(view) + 1) // 2]], offset)
    if operation == "write":
        descriptor, view, offset = args
        return os.pwrite(descriptor, view[: (len(view) + 1) // 2], offset)
    return call(*args)


class Ended(NamedTuple):
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str


def run_here(*arguments: object, fault: Fault | None = None) -> Ended:
    """Run a command as `main` would, in this process, with a fault."""
    made = files.make_call
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    argv, sys.argv = sys.argv, ["eplb", *map(str, arguments)]
    out, err, code = io.StringIO(), io.StringIO(), 0
    try:
        if fault is not None:
            files.make_call = fault
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            entry.main()
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        files.make_call = made
        sys.argv = argv
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return Ended(code, out.getvalue(), err.getvalue())


def expected_code(fault: Fault, destination: Path, *, by_worker: bool = False) -> set[int]:
    """The exit codes that a fault may end in: 0 where it does no harm, else those of what it hit."""
    operation, path = fault.hit or ("", "")
    if fault.kind == "kill":
        return {4} if by_worker else {-signal.SIGKILL}
    if fault.kind in HARMLESS or operation == "advise":
        return {0}
    if by_worker and path.endswith(".eplb-staging"):  # where it would say what is wrong
        return {4}
    if by_worker and "/.eplb/" in path:  # what a worker has to say, it says in files
        return {3, 4, 6}
    if path.endswith("/src/config.json"):  # it is looked at for what it says of sizes, and carried along
        return {0, 3}
    is_output = ".eplb-staging" in path or path in {str(destination), str(destination.parent)}
    return {6} if is_output else {3}


def num_open() -> int:
    """Descriptors of this process."""
    return len(list(Path("/proc/self/fd").iterdir()))
