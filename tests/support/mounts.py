"""Small file systems of our own: mounted where that is allowed, and skipped with a reason elsewhere."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


def system(*command: object) -> None:
    """Run a command of the system; the test is skipped where it is not there, or may not do its work."""
    words = list(map(str, command))
    if not shutil.which(words[0]):
        pytest.skip(f"there is no {words[0]} here")
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{' '.join(words)}: {done.stderr.strip()}")


@contextlib.contextmanager
def mounted(path: Path, *arguments: object) -> Iterator[Path]:
    """A directory with a file system of its own: `mount ARGUMENTS PATH`."""
    if os.geteuid():
        pytest.skip("only root may mount")
    path.mkdir()
    system("mount", *arguments, path)
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


@contextlib.contextmanager
def tmpfs(path: Path, size: str = "2m") -> Iterator[Path]:
    """A file system in memory that holds `size`."""
    with mounted(path, "-t", "tmpfs", "-o", f"size={size}", "tmpfs") as home:
        yield home


@contextlib.contextmanager
def ext4(path: Path, nbytes: int = 2 << 20) -> Iterator[Path]:
    """An ext4 in a file of `nbytes`, mounted through a loop device."""
    image = path.with_suffix(".img")
    image.touch()
    os.truncate(image, nbytes)
    system("mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-m", "0", "-b", "1024", image)
    try:
        with mounted(path, "-o", "loop", image) as home:
            (home / "lost+found").rmdir()
            yield home
    finally:
        image.unlink()


@contextlib.contextmanager
def xfs(path: Path) -> Iterator[Path]:
    """An XFS whose files can share blocks, as small as one may be, in a sparse file."""
    image = path.with_suffix(".img")
    image.touch()
    os.truncate(image, 320 << 20)
    system("mkfs.xfs", "-q", "-m", "reflink=1", image)
    try:
        with mounted(path, "-o", "loop", image) as home:
            yield home
    finally:
        image.unlink()


FILLER = "filler"


def fill(path: Path, free_nbytes: int) -> None:
    """Take all space of a file system but `free_nbytes`."""
    status = os.statvfs(path)
    descriptor = os.open(path / FILLER, os.O_WRONLY | os.O_CREAT, 0o666)
    try:
        os.posix_fallocate(descriptor, 0, max(status.f_bavail * status.f_frsize - free_nbytes, 1))
    finally:
        os.close(descriptor)
