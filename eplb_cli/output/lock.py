"""A directory that one run holds. The lock is on the directory itself, and goes along when it is renamed."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from eplb_cli import files
from eplb_cli.errors import EplbError, OutputError
from eplb_cli.formats.reading import read_json

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


def write_owner(owner: Path) -> None:
    """Say who holds the lock. Raises OutputError."""
    content = json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode()
    files.write_file(owner, content, durable=False)


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
    with files.writing(path):
        try:
            files.attempt("mkdir", os.mkdir, path)
        except FileExistsError:
            _refuse_foreign(path)
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with files.writing(path):
            descriptor = files.attempt("open", os.open, path, flags)
        try:
            _lock(path, descriptor, owner)
        except EplbError:
            os.close(descriptor)
            raise
    except EplbError:
        with contextlib.suppress(OSError):  # that it is empty says that no run has begun in it
            path.rmdir()
        raise
    return descriptor


def _refuse_foreign(path: Path) -> None:
    """EP604 for a directory of somebody else, who could change what is written there before it is DST."""
    if path.lstat().st_uid != os.geteuid():
        raise OutputError("EP604", f"{path} belongs to another user", "remove it, or choose another DST")


def _lock(path: Path, descriptor: int, owner: Path) -> None:
    try:
        files.attempt("lock", fcntl.flock, descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        problem = f"{path} is in use by {_read_owner(owner)}"
        raise OutputError("EP605", problem) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise files.output_error(error, path) from error


def _read_owner(owner: Path) -> str:
    try:
        said = read_json(owner, 1 << 16, partial(OutputError, "EP605"))
        return f"process {int(said['pid'])} on {said['host']!s}"
    except Exception:  # noqa: BLE001 - the other run may be at any point of its life
        return "another process"
