"""A directory that one run holds: its command, and every process that the command has started.

The command's lock is on the directory itself, and goes along when it is renamed. The processes of a run
inherit another one, on the file in which the command says who it is, as their standard input (`torchrun`
closes everything else, and Python wants no directory there). The kernel lets go of it when the last of them
has ended, so that a command that was killed leaves its directory held for as long as anybody may write there.

Where a file system has no locks, none of this is told from a directory that is free.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from eplb_cli import files
from eplb_cli.checkpoint.staged import HOST_WORK, MAX_OWNER_NBYTES
from eplb_cli.errors import EplbError, OutputError
from eplb_cli.formats.reading import json_value
from eplb_cli.machine import find_process
from eplb_cli.progress import command

STDIN = 0
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.EINVAL}


@contextlib.contextmanager
def locked(path: Path, owner: Path) -> Iterator[int]:
    """Make a directory if need be, and hold it; the descriptor of the lock.

    Args:
        owner: the file in which whoever holds it says so, see `write_owner`.

    Raises:
        OutputError: EP605, another run holds it; EP604 or EP603, it cannot be made.
    """
    with files.closing(_lock_directory(path, owner)) as descriptor:
        yield descriptor


class Owner(NamedTuple):
    """The command that holds a directory: its process as /proc has it; `start` is 0 without /proc.

    `run` is of the hosts that write together, the same on all of them, and empty where one is alone; `node`
    is which of them the command is on.
    """

    pid: int
    start: int
    host: str
    run: str = ""
    node: int = 0

    def is_running(self) -> bool:
        """Whether that very process has not ended, as far as this machine can tell."""
        found = find_process(self.pid)
        return found is not None and found.start == self.start


def write_owner(owner: Path, run: str = "", node: int = 0) -> None:
    """Say who holds the lock, and what command it runs. Raises OutputError."""
    this = find_process("self")
    pid, start = (os.getpid(), 0) if this is None else (this.pid, this.start)
    said = {**Owner(pid, start, os.uname().nodename, run, node)._asdict(), "command": command.get()}
    content = json.dumps(said).encode()
    files.write_file(owner, content, durable=False)


@contextlib.contextmanager
def inheritable(owner: Path) -> Iterator[int]:
    """The locked file of the owner: whoever has it as standard input holds the directory, until it ends.

    Raises:
        OutputError: EP603 or EP604.
    """
    with files.closing(files.open_output(owner)) as descriptor:
        _lock(owner, descriptor, owner)
        yield descriptor


def share(owner: Path, descriptor: int) -> None:
    """Hold the file of an owner together with others, as long as it is open. Raises EP605."""
    _lock(owner, descriptor, owner, fcntl.LOCK_SH)


def inherited_owner(owner: Path) -> Owner | None:
    """Who started this process, if its standard input is this file, and locked; else None."""
    try:
        if not os.path.samestat(os.fstat(STDIN), owner.lstat()):
            return None
        _lock(owner, STDIN, owner)  # changes nothing where it is ours already
        return _parse_owner(os.pread(STDIN, MAX_OWNER_NBYTES, 0))
    except (OSError, ValueError, TypeError, KeyError, EplbError):
        return None


def is_at(path: Path, descriptor: int) -> bool:
    """Whether the open directory is still the one of that name."""
    with contextlib.suppress(OSError):
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    return False


def _lock_directory(path: Path, owner: Path) -> int:
    """Lock the directory that is there, not one that was just removed."""
    while True:
        descriptor = _try_lock(path, owner)
        if is_at(path, descriptor):
            return descriptor
        os.close(descriptor)


def _try_lock(path: Path, owner: Path) -> int:
    try:
        with files.writing(path):
            try:
                files.attempt("mkdir", os.mkdir, path)
            except FileExistsError:
                _refuse_foreign(path)
        descriptor = files.open_directory(path)
        try:
            _lock(path, descriptor, owner)
            for each in (owner, *owner.parent.glob(f"{HOST_WORK}*/{owner.name}")):
                _refuse_workers(path, each)
        except BaseException:
            os.close(descriptor)
            raise
    except BaseException:
        with contextlib.suppress(OSError):  # that it is empty says that no run has begun in it
            if path.lstat().st_uid == os.geteuid():
                path.rmdir()
        raise
    return descriptor


def _refuse_foreign(path: Path) -> None:
    """EP604 for a directory of somebody else, who could change what is written there before it is DST."""
    if path.lstat().st_uid != os.geteuid():
        raise OutputError("EP604", f"{path} belongs to another user", "remove it, or choose another DST")


def _lock(path: Path, descriptor: int, owner: Path, kind: int = fcntl.LOCK_EX) -> None:
    try:
        files.attempt("lock", fcntl.flock, descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        problem = f"{path} is in use by {_read_owner(owner)}"
        raise OutputError("EP605", problem) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise files.output_error(error, path) from error


def _refuse_workers(path: Path, owner: Path) -> None:
    """EP605 where the command that held the directory is gone, and a process that it started is not."""
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    if owner.parent.is_symlink():  # of somebody else; it is removed, and never followed
        return
    try:
        descriptor = files.attempt("open", os.open, owner, flags)
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.EISDIR}:
            return
        raise files.output_error(error, owner) from error
    with files.closing(descriptor):
        _lock(path, descriptor, owner)


def owner_in(owner: Path) -> Owner | None:
    """Who says in this file to hold the directory; None where nobody does."""
    try:
        return _parse_owner(files.read_small_file(owner, MAX_OWNER_NBYTES))
    except Exception:  # noqa: BLE001 - the other run may be at any point of its life
        return None


def _read_owner(owner: Path) -> str:
    said = owner_in(owner)
    if said is None:
        return "another process"
    is_gone = said.host == os.uname().nodename and said.start and not said.is_running()
    left = "a worker, not yet ended, of " if is_gone else ""
    return f"{left}process {said.pid} on {said.host}"


def _parse_owner(content: bytes) -> Owner:
    said = json_value(content, MAX_OWNER_NBYTES, partial(OutputError, "EP605"))
    pid, start, node = (int(said.get(key, 0)) for key in ("pid", "start", "node"))
    return Owner(pid, start, str(said["host"]), str(said.get("run", "")), node)
