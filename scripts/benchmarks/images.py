"""A file system that can share blocks, in a file: made, mounted and taken away again."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from scripts.benchmarks.timing import BenchError, UnavailableError, run

_MAKE = {"xfs": ("mkfs.xfs", "-q", "-m", "reflink=1"), "btrfs": ("mkfs.btrfs", "-q")}
_PACKAGES = {"xfs": "xfsprogs", "btrfs": "btrfs-progs"}
KINDS = tuple(_MAKE)


@contextlib.contextmanager
def mounted_image(kind: str, image: Path, nbytes: int) -> Iterator[Path]:
    """The mount point of a new file system, one of `KINDS`, in the sparse file `image`.

    Raises:
        UnavailableError: there cannot be one here.
    """
    _require_means(kind)
    mount_point = image.with_suffix(".mounted")
    mount_point.mkdir()
    with image.open("wb") as file:
        file.truncate(nbytes)
    try:
        run([*_MAKE[kind], str(image)])
        with _loop_device(image) as device:
            run(["mount", "-t", kind, device, str(mount_point)])
            try:
                yield mount_point
            finally:
                run(["umount", str(mount_point)])
    finally:
        image.unlink()
        mount_point.rmdir()


def _require_means(kind: str) -> None:
    if os.geteuid() != 0:
        raise UnavailableError("mounting an image needs root")
    if missing := [tool for tool in (_MAKE[kind][0], "losetup", "mount") if shutil.which(tool) is None]:
        raise UnavailableError(f"{missing[0]} is not installed (Debian: {_PACKAGES[kind]}, mount)")


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
