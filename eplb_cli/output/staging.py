"""Writing a tree that appears whole or not at all.

All files are written in a staging directory beside DST, which is locked while in use. One rename
publishes it. Working files (job, outcomes, progress, journals) live in `WORK` inside staging. What
becomes of staging, whatever happens, is decided here and nowhere else.

The order of the end, and what `--resume` finds where the run ends after a step::

    eplb.json written        all is proved: WORK has the journals
    the place of DST tried   whatever can forbid the rename does so now, while WORK is still there
    WORK removed, synced     staging is DST but for its name, and eplb.json in it says that all was proved
    renamed, parent synced   DST

WORK cannot stay until after the rename: a reader, or a crash, would find it in DST. It cannot be moved out
of staging either, since nothing else is made beside DST. So what says that all was proved changes hands:
from the journals to `eplb.json`, which is written last and is there before the first journal goes. At any
moment one of the two is on the disk. A resumed run puts `eplb.json` into WORK, takes every row for written,
compares all of them with SRC, and publishes; it moves only what differs.

A failed rename, or an interruption, after all was proved therefore deletes nothing. Commands that cannot
resume say how to publish by hand: staging without WORK is what DST is to be.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import stat
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from eplb_cli import files
from eplb_cli.checkpoint.manifest import MANIFEST_NAME
from eplb_cli.errors import EplbError, OutputError, WorkerError
from eplb_cli.output.destination import real_path, require_place, staging_path
from eplb_cli.output.journal import journals
from eplb_cli.output.lock import OWNER, is_at, locked, write_owner
from eplb_cli.output.shard_files import check_space, create_files, reopen, whole_files
from eplb_cli.output.tree import OutputFile, OutputTree
from eplb_cli.progress import NOTHING_WRITTEN, come_of_it

WORK = ".eplb"


@dataclass(eq=False)
class Staging:
    """A tree that is being written, see `staging`.

    Attributes:
        path: the locked directory, which becomes `destination`.
        descriptor: holds the lock.
        durable: wait until the disk has what is written.
        resumes: an earlier run has left files and journals here, or all of DST.
        is_proved: all of DST is written and proved.
        shards: the files that were created.
        unlinked: the numbers of those that are the same as another and could not be linked to it.
    """

    path: Path
    destination: Path
    descriptor: int
    durable: bool
    resumes: bool
    is_proved: bool = False
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
def staging(destination: Path, *, durable: bool, resume: bool | None = None) -> Iterator[Staging]:
    """Write a tree: the block creates its shards, fills and proves them; then it is opened, and becomes DST.

    The directory is a fresh one, or with `resume` the one that an earlier run has left. It is removed
    where the block fails, but not where an error that may pass ends a run whose journals say what is
    done already, and never once all is proved: then the hint of the error says how to go on. What is true
    of the output is in `come_of_it` whenever this ends, whatever ends it.

    Args:
        resume: None for a command that cannot go on with what another run has left.

    Raises:
        OutputError: EP605, another run holds it; EP601, DST has come to exist; EP603, EP604 or EP606.
        BytesError: EP505, a shard cannot be opened.
    """
    destination = real_path(destination)
    path = staging_path(destination)
    work = path / WORK
    with locked(path, work / OWNER) as descriptor:
        stage = Staging(path, destination, descriptor, durable, resumes=False)
        try:
            stage.resumes = bool(resume) and bool(journals(work) or proved_before(work))
            _begin(stage)
            yield stage
            reopen(path, stage.shards)
            stage.is_proved = True
            _publish(stage)
            come_of_it.set(_published(stage))
        except BaseException as error:
            _end(stage, error, can_resume=resume is not None)
            raise


def proved_before(work: Path) -> Path | None:
    """The `eplb.json` of an earlier run, which had proved all and was to rename staging."""
    return next((path for path in (work.parent / MANIFEST_NAME, work / MANIFEST_NAME) if path.exists()), None)


def _begin(stage: Staging) -> None:
    """Remove what is of no use, and say whose the directory is now."""
    if not stage.resumes:
        _clear(stage.path)
    with files.writing(stage.path):
        if stage.destination.is_dir():  # what is private there is private here
            files.attempt("chmod", os.fchmod, stage.descriptor, _mode_of(stage.destination) | stat.S_IRWXU)
        with contextlib.suppress(FileExistsError):
            files.attempt("mkdir", os.mkdir, stage.work, 0o700)  # nobody else plants a link in it
        if stage.resumes:
            with contextlib.suppress(FileNotFoundError):
                proved = stage.path / MANIFEST_NAME, stage.work / MANIFEST_NAME
                files.attempt("rename", os.replace, *proved)
            _clear(stage.work, but=[*journals(stage.work), stage.work / MANIFEST_NAME])
    write_owner(stage.work / OWNER)


def _mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def _end(stage: Staging, error: BaseException, *, can_resume: bool) -> None:
    """Keep staging or remove it, and say which."""
    if is_at(stage.destination, stage.descriptor):
        come_of_it.set(_published(stage))
    elif stage.is_proved or _can_be_resumed(error, stage):
        kept = _kept(stage, can_resume=can_resume)
        come_of_it.set(kept)
        if isinstance(error, EplbError):
            error.hint = "; ".join(filter(None, [error.hint, kept]))
    else:
        _remove(stage.path, stage.descriptor)
        is_left = is_at(stage.path, stage.descriptor)
        come_of_it.set(f"{stage.path} could not be removed" if is_left else NOTHING_WRITTEN)


def _published(stage: Staging) -> str:
    return f"{stage.destination} is there and whole"


def _kept(stage: Staging, *, can_resume: bool) -> str:
    """Where what was done is, and how to go on."""
    if can_resume:
        return f"what was done is kept in {stage.path}: --resume goes on from it"
    remove = shlex.join(["rm", "-rf", str(stage.work)])
    rename = shlex.join(["mv", "-T", str(stage.path), str(stage.destination)])
    return f"all of it is proved and kept in {stage.path}: `{remove} && {rename}` publishes it"


def _can_be_resumed(error: BaseException, stage: Staging) -> bool:
    """Whether what is written is good and on record, and the same inputs may do another time."""
    if not journals(stage.work) and not (stage.resumes and proved_before(stage.work)):
        return False
    if not isinstance(error, EplbError):
        return stage.resumes  # who interrupts a run that goes on does not mean what was kept before it
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
    """Make staging DST, in one rename that never replaces anything but an empty directory, whose mode stays.

    Raises:
        OutputError: EP601, DST is not free any more; EP604; EP606, DST is there but may not survive a crash.
    """
    require_place(stage.destination)
    with files.writing(stage.path):
        files.remove_tree(stage.work)
    if stage.durable:
        files.sync_directory(stage.path)
    with files.writing(stage.destination):
        if stage.destination.is_dir():
            files.attempt("chmod", os.fchmod, stage.descriptor, _mode_of(stage.destination))
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
