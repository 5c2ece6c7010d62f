"""A file system that can share blocks, in a file: made, mounted and taken away again."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from scripts.benchmarks.timing import BenchError, UnavailableError, run


@contextlib.contextmanager
def xfs_image(image: Path, nbytes: int) -> Iterator[Path]:
    """The mount point of a new XFS with reflinks, in the sparse file `image`.

    Raises:
        UnavailableError: there cannot be one here.
    """
    _require_means()
    mount_point = image.with_suffix(".mounted")
    mount_point.mkdir()
    with image.open("wb") as file:
        file.truncate(nbytes)
    try:
        run(["mkfs.xfs", "-q", "-m", "reflink=1", str(image)])
        with _loop_device(image) as device:
            run(["mount", "-t", "xfs", device, str(mount_point)])
            try:
                yield mount_point
            finally:
                run(["umount", str(mount_point)])
    finally:
        image.unlink()
        mount_point.rmdir()


def _require_means() -> None:
    if os.geteuid() != 0:
        raise UnavailableError("mounting an image needs root")
    if missing := [tool for tool in ("mkfs.xfs", "losetup", "mount") if shutil.which(tool) is None]:
        raise UnavailableError(f"{missing[0]} is not installed (Debian: xfsprogs, mount)")


@contextlib.contextmanager
def _loop_device(image: Path) -> Iterator[str]:
    """Past the page cache of the file below, where that works, so that nothing is cached twice."""
    attach = ["losetup", "--find", "--show"]
    try:
        device = run([*attach, "--direct-io=on", str(image)]).stdout.strip()
    except BenchError:
        device = run([*attach, str(image)]).stdout.strip()
    try:
        yield device
    finally:
        run(["losetup", "--detach", device])
