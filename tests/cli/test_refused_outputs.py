"""`eplb reshard` where DST cannot be written: EP6xx and exit code 6, before SRC is read where possible."""

from __future__ import annotations

import errno
import fcntl
import os
import signal

import pytest

from eplb_cli import files
from tests.cli.case import assert_error, forget_kept
from tests.cli.tree import fingerprint, write_tree


def test_dst_is_not_empty(case):
    """EP601 for a directory with anything in it, hidden files included."""
    case.dst.mkdir()
    (case.dst / ".hidden").touch()
    case.refuse("EP601", "dst exists and is not an empty directory", exit_code=6)


def test_dst_is_a_file_or_a_link(case):
    """EP601, also for a link that leads nowhere, or to an empty directory, or to itself."""
    case.dst.touch()
    case.refuse("EP601", exit_code=6)
    (case.home / "empty").mkdir()
    for target in ("nowhere", "empty", "dst"):
        case.dst.unlink()
        case.dst.symlink_to(target)
        case.refuse("EP601", exit_code=6)


def test_dst_is_empty(case):
    """An empty directory is as good as none."""
    case.dst.mkdir()
    case.reshard()


def test_dst_and_src_overlap(case, monkeypatch):
    """EP602, however the two paths are written."""
    case.refuse("EP602", exit_code=6, dst=case.src)
    case.refuse("EP602", exit_code=6, dst=case.src / "inside")
    case.refuse("EP602", exit_code=6, dst=case.home)
    case.refuse("EP602", exit_code=6, dst=case.home / "x" / ".." / "src" / "inside")
    (case.home / "link").symlink_to("src")
    case.refuse("EP602", exit_code=6, dst=case.home / "link" / "inside")
    monkeypatch.chdir(case.src)
    case.refuse("EP602", exit_code=6, dst=".")
    case.refuse("EP602", exit_code=6, dst="../src/out", src="../src")


def test_dst_relative_to_here(case, monkeypatch):
    """`..` names the directory it is; the current one cannot be replaced."""
    (case.home / "here").mkdir()
    monkeypatch.chdir(case.home / "here")
    case.refuse("EP601", "current directory", exit_code=6, dst=".")
    case.reshard(dst="../here/../there", src="../src")
    assert (case.home / "there" / "eplb.json").exists()


def test_a_current_directory_that_is_gone(case, monkeypatch):
    """EP604: nothing says where a relative DST would be."""
    (case.home / "here").mkdir()
    monkeypatch.chdir(case.home / "here")
    (case.home / "here").rmdir()
    case.refuse("EP604", "No such file or directory", exit_code=6, dst="dst")


def test_the_parent_of_dst(case):
    """EP604: it has to be a directory that is there, and may be written."""
    case.refuse("EP604", "create it first", exit_code=6, dst=case.home / "no" / "dst")
    case.refuse("EP604", exit_code=6, dst=case.home / "new.json" / "dst")
    case.refuse("EP604", "File name too long", exit_code=6, dst=case.home / ("x" * 250))


def test_another_run_is_writing_dst(case):
    """EP605 while its lock is held; what it writes is left alone."""
    staging = case.home / ".dst.eplb-staging"
    write_tree(staging, [])
    (staging / "precious").touch()
    held = os.open(staging, os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    case.refuse("EP605", "in use by", exit_code=6)
    os.close(held)


def test_what_an_earlier_run_left_is_removed(case):
    """Without its lock it is nobody's."""
    staging = case.home / ".dst.eplb-staging"
    (staging / "deep" / "er").mkdir(parents=True)
    (staging / "model-rank-0-part-0.safetensors").touch()
    case.reshard()
    assert not staging.exists()


def test_staging_that_is_a_link(case):
    """EP604: nothing is removed, or written, behind a link."""
    (case.home / "precious").mkdir()
    (case.home / "precious" / "file").touch()
    (case.home / ".dst.eplb-staging").symlink_to("precious")
    case.refuse("EP604", exit_code=6)


def test_a_file_system_without_space(case, monkeypatch):
    """EP603 before anything is written."""
    real = os.statvfs(case.home)

    class Full:
        f_bavail = 1
        f_frsize = real.f_frsize

    monkeypatch.setattr(os, "statvfs", lambda _: Full)
    case.refuse("EP603", f"has {real.f_frsize}", exit_code=6)


@pytest.mark.parametrize(
    ("operation", "number", "code"),
    [
        ("mkdir", errno.EACCES, "EP604"),
        ("mkdir", errno.EROFS, "EP604"),
        ("allocate", errno.ENOSPC, "EP603"),
        ("allocate", errno.EDQUOT, "EP603"),
        ("write", errno.ENOSPC, "EP603"),
        ("write", errno.EIO, "EP604"),
        ("sync", errno.EIO, "EP606"),
        ("lock", errno.EACCES, "EP604"),
    ],
)
def test_an_operation_that_fails(case, monkeypatch, operation, number, code):
    """Whatever the system refuses, nothing stays behind."""

    def attempt(name, call, *args):
        if name == operation:
            raise OSError(number, os.strerror(number))
        return call(*args)

    before = fingerprint(case.home)
    monkeypatch.setattr(files, "attempt", attempt)
    result = case.eplb(*case.arguments())
    assert_error(result, code, exit_code=6)
    left = fingerprint(case.home)
    left.pop(".dst.eplb-staging", None) if operation == "lock" else None
    assert left == before


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(case, monkeypatch, number):
    """There the run goes on without one."""

    def attempt(name, call, *args):
        if name == "lock":
            raise OSError(number, os.strerror(number))
        return call(*args)

    monkeypatch.setattr(files, "attempt", attempt)
    case.reshard()


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_that_cannot_allocate(case, monkeypatch, number):
    """There the file gets its size without its space."""

    def attempt(name, call, *args):
        if name == "allocate":
            raise OSError(number, os.strerror(number))
        return call(*args)

    monkeypatch.setattr(files, "attempt", attempt)
    case.reshard()


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_kernel_that_does_not_copy(case, monkeypatch, number):
    """There the bytes go through a small buffer."""

    def attempt(name, call, *args):
        if name == "copy":
            raise OSError(number, os.strerror(number))
        return call(*args)

    monkeypatch.setattr(files, "attempt", attempt)
    case.reshard("--no-digest")
    monkeypatch.undo()
    assert case.eplb("verify", case.dst, "--against", case.src).code == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("operation", ["mkdir", "allocate", "write", "sync"])
def test_an_interruption(case, monkeypatch, number, operation):
    """Exit code 130 whenever it comes, once or twice at once; nothing stays behind but what is said to."""

    def attempt(name, call, *args):
        if name == operation:
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)
        return call(*args)

    before = fingerprint(case.home)
    monkeypatch.setattr(files, "attempt", attempt)
    result = case.eplb(*case.arguments())
    assert (result.code, result.out) == (130, "")
    assert "interrupted" in result.err
    forget_kept(case.home, result)
    assert fingerprint(case.home) == before


def test_an_error_without_a_code(case, monkeypatch):
    """A bug in eplb has a message and exit code 4, and a traceback only with EPLB_DEBUG=1."""

    def attempt(name, call, *args):
        if name == "allocate":
            raise ZeroDivisionError("boom")
        return call(*args)

    monkeypatch.setattr(files, "attempt", attempt)
    case.refuse("EP401", "ZeroDivisionError: boom", "EPLB_DEBUG=1", exit_code=4)


def test_memory_that_is_short(case, monkeypatch):
    """EP401 says what needs less."""

    def attempt(name, call, *args):
        if name == "allocate":
            raise MemoryError
        return call(*args)

    monkeypatch.setattr(files, "attempt", attempt)
    case.refuse("EP401", "--buffer-size", exit_code=4)


def test_a_result_that_is_damaged_while_it_is_written(case, monkeypatch):
    """EP501 with exit code 5, and no DST: what is read back is not what was read."""

    def attempt(name, call, *args):
        if name == "write" and args[2] >= 4096 and len(args[1]) == 24:
            return call(args[0], bytes(len(args[1])), args[2])
        return call(*args)

    before = fingerprint(case.home)
    monkeypatch.setattr(files, "attempt", attempt)
    result = case.eplb(*case.arguments())
    assert_error(
        result, "EP501", "model-rank-0-part-0.safetensors: layer 3, slot 0 (rank 0, row 0)", exit_code=5
    )
    assert fingerprint(case.home) == before
