"""The one door to the file system: short reads, refused calls, and errors with codes."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from eplb_cli import files
from eplb_cli.errors import CheckpointError, OutputError


def num_open() -> int:
    """Descriptors of this process."""
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def failing(monkeypatch):
    """Make one operation fail with an error of the system."""

    def install(operation, number):
        def attempt(name, call, *args):
            if name == operation:
                raise OSError(number, os.strerror(number))
            return call(*args)

        monkeypatch.setattr(files, "attempt", attempt)

    return install


@pytest.fixture
def stuttering(monkeypatch):
    """Let reads, writes and copies do three bytes at a time, as a busy system may."""

    def attempt(name, call, *args):
        if name == "read":
            descriptor, (view,), offset = args
            return os.preadv(descriptor, [view[:3]], offset)
        if name == "write":
            descriptor, view, offset = args
            return os.pwrite(descriptor, view[:3], offset)
        if name == "copy":
            source, destination, nbytes, *offsets = args
            return os.copy_file_range(source, destination, min(nbytes, 3), *offsets)
        return call(*args)

    monkeypatch.setattr(files, "attempt", attempt)


@pytest.fixture
def pair(tmp_path):
    """Descriptors of a file of 100 bytes and of one to write; all closed afterwards."""
    (tmp_path / "a").write_bytes(bytes(range(100)))
    descriptors = [files.open_source(tmp_path / "a"), files.create(tmp_path / "b", 50)]
    yield descriptors
    for descriptor in descriptors:
        os.close(descriptor)


def test_reads_and_writes_go_on_until_all_is_done(pair, stuttering, tmp_path):
    """Whatever the system does at a time."""
    buffer = memoryview(bytearray(40))
    files.read_into(pair[0], buffer, 10, "a")
    assert bytes(buffer) == bytes(range(10, 50))
    files.write_from(pair[1], buffer, 5, "b")
    assert (tmp_path / "b").read_bytes() == bytes(5) + bytes(range(10, 50)) + bytes(5)


def test_a_file_that_ends_early(pair):
    """EP220 says where."""
    with pytest.raises(CheckpointError, match=r"a ends at byte 100, 20 bytes early") as caught:
        files.read_into(pair[0], memoryview(bytearray(40)), 80, "a")
    assert caught.value.code == "EP220"


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.EOPNOTSUPP])
def test_a_file_system_that_shares_no_blocks(pair, failing, tmp_path, number):
    """Says so, and nothing is changed."""
    failing("clone", number)
    assert not files.clone_range(pair[0], pair[1], 50, 0, 0, "b")
    assert (tmp_path / "b").read_bytes() == bytes(50)


@pytest.mark.parametrize(
    ("operation", "number", "code"),
    [
        ("clone", errno.ENOSPC, "EP603"),
        ("clone", errno.EIO, "EP604"),
        ("write", errno.ENOSPC, "EP603"),
        ("write", errno.EDQUOT, "EP603"),
        ("write", errno.EROFS, "EP604"),
        ("read", errno.EIO, "EP201"),
    ],
)
def test_errors_of_the_system(pair, failing, operation, number, code):
    """Each has the code of what was to be done, the path, and the system's own words."""
    failing(operation, number)
    calls = {
        "clone": lambda: files.clone_range(pair[0], pair[1], 50, 0, 0, "b"),
        "write": lambda: files.write_from(pair[1], memoryview(b"x"), 0, "b"),
        "read": lambda: files.read_into(pair[0], memoryview(bytearray(1)), 0, "a"),
    }
    with pytest.raises((CheckpointError, OutputError)) as caught:
        calls[operation]()
    assert caught.value.code == code
    assert os.strerror(number) in caught.value.message
    assert caught.value.message[0] in "ab"
    assert caught.value.hint


class TestOpening:
    def test_only_regular_files(self, tmp_path):
        """EP204 for a link, a directory and a pipe; EP201 for nothing."""
        (tmp_path / "link").symlink_to("x")
        (tmp_path / "folder").mkdir()
        os.mkfifo(tmp_path / "pipe")
        for name, code in {"link": "EP204", "folder": "EP204", "pipe": "EP204", "x": "EP201"}.items():
            with pytest.raises(CheckpointError) as caught:
                files.open_source(tmp_path / name)
            assert (caught.value.code, str(tmp_path / name) in caught.value.message) == (code, True)

    def test_a_file_is_never_replaced(self, tmp_path):
        """EP604 where there is one, or a link to one."""
        (tmp_path / "a").write_text("precious")
        (tmp_path / "b").symlink_to("a")
        for name in ("a", "b"):
            with pytest.raises(OutputError) as caught:
                files.create(tmp_path / name, 10)
            assert caught.value.code == "EP604"
        with pytest.raises(OutputError):
            files.open_output(tmp_path / "b")
        assert (tmp_path / "a").read_text() == "precious"

    def test_a_new_file_has_its_size(self, tmp_path):
        """All zeros; none at all is a size, too."""
        for size in (0, 5000):
            os.close(files.create(tmp_path / str(size), size))
            assert (tmp_path / str(size)).read_bytes() == bytes(size)

    @pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS])
    def test_without_allocation(self, tmp_path, failing, number):
        """The size is right even where the space cannot be had before."""
        failing("allocate", number)
        os.close(files.create(tmp_path / "x", 5000))
        assert (tmp_path / "x").stat().st_size == 5000

    def test_no_descriptor_is_lost(self, tmp_path, failing):
        """An error closes what it opened."""
        before = num_open()
        (tmp_path / "folder").mkdir()
        with pytest.raises(CheckpointError):
            files.open_source(tmp_path / "folder")
        failing("allocate", errno.ENOSPC)
        with pytest.raises(OutputError):
            files.create(tmp_path / "x", 10)
        failing("sync", errno.EIO)
        with pytest.raises(OutputError):
            files.write_file(tmp_path / "y", b"x", durable=True)
        with pytest.raises(OutputError):
            files.sync_directory(tmp_path)
        assert num_open() == before


class TestSmallFiles:
    def test_there_and_back(self, tmp_path):
        """Content as it is, none included."""
        for content in (b"", b"abc"):
            files.write_file(tmp_path / f"{len(content)}", content, durable=True)
            assert files.read_small_file(tmp_path / f"{len(content)}", 3) == content

    def test_a_limit(self, tmp_path):
        """EP201 names both sizes."""
        (tmp_path / "x").write_bytes(bytes(4))
        with pytest.raises(CheckpointError, match="has 4 bytes; more than 3 are not read") as caught:
            files.read_small_file(tmp_path / "x", 3)
        assert caught.value.code == "EP201"
