"""A board in a directory of shared storage: a file for each key, written whole and renamed. Needs no torch.

Host 0 makes a directory of a fresh name for each run, and `current` says which. What an earlier run has left,
which may have been killed, fools nobody: a host joins only where the beat of host 0 moves. Over NFS a new
file is seen when its directory is opened again, so every look does that. Whoever may write in the directory
can speak.

Calls are made past the count of `files`: beats go on while another file system stands still, and whoever
judges this process has to see that it does.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from eplb_cli import files
from eplb_cli.errors import EplbError, OutputError, UsageError, WorkerError
from eplb_cli.files import make_call
from eplb_cli.hosts.board import MAX_VALUE_NBYTES, BoardError, SupersededError
from eplb_cli.hosts.bounded import Caller
from eplb_cli.hosts.watch import PERIOD_S, beat_of

T = TypeVar("T")

POLL_S = 0.05
_CURRENT = "current"
_TOKEN = re.compile("[0-9a-f]{32}")
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def meet_in(directory: Path, node: int, timeout_s: float, lost_s: float) -> FileBoard:
    """The board of the run that host 0 has begun in `directory`, or begins now.

    Args:
        directory: on storage that all hosts see, and of this run's DST alone; host 0 makes it.
        node: of this host.
        timeout_s: seconds until host 0 has to be there.
        lost_s: seconds that a call may take.

    Raises:
        UsageError: EP001, another host 0 is there, and alive.
        WorkerError: EP407, host 0 did not come, or the storage does not answer.
        OutputError: EP603 or EP604.
    """
    board = FileBoard(directory, "", Caller(lost_s))
    try:
        return _begin(board) if node == 0 else _follow(board, timeout_s)
    except BoardError as error:
        raise board.lost("host 0", str(error)) from error


def _begin(board: FileBoard) -> FileBoard:
    """A fresh board in place of one that nobody keeps any more."""
    board.ask(_make, board.directory)
    found = board.current()
    if found and _is_alive(board.named(found), 4 * PERIOD_S):
        problem = f"another host has begun a run in {board.directory}, and goes on"
        raise UsageError(
            "EP001", problem, "is there another --node-rank 0? give each host a number of its own"
        )
    token = secrets.token_hex(16)
    fresh = board.named(token)
    fresh.is_ours = True
    fresh.ask(make_call, "mkdir", os.mkdir, fresh.path, 0o700)
    fresh.ask(_write, board.directory / _CURRENT, token.encode())
    fresh.ask(_remove_runs, board.directory, token)
    return fresh


def _follow(board: FileBoard, timeout_s: float) -> FileBoard:
    """The board whose host 0 is seen to be alive."""
    give_up = time.monotonic() + timeout_s
    while (left_s := give_up - time.monotonic()) > 0:
        found = board.current()
        if found and _is_alive(board.named(found), left_s):
            return board.named(found)
        time.sleep(POLL_S)
    problem = f"host 0 has not begun in {board.directory} within {timeout_s:g} s"
    hint = "does host 0 (--node-rank 0) run, and is DST on storage that all hosts see?"
    raise WorkerError("EP407", problem, hint)


def _make(directory: Path) -> None:
    with contextlib.suppress(FileExistsError):
        make_call("mkdir", os.mkdir, directory, 0o700)


def _refuse_foreign(directory: Path) -> None:
    """EP604 where others have made the directory, who could speak there for hosts, or where it is a link.

    One that is for its owner alone is ours, if we come in, also where a server calls us by another number.
    """
    status = make_call("stat", os.lstat, directory)
    if not stat.S_ISDIR(status.st_mode):
        raise OutputError("EP604", f"{directory} is no directory", "remove it, or choose another DST")
    if status.st_uid != os.geteuid() and status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise OutputError("EP604", f"{directory} belongs to another user", "remove it, or choose another DST")


def _is_alive(board: FileBoard, wait_s: float) -> bool:
    """Whether the beat of host 0 moves within some seconds; False too where another run begins meanwhile."""
    give_up = time.monotonic() + wait_s
    first = None
    with contextlib.suppress(SupersededError):
        while time.monotonic() < give_up:
            beat = board.get(beat_of(0))
            first = first or beat
            if beat != first:
                return True
            time.sleep(POLL_S)
    return False


def _remove_runs(directory: Path, but: str) -> None:
    """Remove what earlier runs have left; what cannot be removed fools nobody."""
    with contextlib.suppress(OSError):
        for name in make_call("list", os.listdir, directory):
            if _TOKEN.fullmatch(name) and name != but:
                _remove_run(directory / name)


def _remove_run(path: Path) -> None:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    with contextlib.suppress(OSError):
        with files.closing(make_call("open", os.open, path, flags)) as descriptor:  # a link is not followed
            for name in make_call("list", os.listdir, descriptor):
                make_call("unlink", lambda name: os.unlink(name, dir_fd=descriptor), name)
        make_call("rmdir", os.rmdir, path)


def _remove_all(directory: Path, run: Path) -> None:
    with contextlib.suppress(OSError):
        make_call("unlink", os.unlink, directory / _CURRENT)
        _remove_run(run)
        make_call("rmdir", os.rmdir, directory)


def _write(path: Path, value: bytes) -> None:
    """A small file that appears whole. Over NFS its bytes are with the server before its name is."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    with files.closing(make_call("open", os.open, beside, _NEW, 0o600)) as descriptor:
        view = memoryview(value)
        while view:
            view = view[make_call("write", os.write, descriptor, view) :]
    make_call("rename", os.replace, beside, path)


def _read(path: Path) -> bytes:
    """The content of a file that is replaced and never changed."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with files.closing(make_call("open", os.open, path, flags)) as descriptor:
        nbytes = os.fstat(descriptor).st_size
        if nbytes > MAX_VALUE_NBYTES:
            raise BoardError(f"{path} is too large for one of eplb")
        content = bytearray()
        while len(content) < nbytes and (
            block := make_call("read", os.read, descriptor, nbytes - len(content))
        ):
            content += block
    return bytes(content)


class FileBoard:
    """A `Board` in the directory of one run.

    Args:
        directory: of all runs.
        token: the name of this one in it.
        caller: makes the calls.

    Attributes:
        is_ours: this process has made it, and removes it at the end.
    """

    def __init__(self, directory: Path, token: str, caller: Caller) -> None:
        self.directory = directory
        self.path = directory / token
        self.is_ours = False
        self._token = token
        self._caller = caller

    def named(self, token: str) -> FileBoard:
        """The board of another run in the same directory."""
        return FileBoard(self.directory, token, self._caller)

    def current(self) -> str:
        """The token of the run that was begun last; empty where there is none."""
        return self.ask(self._current)

    def set(self, key: str, value: bytes) -> None:
        """As `Board.set`."""
        self._in_run(_write, self._file(key), value)

    def get(self, key: str) -> bytes | None:
        """As `Board.get`."""
        values = self.get_many([key])
        return None if values is None else values[0]

    def claim(self, key: str, value: bytes) -> bytes:
        """As `Board.claim`: who creates the file beside it sets the value, and the others wait for that."""
        path = self._file(key)
        if self._in_run(_is_first, path.with_name(f"{path.name}.claimed")):
            self.set(key, value)
        give_up = time.monotonic() + self._caller.deadline_s
        while (there := self.get(key)) is None:
            if time.monotonic() > give_up:
                raise BoardError(f"{path} was claimed and is not there")
            time.sleep(POLL_S)
        return there

    def get_many(self, keys: Sequence[str]) -> list[bytes] | None:
        """As `Board.get_many`."""
        paths = list(map(self._file, keys))
        listed = set(self._in_run(make_call, "list", os.listdir, self.path))
        if listed.issuperset(path.name for path in paths):
            return [self._in_run(_read, path) for path in paths]
        self.ask(self._require_current)
        return None

    def remove(self, key: str) -> None:
        """As `Board.remove`."""
        with contextlib.suppress(OSError):
            self._caller(make_call, "unlink", os.unlink, self._file(key))

    def again(self) -> FileBoard:
        """As `Board.again`."""
        return FileBoard(self.directory, self._token, Caller(self._caller.deadline_s))

    def lost(self, first: str, why: str) -> WorkerError:
        """As `Board.lost`; `first` has nothing to do with it."""
        del first
        hint = "is the storage that the hosts share there, and has nobody begun another run?"
        return WorkerError("EP407", f"what the hosts say to each other in {self.directory}: {why}", hint)

    def close(self, *, all_left: bool = False) -> None:
        """As `Board.close`; the directory goes, where no other run has begun in it."""
        if self.is_ours and all_left:
            with contextlib.suppress(BoardError, EplbError):
                self.ask(self._require_current)
                self.ask(_remove_all, self.directory, self.path)
        self._caller.end()

    def ask(self, call: Callable[..., T], *args: object) -> T:
        """What a call to the file system returns, in time. Raises BoardError, OutputError."""
        try:
            return self._caller(call, *args)
        except OSError as error:
            raise files.output_error(error, error.filename or self.directory) from error

    def _in_run(self, call: Callable[..., T], *args: object) -> T:
        """The same for a file of this run, again where another host replaced it meanwhile (NFS: ESTALE)."""
        try:
            return self._caller(call, *args)
        except OSError:
            self.ask(self._require_current)
        try:
            return self._caller(call, *args)
        except FileNotFoundError as error:
            raise SupersededError("the run has ended there") from error
        except OSError as error:
            raise files.output_error(error, error.filename or self.path) from error

    def _file(self, key: str) -> Path:
        return self.path / key.replace("/", ".")

    def _current(self) -> str:
        with contextlib.suppress(FileNotFoundError):
            _refuse_foreign(self.directory)
            make_call("list", os.listdir, self.directory)  # NFS forgets that there was none
            token = _read(self.directory / _CURRENT).decode("ascii", errors="replace")
            return token if _TOKEN.fullmatch(token) else ""
        return ""

    def _require_current(self) -> None:
        if self._current() != self._token:
            raise SupersededError("another run has begun there")


def _is_first(path: Path) -> bool:
    """Create an empty file; False where it is there."""
    try:
        os.close(make_call("open", os.open, path, _NEW, 0o600))
    except FileExistsError:
        return False
    return True
