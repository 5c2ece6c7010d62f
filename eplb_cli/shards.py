"""Writing a tree that appears whole or not at all.

All files are written in a staging directory beside DST, which is locked while in use. One rename
publishes it. Working files (job, outcomes, progress) live in `WORK` inside staging and are gone
before the rename.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from eplb_cli import files
from eplb_cli.errors import OutputError
from eplb_cli.output import OutputTree

WORK = ".eplb"
_OWNER = "owner.json"
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.EINVAL}


@dataclass(frozen=True)
class Staging:
    """A locked staging directory; `descriptor` holds the lock."""

    path: Path
    destination: Path
    descriptor: int

    @property
    def work(self) -> Path:
        """Where the files of the run itself are kept."""
        return self.path / WORK


def staging_path(destination: Path) -> Path:
    """The staging directory of a DST: hidden, beside it, on the same file system."""
    return destination.parent / f".{destination.name}.eplb-staging"


def real_path(path: Path) -> Path:
    """The path without links, `.` and `..`; a link that leads nowhere, or to itself, stays."""
    with files.writing(path):
        return Path(os.path.realpath(path))


def check_destination(source: Path, destination: Path) -> None:
    """Refuse a DST that is not free.

    Raises:
        OutputError: EP601, it exists and is no empty directory, or is the current one; EP602, it and SRC
            overlap; EP604, its parent is no directory.
    """
    src, dst = real_path(source), real_path(destination)
    if src == dst or src in dst.parents or dst in src.parents:
        raise OutputError("EP602", f"DST {destination} and SRC {source} overlap", "choose a DST outside SRC")
    if os.path.lexists(destination):
        with files.writing(destination):
            occupied = not destination.is_dir() or destination.is_symlink() or any(destination.iterdir())
        if occupied:
            raise OutputError(
                "EP601",
                f"{destination} exists and is not an empty directory",
                "remove it, or choose another DST",
            )
    if dst.exists() and Path().exists() and dst.samefile(Path()):
        hint = "name a new directory: the one you are in would be replaced under your feet"
        raise OutputError("EP601", f"{destination} is the current directory", hint)
    if not dst.parent.is_dir():
        raise OutputError("EP604", f"{dst.parent} is not a directory", "create it first")


def check_space(destination: Path, nbytes: int) -> None:
    """Refuse to start where DST does not fit. Raises EP603."""
    with files.writing(destination):
        status = os.statvfs(real_path(destination).parent)
    free = status.f_bavail * status.f_frsize
    if free < nbytes:
        raise OutputError(
            "EP603",
            f"{destination} needs {nbytes} bytes and its file system has {free}",
            "free some space, or choose another DST",
        )


@contextlib.contextmanager
def staging(destination: Path) -> Iterator[Staging]:
    """A fresh, locked staging directory, removed at the end unless it was published.

    Raises:
        OutputError: EP605, another run holds it; EP604 or EP603, it cannot be made.
    """
    destination = real_path(destination)
    path = staging_path(destination)
    descriptor = _lock_directory(path)
    held = Staging(path, destination, descriptor)
    try:
        _clear(path)
        with files.writing(path):
            files.attempt("mkdir", os.mkdir, held.work, 0o700)  # nobody else plants a link in it
        owner = json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode()
        files.write_file(held.work / _OWNER, owner, durable=False)
        yield held
    finally:
        _remove(path, descriptor)
        os.close(descriptor)


def _lock_directory(path: Path) -> int:
    """Make the directory if need be, and lock it: the one that is there, not one that was just removed."""
    while True:
        descriptor = _try_lock(path)
        if _is_at(path, descriptor):
            return descriptor
        os.close(descriptor)


def _try_lock(path: Path) -> int:
    with files.writing(path):
        try:
            files.attempt("mkdir", os.mkdir, path)
        except FileExistsError:
            _refuse_foreign(path)
        descriptor = files.attempt(
            "open", os.open, path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        )
    try:
        files.attempt("lock", fcntl.flock, descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise OutputError(
            "EP605", f"{path} is in use by {_owner(path)}", "wait for that run to end"
        ) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            os.close(descriptor)
            raise files.output_error(error, path) from error
    return descriptor


def _refuse_foreign(path: Path) -> None:
    """EP604 for a directory of somebody else, who could change what is written there before it is DST."""
    if path.lstat().st_uid != os.geteuid():
        raise OutputError("EP604", f"{path} belongs to another user", "remove it, or choose another DST")


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether the open directory is still the one of that name."""
    with contextlib.suppress(OSError):
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    return False


def _owner(path: Path) -> str:
    try:
        owner = json.loads(files.read_small_file(path / WORK / _OWNER, 1 << 16))
        return f"process {int(owner['pid'])} on {owner['host']!s}"
    except Exception:  # noqa: BLE001 - the other run may be at any point of its life
        return "another process"


def _clear(path: Path) -> None:
    """Remove what an earlier run left."""
    with files.writing(path), os.scandir(path) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                files.attempt("rmtree", shutil.rmtree, entry.path)
            else:
                files.attempt("unlink", os.unlink, entry.path)


def _remove(path: Path, descriptor: int) -> None:
    """Remove staging, if it is still there under its own name; never raises."""
    if _is_at(path, descriptor):
        shutil.rmtree(path, ignore_errors=True)


def create_files(stage: Staging, output: OutputTree) -> None:
    """Create every shard with its header and all its space. Raises OutputError."""
    for file in output.files:
        path = stage.path / file.name
        descriptor = files.create(path, file.nbytes)
        try:
            files.write_from(descriptor, memoryview(file.header), 0, path)
        finally:
            os.close(descriptor)


def publish(stage: Staging, *, durable: bool) -> None:
    """Make staging DST, in one rename that never replaces anything. Raises OutputError."""
    with files.writing(stage.path):
        files.attempt("rmtree", shutil.rmtree, stage.work)
    if durable:
        files.sync_directory(stage.path)
    try:
        files.attempt("rename", os.rename, stage.path, stage.destination)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise OutputError("EP601", f"{stage.destination} has come to exist meanwhile") from error
        raise files.output_error(error, stage.destination) from error
    if durable:
        files.sync_directory(stage.destination.parent)
