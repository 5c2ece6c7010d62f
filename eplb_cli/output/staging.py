"""Writing a tree that appears whole or not at all.

All files are written in a staging directory beside DST, which is locked while in use. One rename
publishes it. Working files (job, outcomes, progress) live in `WORK` inside staging and are gone
before the rename. What becomes of staging, whatever happens, is decided here and nowhere else.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from eplb_cli import files
from eplb_cli.errors import EplbError, OutputError, WorkerError
from eplb_cli.output.destination import real_path, require_free, staging_path
from eplb_cli.output.journal import journals
from eplb_cli.output.lock import OWNER, is_at, locked, write_owner
from eplb_cli.output.shard_files import check_space, create_files, reopen, whole_files
from eplb_cli.output.tree import OutputFile, OutputTree

WORK = ".eplb"


@dataclass(eq=False)
class Staging:
    """A tree that is being written, see `staging`.

    Attributes:
        path: the locked directory, which becomes `destination`.
        descriptor: holds the lock.
        durable: wait until the disk has what is written.
        resumes: an earlier run has left files and journals here.
        shards: the files that were created.
        unlinked: the numbers of those that are the same as another and could not be linked to it.
    """

    path: Path
    destination: Path
    descriptor: int
    durable: bool
    resumes: bool
    shards: tuple[OutputFile, ...] = ()
    unlinked: tuple[int, ...] = ()

    @property
    def work(self) -> Path:
        """Where the files of the run itself are kept."""
        return self.path / WORK

    def create(self, output: OutputTree) -> None:
        """Create all shards with their headers and all their space, but for what an earlier run has left.

        Raises:
            OutputError: EP603 or EP604.
        """
        check_space(self.path, output, self.destination)
        there = whole_files(self.path, output)
        _clear(self.path, but=[self.work, *there])
        self.unlinked = tuple(create_files(self.path, output, there))
        self.shards = output.files

    def write(self, name: str, content: bytes) -> None:
        """Write a small file beside the shards. Raises OutputError."""
        files.write_file(self.path / name, content, durable=self.durable)


@contextlib.contextmanager
def staging(destination: Path, *, durable: bool, resume: bool = False) -> Iterator[Staging]:
    """Write a tree: the block creates its shards, fills and proves them; then it is opened, and becomes DST.

    The directory is a fresh one, or with `resume` the one that an earlier run has left. It is removed
    where the block fails, but not where an error that may pass ends a run whose journals say what is
    done already: then the hint of the error says how to go on.

    Raises:
        OutputError: EP605, another run holds it; EP601, DST has come to exist; EP603, EP604 or EP606.
        BytesError: EP505, a shard cannot be opened.
    """
    destination = real_path(destination)
    path = staging_path(destination)
    work = path / WORK
    with locked(path, work / OWNER) as descriptor:
        is_kept = False
        try:
            resumes = resume and bool(journals(work))
            stage = Staging(path, destination, descriptor, durable, resumes)
            _begin(stage)
            yield stage
            reopen(path, stage.shards)
            _publish(stage)
        except EplbError as error:
            is_kept = _can_be_resumed(error) and bool(journals(work))
            if is_kept:
                kept = f"what was done is kept in {path}: --resume goes on from it"
                error.hint = "; ".join(filter(None, [error.hint, kept]))
            raise
        finally:
            if not is_kept:
                _remove(path, descriptor)


def _begin(stage: Staging) -> None:
    """Remove what is of no use, and say whose the directory is now."""
    if stage.resumes:
        _clear(stage.work, but=journals(stage.work))
    else:
        _clear(stage.path)
    with files.writing(stage.path), contextlib.suppress(FileExistsError):
        files.attempt("mkdir", os.mkdir, stage.work, 0o700)  # nobody else plants a link in it
    write_owner(stage.work / OWNER)


def _can_be_resumed(error: EplbError) -> bool:
    """Whether what is written is good, and the same inputs may do another time."""
    if isinstance(error, OutputError):
        return error.code != "EP606"  # nobody knows what the disk has
    return isinstance(error, WorkerError) or error.code in {"EP201", "EP305"}


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
    if is_at(path, descriptor):
        with contextlib.suppress(OSError):
            files.remove_tree(path)


def _publish(stage: Staging) -> None:
    """Make staging DST, in one rename that never replaces anything. Raises OutputError."""
    require_free(stage.destination)
    with files.writing(stage.path):
        files.remove_tree(stage.work)
    if stage.durable:
        files.sync_directory(stage.path)
    try:
        files.attempt("rename", os.rename, stage.path, stage.destination)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise OutputError("EP601", f"{stage.destination} has come to exist meanwhile") from error
        raise files.output_error(error, stage.destination) from error
    if stage.durable:
        try:
            files.sync_directory(stage.destination.parent)
        except OutputError as error:
            problem = f"{stage.destination} is there and whole, but its name may not survive a power failure"
            raise OutputError("EP606", f"{problem}: {error.message}", "sync the file system") from error
