"""Every call to the file system goes through here.

One seam has three uses: an error of the operating system becomes a coded error in one place, a test can
fail or end any single call (`attempt`), and whoever judges this process sees whether its calls come back.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import stat
import struct
import threading
from collections.abc import Callable, Iterator, MutableSequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from eplb_cli.errors import CheckpointError, EplbError, OutputError, Where, WorkerError

T = TypeVar("T")

MAX_OWN_FILE_NBYTES = 1 << 32
COPY_BLOCK_NBYTES = 1 << 20
"""Bytes moved at a time where the kernel cannot copy by itself: small enough for a core's cache."""

SPARE_DESCRIPTORS = 128
"""Descriptors that a process needs besides those of shards: libraries, sockets, the files of a run."""

_NO_CLONE = {
    errno.EXDEV,
    errno.EINVAL,
    errno.ENOSYS,
    errno.EOPNOTSUPP,
    errno.ENOTTY,
    errno.EBADF,
    errno.EPERM,
    errno.EACCES,
    errno.ETXTBSY,
}
_FICLONERANGE = 0x4020940D
_NO_LINK = {errno.EPERM, errno.EMLINK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EXDEV, errno.EACCES}
_NO_ALLOCATE = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}


class _Calls:
    """How many calls were begun, and how many have come back: entered and left by any thread."""

    def __init__(self, counts: MutableSequence[int] | memoryview[int]) -> None:
        self.counts = counts
        self.lock = threading.Lock()

    @property
    def are_counted(self) -> bool:
        """Whether another process sees them."""
        return isinstance(self.counts, memoryview)

    def __enter__(self) -> None:
        with self.lock:
            self.counts[0] += 1

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.counts[1] += 1


calls = _Calls([0, 0])
"""A `with` block of it is a call, or a few, that the disk may keep."""


def count_calls(counts: memoryview[int]) -> None:
    """Count in memory that another process sees: the calls that were begun, and those that have come back."""
    calls.counts = counts


def attempt(operation: str, call: Callable[..., T], *args: Any) -> T:  # noqa: ANN401 - whatever the call takes
    """Make one system call, again where a signal came between; `operation` names it."""
    while True:
        with calls.lock:  # as `with calls`, in half of its time
            calls.counts[0] += 1
        try:
            return make_call(operation, call, *args)
        except InterruptedError:
            continue
        finally:
            with calls.lock:
                calls.counts[1] += 1


def make_call(operation: str, call: Callable[..., T], *args: Any) -> T:  # noqa: ANN401 - as above
    """Make one system call once. Tests replace this function, to let any call fail or be the last."""
    del operation
    return call(*args)


def allow_open_files(count: int) -> None:
    """Raise the limit on open files to `count` shards, for this process and those that it starts.

    Raises:
        WorkerError: EP405, the system allows fewer.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = count + SPARE_DESCRIPTORS
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise WorkerError("EP405", f"{count:,} shards need {needed:,} open files, and {hard:,} are allowed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


@contextlib.contextmanager
def closing(descriptor: int) -> Iterator[int]:
    """Close a descriptor at the end of the block."""
    try:
        yield descriptor
    finally:
        os.close(descriptor)


class Stamp(NamedTuple):
    """What tells whether a file was written to: its bytes, and when that was last done."""

    nbytes: int
    mtime_ns: int


def stamp_of(descriptor: int) -> Stamp:
    """The stamp of an open file as it is now."""
    status = os.fstat(descriptor)
    return Stamp(status.st_size, status.st_mtime_ns)


@contextlib.contextmanager
def opened_source(
    path: Path | str, known: Stamp | None = None, *, follow_links: bool = False
) -> Iterator[int]:
    """Open a file of SRC for the block, and refuse at its end what is not the file that is known.

    Nothing else opens a file of SRC, so nothing is read, copied or cloned of one that was written to.

    Args:
        known: what the file was when its header was read; without it, what it is now.

    Raises:
        CheckpointError: EP220, the file changed; EP204 and EP201 as `open_source`.
    """
    with closing(open_source(path, follow_links=follow_links)) as descriptor:
        stamp = known or stamp_of(descriptor)
        yield descriptor
        if stamp_of(descriptor) != stamp:
            raise CheckpointError("EP220", f"{path} changed while it was read")


def open_source(path: Path | str, *, follow_links: bool = False) -> int:
    """Open a regular file for reading, never waiting for a writer, and through a link only where asked to.

    Raises:
        CheckpointError: EP204 for anything but a regular file, EP201 where it cannot be opened.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        descriptor = attempt("open", os.open, path, flags if follow_links else flags | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise not_regular(path, "a symbolic link") from error
        raise source_error(error, path) from error
    except ValueError as error:  # no file has a zero byte in its name
        raise CheckpointError("EP201", f"{path} cannot be read: {error}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise not_regular(path, "not a regular file")
    return descriptor


def not_regular(path: object, what: str) -> CheckpointError:
    """EP204 for `path`, which is `what` instead of a regular file."""
    return CheckpointError("EP204", f"{path} is {what}")


def source_error(error: OSError, path: object) -> CheckpointError:
    """EP201 for an error of the operating system while reading `path`."""
    problem = f"{path} cannot be read: {error.strerror or error}"
    return CheckpointError("EP201", problem, where=Where(str(path)))


def output_error(error: OSError, path: object) -> OutputError:
    """EP603 or EP604 for an error of the operating system while writing `path`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutputError("EP603", f"{path}: {error.strerror}", where=Where(str(path)))
    problem = f"{path} cannot be written: {error.strerror or error}"
    return OutputError("EP604", problem, where=Where(str(path)))


@contextlib.contextmanager
def reading(path: object) -> Iterator[None]:
    """Turn an OSError of the block into the coded error for a file that is read."""
    try:
        with calls:
            yield
    except OSError as error:
        raise source_error(error, path) from error


@contextlib.contextmanager
def writing(path: object) -> Iterator[None]:
    """Turn an OSError of the block into the coded error for a file that is written."""
    try:
        with calls:
            yield
    except OSError as error:
        raise output_error(error, path) from error


def read_into(descriptor: int, buffer: memoryview, offset: int, path: object) -> None:
    """Fill `buffer` from `offset` on.

    Raises:
        CheckpointError: EP201 on an error, EP220 where the file ends early.
    """
    while len(buffer):
        try:
            count = attempt("read", os.preadv, descriptor, [buffer], offset)
        except OSError as error:
            raise source_error(error, path) from error
        if count == 0:
            raise CheckpointError("EP220", f"{path} ends at byte {offset}, {len(buffer)} bytes early")
        buffer, offset = buffer[count:], offset + count


def read_blocks(
    descriptor: int, nbytes: int, path: object, offset: int = 0
) -> Iterator[tuple[int, memoryview]]:
    """Bytes of a file from `offset` on, in blocks that are valid until the next: where each begins, and it.

    Raises:
        CheckpointError: EP201 on an error, EP220 where the file ends early.
    """
    block = memoryview(bytearray(min(nbytes, COPY_BLOCK_NBYTES)))
    for begin in range(0, nbytes, COPY_BLOCK_NBYTES):
        view = block[: min(len(block), nbytes - begin)]
        read_into(descriptor, view, offset + begin, path)
        yield begin, view


def forget(descriptor: int, offset: int, nbytes: int) -> None:
    """Let the page cache drop a range that will not be needed again; what is still to be written stays."""
    with contextlib.suppress(OSError):
        attempt("advise", os.posix_fadvise, descriptor, offset, nbytes, os.POSIX_FADV_DONTNEED)


def write_from(descriptor: int, buffer: memoryview, offset: int, path: object) -> None:
    """Write all of `buffer` at `offset`. Raises OutputError."""
    while len(buffer):
        try:
            count = attempt("write", os.pwrite, descriptor, buffer, offset)
        except OSError as error:
            raise output_error(error, path) from error
        buffer, offset = buffer[count:], offset + count


def clone_range(
    source: int, destination: int, nbytes: int, src_offset: int, dst_offset: int, path: object
) -> bool:
    """Let two files share blocks; False where their file systems cannot, and nothing has changed then."""
    request = struct.pack("qQQQ", source, src_offset, nbytes, dst_offset)
    try:
        attempt("clone", fcntl.ioctl, destination, _FICLONERANGE, request)
    except OSError as error:
        if error.errno in _NO_CLONE:
            return False
        raise output_error(error, path) from error
    return True


def link(path: Path, name: Path) -> bool:
    """Give a file a second name; False where the file system cannot, or not so often.

    Raises:
        OutputError: any other error.
    """
    try:
        attempt("link", os.link, path, name)
    except OSError as error:
        if error.errno in _NO_LINK:
            return False
        raise output_error(error, name) from error
    return True


def create(path: Path, nbytes: int, *, allocate: bool = True) -> int:
    """Create a file of `nbytes` for writing and allocate it, so that a full disk says so now.

    Args:
        allocate: without it the file only has its size.

    Raises:
        OutputError: EP603 without space, EP604 otherwise.
    """
    with writing(path):
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = attempt("open", os.open, path, flags, 0o666)
    try:
        with writing(path):
            _set_size(descriptor, nbytes, allocate=allocate)
    except EplbError:
        os.close(descriptor)
        raise
    return descriptor


def _set_size(descriptor: int, nbytes: int, *, allocate: bool) -> None:
    try:
        if nbytes and allocate:
            attempt("allocate", os.posix_fallocate, descriptor, 0, nbytes)
            return
    except OSError as error:
        if error.errno not in _NO_ALLOCATE:
            raise
    if nbytes:
        attempt("truncate", os.ftruncate, descriptor, nbytes)


def require_space(directory: Path, nbytes: int) -> None:
    """Raise EP603 unless `nbytes` more fit into a directory, where the file system can tell."""
    path = directory / "space"
    try:
        os.close(create(path, nbytes))
    finally:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def opened_output(path: Path) -> Iterator[int]:
    """Open a file of the staging directory for the block. Raises OutputError."""
    with closing(open_output(path)) as descriptor:
        yield descriptor


def open_output(path: Path) -> int:
    """Open a file of the staging directory for reading and writing. Raises OutputError."""
    with writing(path):
        return attempt("open", os.open, path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)


def sync(descriptor: int, path: object) -> None:
    """Fsync.

    Raises:
        OutputError: EP603 without space; EP606 otherwise, and nobody knows what the disk has.
    """
    try:
        attempt("sync", os.fsync, descriptor)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise output_error(error, path) from error
        raise OutputError("EP606", f"{path} did not reach the disk: {error.strerror or error}") from error


def open_directory(path: Path) -> int:
    """Open a directory that is no link. Raises OutputError."""
    with writing(path):
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        return attempt("open", os.open, path, flags)


def sync_directory(path: Path) -> None:
    """Make the entries of a directory durable, where the file system can."""
    with writing(path):
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        with closing(attempt("open", os.open, path, flags)) as descriptor:
            attempt("sync", os.fsync, descriptor)


def write_file(path: Path, content: bytes, *, durable: bool) -> None:
    """Create a small file with `content`. Raises OutputError."""
    with closing(create(path, 0)) as descriptor:
        write_from(descriptor, memoryview(content), 0, path)
        if durable:
            sync(descriptor, path)


def size_of(path: Path) -> int:
    """Bytes of a file, 0 where there is none. Raises EP604."""
    with writing(path), contextlib.suppress(FileNotFoundError):
        return path.stat().st_size
    return 0


def append(path: Path, content: bytes) -> None:
    """Add to a file that another program collects, be it there yet or not. Raises EP603 or EP604."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
    with writing(path):
        descriptor = attempt("open", os.open, path, flags, 0o666)
    with closing(descriptor):
        write_from(descriptor, memoryview(content), 0, path)  # the offset means nothing here


def require_replaceable(path: Path, *, replace: bool) -> None:
    """Refuse to write a single file over what is no regular file, or over anything without `replace`.

    Raises:
        OutputError: EP601, there is a file; EP604, there is something else, be it a link, or its directory is
            none that may be written.
    """
    with writing(path):
        mode = path.lstat().st_mode if os.path.lexists(path) else None
        if not os.access(path.parent, os.W_OK | os.X_OK):
            number = errno.EACCES if path.parent.is_dir() else errno.ENOENT
            raise OSError(number, os.strerror(number))
    if mode is not None and not stat.S_ISREG(mode):
        what = "a symbolic link" if stat.S_ISLNK(mode) else "no regular file"
        hint = "name a file, or the one that the link leads to; `-` is stdout"
        raise OutputError("EP604", f"{path} is {what}, and is not replaced", hint)
    if mode is not None and not replace:
        raise OutputError("EP601", f"{path} exists", "remove it, or choose another OUT")


def replace_file(path: Path, content: bytes) -> None:
    """Write a small file beside `path` and rename it there: a reader sees the old one or the whole new one.

    Raises:
        OutputError: EP603 or EP604; what was there before is left.
    """
    require_replaceable(path, replace=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write_file(beside, content, durable=True)
        with writing(path):
            with contextlib.suppress(FileNotFoundError):
                attempt("chmod", os.chmod, beside, stat.S_IMODE(path.lstat().st_mode))
            attempt("rename", os.replace, beside, path)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(beside)  # noqa: PTH108 - as every call here
    sync_directory(path.parent)


def read_small_file(path: Path | str, limit: int, *, follow_links: bool = False) -> bytes:
    """The content of a regular file of at most `limit` bytes.

    Raises:
        CheckpointError: EP204, EP201 (also where it is larger than `limit`), EP220.
    """
    with opened_source(path, follow_links=follow_links) as descriptor:
        return read_whole(descriptor, limit, path)


def read_whole(descriptor: int, limit: int, path: object) -> bytes:
    """The content of an open file of at most `limit` bytes. Raises EP201 where it has more."""
    nbytes = os.fstat(descriptor).st_size
    if nbytes > limit:
        raise CheckpointError("EP201", f"{path} has {nbytes:,} bytes; more than {limit:,} are not read")
    content = bytearray(nbytes)
    read_into(descriptor, memoryview(content), 0, path)
    return bytes(content)


def read_own_file(path: Path) -> bytes:
    """The content of a file that this run, or the one it goes on from, has written; it may grow meanwhile.

    Raises:
        OutputError: EP604.
    """
    try:
        with closing(open_source(path)) as descriptor:
            return read_whole(descriptor, MAX_OWN_FILE_NBYTES, path)
    except CheckpointError as error:
        raise OutputError("EP604", error.message) from error


def remove_tree(path: Path) -> None:
    """Remove a directory and all that is in it; links are removed, never followed."""
    with os.scandir(path) as entries:
        listed = list(entries)
    for entry in listed:
        if entry.is_dir(follow_symlinks=False):
            remove_tree(Path(entry.path))
        else:
            attempt("unlink", os.unlink, entry.path)
    attempt("rmdir", os.rmdir, path)


def write_whole(path: Path, content: bytes) -> None:
    """A new file that appears whole or not at all. Raises EP601 where it exists, EP603, EP604."""
    require_replaceable(path, replace=False)
    replace_file(path, content)
