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
import socket
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from eplb_cli import files
from eplb_cli.errors import EplbError, OutputError, WorkerError
from eplb_cli.output.journal import journals
from eplb_cli.output.tree import OutputFile, OutputTree

WORK = ".eplb"
_OWNER = "owner.json"
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.EINVAL}


@dataclass(frozen=True)
class Staging:
    """A locked staging directory; `descriptor` holds the lock, `resumes` says that an earlier run left it."""

    path: Path
    destination: Path
    descriptor: int
    resumes: bool = False

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
    _require_free(destination)
    if dst.exists() and Path().exists() and dst.samefile(Path()):
        hint = "name a new directory: the one you are in would be replaced under your feet"
        raise OutputError("EP601", f"{destination} is the current directory", hint)
    if not dst.parent.is_dir():
        raise OutputError("EP604", f"{dst.parent} is not a directory", "create it first")


def _require_free(destination: Path) -> None:
    """EP601 unless DST can appear: it is not there, or an empty directory."""
    if os.path.lexists(destination):
        with files.writing(destination):
            occupied = not destination.is_dir() or destination.is_symlink() or any(destination.iterdir())
        if occupied:
            raise OutputError(
                "EP601",
                f"{destination} exists and is not an empty directory",
                "remove it, or choose another DST",
            )


def check_space(stage: Staging, output: OutputTree) -> None:
    """Refuse to start where DST does not fit, with what an earlier run has left of it. Raises EP603."""
    with files.writing(stage.path):
        status = os.statvfs(stage.path)
        there = sum(entry.stat(follow_symlinks=False).st_blocks * 512 for entry in os.scandir(stage.path))
    free = status.f_bavail * status.f_frsize
    if free + there < output.own_nbytes:
        raise OutputError(
            "EP603",
            f"{stage.destination} needs {output.own_nbytes} bytes and its file system has {free}",
            "free some space, or choose another DST",
        )


@contextlib.contextmanager
def staging(destination: Path, *, resume: bool = False) -> Iterator[Staging]:
    """A locked staging directory: a fresh one, or with `resume` the one that an earlier run has left.

    It is removed at the end, but not where an error that may pass ends a run whose journals say what is
    done already: then the hint of the error says how to go on.

    Raises:
        OutputError: EP605, another run holds it; EP604 or EP603, it cannot be made.
    """
    destination = real_path(destination)
    path = staging_path(destination)
    descriptor = _lock_directory(path)
    is_kept = False
    try:
        resumes = resume and bool(journals(path / WORK))
        held = Staging(path, destination, descriptor, resumes)
        _clear(path / WORK if resumes else path, but=journals(path / WORK) if resumes else ())
        with files.writing(path), contextlib.suppress(FileExistsError):
            files.attempt("mkdir", os.mkdir, held.work, 0o700)  # nobody else plants a link in it
        owner = json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode()
        files.write_file(held.work / _OWNER, owner, durable=False)
        yield held
    except EplbError as error:
        is_kept = _can_be_resumed(error) and bool(journals(path / WORK))
        if is_kept:
            kept = f"what was done is kept in {path}: --resume goes on from it"
            error.hint = "; ".join(filter(None, [error.hint, kept]))
        raise
    finally:
        if not is_kept:
            _remove(path, descriptor)
        os.close(descriptor)


def _can_be_resumed(error: EplbError) -> bool:
    """Whether what is written is good, and the same inputs may do another time."""
    if isinstance(error, OutputError):
        return error.code != "EP606"  # nobody knows what the disk has
    return isinstance(error, WorkerError) or error.code in {"EP201", "EP305"}


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
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with files.writing(path):
            descriptor = files.attempt("open", os.open, path, flags)
        try:
            _lock(path, descriptor)
        except EplbError:
            os.close(descriptor)
            raise
    except EplbError:
        with contextlib.suppress(OSError):  # that it is empty says that no run has begun in it
            path.rmdir()
        raise
    return descriptor


def _lock(path: Path, descriptor: int) -> None:
    try:
        files.attempt("lock", fcntl.flock, descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        problem = f"{path} is in use by {_owner(path)}"
        raise OutputError("EP605", problem, "wait for that run to end") from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise files.output_error(error, path) from error


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


def _clear(path: Path, but: Collection[Path] = ()) -> None:
    """Remove what an earlier run left, but for some files."""
    with files.writing(path), os.scandir(path) as entries:
        for entry in entries:
            if Path(entry.path) in but:
                continue
            if entry.is_dir(follow_symlinks=False):
                files.remove_tree(Path(entry.path))
            else:
                files.attempt("unlink", os.unlink, entry.path)


def _remove(path: Path, descriptor: int) -> None:
    """Remove staging, if it is still there under its own name; never raises."""
    if _is_at(path, descriptor):
        with contextlib.suppress(OSError):
            files.remove_tree(path)


def create_files(stage: Staging, output: OutputTree) -> list[int]:
    """Create every shard with its header and all its space, or link it.

    Returns:
        The numbers of the files that are the same as another and could not be linked to it.

    Raises:
        OutputError: EP603 or EP604.
    """
    own = {file.name: file for file in output.files if file.same_as is None}
    there = [stage.path / name for name, file in own.items() if _is_whole(stage.path / name, file)]
    _clear(stage.path, but=[stage.work, *there])
    unlinked = []
    for number, file in enumerate(output.files):
        path = stage.path / file.name
        if file.same_as is not None:
            if files.link(stage.path / output.files[file.same_as].name, path):
                continue
            unlinked.append(number)
        descriptor = files.open_output(path) if path in there else files.create(path, file.nbytes)
        _write_header(descriptor, path, file)
    return unlinked


def _is_whole(path: Path, file: OutputFile) -> bool:
    """Whether an earlier run has made a file, with all its space."""
    with contextlib.suppress(OSError):
        status = path.lstat()
        return stat.S_ISREG(status.st_mode) and status.st_size == file.nbytes
    return False


def _write_header(descriptor: int, path: Path, file: OutputFile) -> None:
    try:
        files.write_from(descriptor, memoryview(file.header), 0, path)
    finally:
        os.close(descriptor)


def publish(stage: Staging, *, durable: bool) -> None:
    """Make staging DST, in one rename that never replaces anything. Raises OutputError."""
    _require_free(stage.destination)
    with files.writing(stage.path):
        files.remove_tree(stage.work)
    if durable:
        files.sync_directory(stage.path)
    try:
        files.attempt("rename", os.rename, stage.path, stage.destination)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise OutputError("EP601", f"{stage.destination} has come to exist meanwhile") from error
        raise files.output_error(error, stage.destination) from error
    if durable:
        try:
            files.sync_directory(stage.destination.parent)
        except OutputError as error:
            problem = f"{stage.destination} is there and whole, but its name may not survive a power failure"
            raise OutputError("EP606", f"{problem}: {error.message}", "sync the file system") from error
