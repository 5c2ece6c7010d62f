"""Disks that fill up, that are read-only, and limits of the process: exit code 6, and nothing is left."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest

from eplb_cli import files
from eplb_cli.run import work
from eplb_cli.run.job import read_outcomes
from tests.cli.case import assert_error, forget_kept
from tests.cli.tree import fingerprint, read_shard, tensor, write_shard
from tests.support.faults import Recorder
from tests.support.mounts import FILLER, ext4, fill, mounted, tmpfs

DISKS: dict[str, Callable[[Path], AbstractContextManager[Path]]] = {"tmpfs": tmpfs, "ext4": ext4}


def assert_nothing_left(case, disk, before, result):
    """SRC is as it was, and DST's disk has nothing but what the test put there, and what can be resumed."""
    forget_kept(disk, result)
    assert fingerprint(case.src) == before
    assert {path.name for path in disk.iterdir()} <= {FILLER}


@pytest.fixture(params=DISKS)
def disk(request, case):
    """A disk of 2 MiB for DST; SRC is elsewhere."""
    with DISKS[request.param](case.home / "disk") as home:
        yield home


def test_a_disk_that_is_too_small(case, disk):
    """EP603 before the first byte, with both numbers."""
    tensors = {**read_shard(case.file(0)), "big": tensor("U8", (2 << 20,), "big")}
    for rank in (0, 1):
        write_shard(case.file(rank), tensors)
    before = fingerprint(case.src)
    result = case.eplb(*case.arguments(dst=disk / "dst", old="linear", new="linear"), "--copy")
    assert_error(result, "EP603", "bytes and its file system has", exit_code=6)
    assert_nothing_left(case, disk, before, result)


@pytest.mark.parametrize(("kind", "expected"), [("tmpfs", "truncate"), ("ext4", "allocate")])
def test_what_is_allocated(case, monkeypatch, kind, expected):
    """Memory would be filled with zeros before the rows; elsewhere a full disk says so at once."""
    calls: list[tuple[str, str]] = []
    monkeypatch.setattr(files, "make_call", Recorder(calls))
    with DISKS[kind](case.home / "disk") as home:
        assert case.eplb(*case.arguments(dst=home / "dst")).code == 0
        sized = {operation for operation, path in calls if path.endswith(".safetensors")}
        assert sized & {"truncate", "allocate"} == {expected}
        assert case.eplb("verify", home / "dst").code == 0


@pytest.mark.parametrize("refused", [None, "allocate"], ids=["allocated", "not allocated"])
def test_a_disk_that_fills_up(case, disk, monkeypatch, count, refused):
    """EP603 wherever the space ends: after the check, in a header, a row, a digest, the manifest."""
    before = fingerprint(case.src)
    free, ends = 0, list[int]()

    def attempt(operation, call, *args):
        if operation == "mkdir" and not (disk / FILLER).exists():
            fill(disk, free)
        if operation == refused:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return call(*args)

    monkeypatch.setattr(files, "attempt", attempt)
    while not ends or ends[-1] != 0:
        result = case.eplb(*case.arguments(dst=disk / "dst"))
        ends.append(result.code)
        if result.code:
            assert_error(result, "EP603", exit_code=6)
            assert_nothing_left(case, disk, before, result)
        (disk / FILLER).unlink()
        free += os.statvfs(disk).f_frsize
    assert case.eplb("verify", disk / "dst").code == 0
    assert fingerprint(case.src) == before
    assert len(ends) > 8
    count("disks that fill up", len(ends) - 1)


def test_a_disk_without_room_for_the_files_of_the_run(case, disk, monkeypatch):
    """EP603 before a worker is started that could not say what it died of."""
    before = fingerprint(case.src)

    def attempt(operation, call, *args):
        if operation == "mkdir" and not (disk / FILLER).exists():
            fill(disk, 512 << 10)
        return call(*args)

    monkeypatch.setattr(files, "attempt", attempt)
    result = case.eplb(*case.arguments("--backend", "gloo", dst=disk / "dst"))
    assert_error(result, "EP603", "space: No space left on device", exit_code=6)
    assert_nothing_left(case, disk, before, result)


def test_a_worker_whose_own_files_do_not_fit(monkeypatch, tmp_path):
    """EP603 as its outcome, with the file, and not an unexpected error."""

    def run(job, number):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "digests-old-1.npy")

    @dataclass(frozen=True)
    class Stub:
        staging: str
        desk: Path = tmp_path
        first_worker: int = 0

    monkeypatch.setattr(work, "read_job", lambda _: Stub(""))
    monkeypatch.setattr(work, "run", run)
    monkeypatch.setattr(os, "_exit", sys.exit)
    with pytest.raises(SystemExit) as ended:
        work.work(tmp_path, tmp_path / ".eplb" / "job.json", 1)
    error = read_outcomes(tmp_path, range(2))[1].error
    assert ended.value.code == 1
    assert error is not None
    assert tuple(error[:2]) == ("EP603", "digests-old-1.npy: No space left on device")


def test_a_read_only_disk(case, count):
    """EP604 for DST there; SRC may well be there, because it is only read."""
    with tmpfs(case.home / "disk") as disk, mounted(case.home / "ro", "--bind", case.src) as source:
        for path in (disk, source):
            subprocess.run(["mount", "-o", "remount,ro,bind", path], check=True)
        before = fingerprint(case.src)
        result = case.eplb(*case.arguments(dst=disk / "dst"))
        assert_error(result, "EP604", "Read-only file system", exit_code=6)
        assert_nothing_left(case, disk, before, result)
        case.reshard(src=source)
    count("read-only disks", 1)


@contextlib.contextmanager
def limited(kind, soft):
    """This process under a lower limit."""
    limits = resource.getrlimit(kind)
    resource.setrlimit(kind, (soft, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, limits)


def test_a_limit_on_the_size_of_files(case, count):
    """EP604, not the end of the process by SIGXFSZ, whichever file would grow too large."""
    before = fingerprint(case.home)
    ends: list[int] = []
    while not ends or ends[-1] != 0:
        with limited(resource.RLIMIT_FSIZE, 512 * len(ends)):
            result = case.eplb(*case.arguments())
        ends.append(result.code)
        if result.code:
            assert_error(result, "EP604", "File too large", exit_code=6)
            forget_kept(case.home, result)
            assert fingerprint(case.home) == before
    assert len(ends) > 8
    count("limits on the size of files", len(ends) - 1)


def eplb_under(limit, *arguments):
    """The command as a process under a limit that `prlimit` sets."""
    command = ["prlimit", limit, sys.executable, "-m", "eplb_cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    return done


def test_a_limit_on_open_files(case):
    """EP405 before anything is written where the hard limit is too low; else the soft one is raised."""
    before = fingerprint(case.home)
    done = eplb_under("--nofile=100:100", *case.arguments())
    assert done.returncode == 4
    assert "error[EP405]: 4 shards need 132 open files, and 100 are allowed" in done.stderr
    assert fingerprint(case.home) == before
    extra = {f"model.extra.{number}": tensor("U8", (3,), str(number)) for number in range(120)}
    case.write([{**read_shard(case.file(rank)), **extra} for rank in (0, 1)], parts=60)
    assert eplb_under("--nofile=64:1024", *case.arguments()).returncode == 0
    assert eplb_under("--nofile=64:1024", "verify", case.dst, "--against", case.src).returncode == 0
    assert eplb_under("--nofile=64:64", "verify", case.dst).returncode == 4


def test_a_command_under_a_limit_on_the_size_of_files(case):
    """The same for a process of its own: one coded error, exit code 6."""
    before = fingerprint(case.home)
    done = eplb_under("--fsize=2048", *case.arguments())
    assert (done.returncode, "error[EP604]" in done.stderr) == (6, True)
    assert fingerprint(case.home) == before
