"""Where DST will be, where it is made, and whether it may be there."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path

from eplb_cli import files
from eplb_cli.errors import OutputError
from eplb_cli.machine import is_mount_point

_STAGING = ".eplb-staging"


def real_path(path: Path) -> Path:
    """The path without links, `.` and `..`; a link that leads nowhere, or to itself, stays."""
    with files.writing(path):
        return Path(os.path.realpath(path))


def staging_path(destination: Path) -> Path:
    """The staging directory of a DST: hidden, beside it, on the same file system."""
    return destination.parent / f".{destination.name}{_STAGING}"


def meeting_path(destination: Path) -> Path:
    """Where several hosts meet that write a DST on storage which they share, and have no network."""
    return destination.parent / f".{destination.name}.eplb-hosts"


def is_staging(path: Path) -> bool:
    """Whether a directory is the staging directory of some DST, by its name."""
    name = Path(os.path.realpath(path)).name
    return name.startswith(".") and name.endswith(_STAGING)


def check_destination(source: Path, destination: Path) -> None:
    """Refuse a DST that is not free, or that could not be written in the end; nothing is written.

    Raises:
        OutputError: EP601, it exists and is no empty directory, or is the current one; EP602, it and SRC
            overlap; EP604, its parent is no directory, or see `require_place`.
    """
    src, dst = real_path(source), real_path(destination)
    if src == dst or src in dst.parents or dst in src.parents:
        raise OutputError("EP602", f"DST {destination} and SRC {source} overlap")
    _require_free(destination)
    if dst.exists() and Path().exists() and dst.samefile(Path()):
        hint = "name a new directory: the one you are in would be replaced under your feet"
        raise OutputError("EP601", f"{destination} is the current directory", hint)
    if not dst.parent.is_dir():
        raise OutputError("EP604", f"{dst.parent} is not a directory", "create it first")
    require_place(dst)


def require_place(destination: Path) -> None:
    """Check all that can be known of whether staging can be made, and be renamed to DST.

    Args:
        destination: without links.

    Raises:
        OutputError: EP601, DST is there and no empty directory; EP604, it, or staging, is a mount point, or
            the permissions do not allow it.
    """
    _require_free(destination)
    staging = staging_path(destination)
    for path in (destination, staging):
        if is_mount_point(path):
            hint = "choose a DST inside it" if path == destination else "unmount it, or choose another DST"
            raise OutputError("EP604", f"{path} is a mount point, which no rename can replace", hint)
    with files.writing(destination):
        _require_removable(destination)
    with files.writing(staging):
        _require_writable(staging)


def _require_free(destination: Path) -> None:
    """EP601 unless DST can appear: it is not there, or an empty directory."""
    if os.path.lexists(destination):
        with files.writing(destination):
            occupied = not destination.is_dir() or destination.is_symlink() or any(destination.iterdir())
        if occupied:
            raise OutputError(
                "EP601",
                f"{destination} exists and is not an empty directory",
            )


def _require_removable(destination: Path) -> None:
    """Raise EPERM for an empty directory of somebody else that the sticky bit of its parent protects."""
    with contextlib.suppress(FileNotFoundError):
        parent, owner = destination.parent.stat(), destination.lstat().st_uid
        if parent.st_mode & stat.S_ISVTX and os.geteuid() not in {0, owner, parent.st_uid}:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))


def _require_writable(staging: Path) -> None:
    """Raise OSError where a staging directory can neither be made nor used."""
    if os.path.lexists(staging):
        os.close(files.open_directory(staging))
    if not os.access(staging.parent, os.W_OK | os.X_OK):
        is_read_only = os.statvfs(staging.parent).f_flag & os.ST_RDONLY
        number = errno.EROFS if is_read_only else errno.EACCES
        raise OSError(number, os.strerror(number))
