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
from the journals to `eplb.json`, which is written last and is there before the first journal goes, and to
that WORK is gone, all at once, which no other staging directory can say (`merge` writes no `eplb.json`). At
any moment one of them is on the disk. A resumed run puts `eplb.json` into WORK, takes every row for written,
compares all of them with SRC, and publishes; it moves only what differs.

Several hosts do this together, each with a staging directory of its own beside its DST, or with one that they
share, which one of them holds. Each host renames once all have proved what they have written: the manifest
there says so on each of them, and one that is lost then is finished by `--resume`.

A failed rename, or an interruption, deletes nothing that is done, but for a second interruption within a
second, and for whoever wants nothing kept.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import stat
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eplb_cli import files
from eplb_cli.checkpoint.manifest import MANIFEST_NAME
from eplb_cli.checkpoint.staged import HOST_WORK, OWNER, WORK, going_on
from eplb_cli.errors import EplbError, OutputError, PlanError, WorkerError
from eplb_cli.hosts.hosts import ALONE, Hosts
from eplb_cli.interrupts import interrupts
from eplb_cli.output.destination import real_path, require_place, staging_path
from eplb_cli.output.journal import journals, read_written
from eplb_cli.output.lock import is_at, locked, owner_in, write_owner
from eplb_cli.output.prepared import Prepared
from eplb_cli.output.shard_files import check_space, create_files, reopen, whole_files
from eplb_cli.output.tree import OutputFile
from eplb_cli.progress import NOTHING_WRITTEN, REMOVED, bytes_in_words, come_of_it, command

_ENDED_WORK = ".eplb-ended"
"""What WORK is called while it is removed."""


@dataclass(eq=False)
class Staging:
    """A tree that is being written, see `staging`.

    Attributes:
        path: the locked directory, which becomes `destination`.
        descriptor: of the directory; it holds the lock, if this host does.
        durable: wait until the disk has what is written.
        resumes: an earlier run has left files and journals here, or all of DST.
        was_proved: it had proved all of DST.
        is_proved: all of DST is written and proved.
        prepared: what is written; None before `create`.
        numbers: of the files that were created.
        unlinked: those of them that are the same as another and could not be linked to it.
        hosts: who writes.
        holders: for each host the one that holds the directory which it writes to.
        run: of these hosts, the same on all of them; empty where there is one.
    """

    path: Path
    destination: Path
    descriptor: int
    durable: bool
    hosts: Hosts = ALONE
    holders: tuple[int, ...] = (0,)
    run: str = ""
    resumes: bool = False
    was_proved: bool = False
    is_proved: bool = False
    prepared: Prepared | None = None
    numbers: tuple[int, ...] = ()
    unlinked: tuple[int, ...] = ()

    @property
    def work(self) -> Path:
        """Where the files of the run itself are kept."""
        return self.path / WORK

    @property
    def own(self) -> Path:
        """Where those of this host's processes are."""
        return self.work if self.hosts.count == 1 else self.work / f"{HOST_WORK}{self.hosts.node}"

    @property
    def is_held(self) -> bool:
        """Whether this host holds the directory: else another one does, which creates and publishes it."""
        return self.holders[self.hosts.node] == self.hosts.node

    @property
    def files(self) -> list[OutputFile]:
        """Those that were created."""
        outputs = () if self.prepared is None else self.prepared.output.files
        return [outputs[number] for number in self.numbers]

    def holds(self, nodes: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Of hosts, which ones write to a directory that this one holds."""
        return np.asarray(np.array(self.holders)[nodes] == self.hosts.node)

    def create(self, prepared: Prepared) -> None:
        """Create all shards with their headers and all their space, but for what an earlier run has left.

        Raises:
            OutputError: EP603 or EP604.
        """
        self.prepared = prepared
        if not self.is_held:
            return
        output = prepared.output
        held = self.holds(prepared.hosting.node_of_new)
        self.numbers = tuple(number for number, file in enumerate(output.files) if held[file.rank])
        check_space(self.path, output, self.destination, self.numbers)
        there = whole_files(self.path, output, self.numbers)
        _clear(self.path, but=[self.work, *there])
        self.unlinked = tuple(create_files(self.path, output, self.numbers, there))

    def write(self, name: str, content: bytes) -> None:
        """Write a small file beside the shards. Raises OutputError."""
        files.write_file(self.path / name, content, durable=self.durable)


@contextlib.contextmanager
def staging(
    destination: Path, *, durable: bool, resume: bool = False, keep: bool = True, hosts: Hosts = ALONE
) -> Iterator[Staging]:
    """Write a tree: the block creates its shards, fills and proves them; then it is opened, and becomes DST.

    The directory is a fresh one, or with `resume` the one that an earlier run has left. It is removed
    where the block fails, but not where an interruption, or an error that may pass, ends a run whose journals
    say what is done already, nor once all is proved: then the hint of the error says how to go on. What is
    true of the output is in `come_of_it` whenever this ends, whatever ends it.

    Args:
        keep: without it nothing is kept, whatever ends the block.
        hosts: that write at the same time; DST appears on all of them once all have proved.

    Raises:
        OutputError: EP605, another run holds it; EP601, DST has come to exist; EP603, EP604 or EP606.
        BytesError: EP505, a shard cannot be opened.
        EplbError: another host has failed.
    """
    destination = real_path(destination)
    path = staging_path(destination)
    with contextlib.ExitStack() as stack:
        stage = Staging(path, destination, -1, durable, hosts)
        try:
            _take(stage, stack, resume=resume)
            yield stage
            reopen(path, stage.files)
            stage.is_proved = True
            _agree(stage)
            if stage.is_held:
                _publish(stage)
            come_of_it.set(_published(stage))
            hosts.gather(b"", "published")
        except BaseException as error:
            hosts.fail(error)  # before its hint says what is here
            if stage.descriptor >= 0:
                _end(stage, error, keep=keep)
            raise


def _take(stage: Staging, stack: contextlib.ExitStack, *, resume: bool) -> None:
    """Hold the directory, until the stack is left; or join the host that holds it.

    Hosts do so one after the other, so that each sees whether it is the directory of one before it.
    """
    hosts, path, owner = stage.hosts, stage.path, stage.work / OWNER
    token = secrets.token_hex(8) if hosts.count > 1 else ""
    stage.run = run = hosts.gather(token.encode(), "run")[0].decode()
    holders = [-1] * hosts.count
    for turn in range(hosts.count):
        holder = turn
        if turn == hosts.node:
            with files.writing(path.parent):
                os.scandir(path.parent).close()  # what another host has made is seen, also over a network
            said = owner_in(owner) if run else None
            if said is not None and said.run == run:
                holder = said.node
                stage.descriptor = stack.enter_context(files.closing(files.open_directory(path)))
            else:
                stage.descriptor = stack.enter_context(locked(path, owner))
                stage.was_proved = resume and proved_before(path)
                stage.resumes = stage.was_proved or (resume and bool(journals(stage.work)))
                _begin(stage, run)
        holders[turn] = int(hosts.gather(b"%d" % holder, "staging")[turn])
    stage.holders = tuple(holders)
    stage.resumes = any(said == b"1" for said in hosts.gather(b"%d" % stage.resumes, "resume"))
    if hosts.count > 1:
        with files.writing(stage.own):
            files.attempt("mkdir", os.mkdir, stage.own, 0o700)
        write_owner(stage.own / OWNER, run, hosts.node)


def _agree(stage: Staging) -> None:
    """Return once all hosts have proved what they wrote, and have said the same of all of it.

    Raises:
        PlanError: EP302, two manifests differ.
        EplbError: another host has failed, and none publishes.
    """
    hosts, manifest = stage.hosts, stage.path / MANIFEST_NAME
    said = b""
    if hosts.count > 1 and stage.is_held:
        said = hashlib.sha256(files.read_own_file(manifest)).digest()
    digests = hosts.gather(said, "proved")
    first = digests[stage.holders[0]]
    for node in {*stage.holders}:
        if digests[node] != first:
            problem = f"{hosts.name_of(0)} and {hosts.name_of(node)} have written different {MANIFEST_NAME}"
            raise PlanError("EP302", problem, "are their SRC, options and versions the same?")


def publish_proved(destination: Path, prove: Callable[[Path], None], *, durable: bool) -> None:
    """Publish what a run has left that had proved all of it, and had agreed with other hosts.

    Args:
        prove: looks at it again, given the directory.

    Raises:
        OutputError: as `staging`; what `prove` raises, and all is left as it was.
    """
    destination = real_path(destination)
    path = staging_path(destination)
    with locked(path, path / WORK / OWNER) as descriptor:
        stage = Staging(path, destination, descriptor, durable)
        with files.writing(path):
            with contextlib.suppress(FileNotFoundError):
                files.attempt("rename", os.replace, stage.work / MANIFEST_NAME, path / MANIFEST_NAME)
            with contextlib.suppress(FileExistsError):
                files.attempt("mkdir", os.mkdir, stage.work, 0o700)  # which `_publish` takes away
            if os.path.lexists(path / _ENDED_WORK):  # that run ended while it took away its own
                files.remove_tree(path / _ENDED_WORK)
        prove(path)
        _publish(stage)
    come_of_it.set(_published(stage))


def proved_before(path: Path) -> bool:
    """Whether an earlier run had proved all that is in a staging directory, and was to rename it."""
    work = path / WORK
    with files.calls:
        is_said = (path / MANIFEST_NAME).exists() or (work / MANIFEST_NAME).exists()
        return is_said or (path.is_dir() and not os.path.lexists(work) and any(path.iterdir()))


def _begin(stage: Staging, run: str) -> None:
    """Remove what is of no use, and say whose the directory is now."""
    if not stage.resumes:
        _clear(stage.path)
    with files.writing(stage.path):
        if stage.destination.is_dir():  # what is private there is private here
            files.attempt("chmod", os.fchmod, stage.descriptor, _mode_of(stage.destination) | stat.S_IRWXU)
        with contextlib.suppress(FileExistsError):
            files.attempt("mkdir", os.mkdir, stage.work, 0o700)  # nobody else plants a link in it
        if stage.resumes:
            proved = stage.work / MANIFEST_NAME
            with contextlib.suppress(FileNotFoundError):
                files.attempt("rename", os.replace, stage.path / MANIFEST_NAME, proved)
            _clear(stage.work, but=[*journals(stage.work), proved])
            if stage.was_proved and not proved.exists():  # that WORK was gone has said it
                files.write_file(proved, b"", durable=False)
    write_owner(stage.work / OWNER, run, stage.hosts.node)


def _mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def _end(stage: Staging, error: BaseException, *, keep: bool) -> None:
    """Keep staging or remove it, and say which."""
    if is_at(stage.destination, stage.descriptor):
        come_of_it.set(_published(stage))
        if isinstance(error, EplbError) and stage.hosts.count > 1:
            finishes = f"{_resuming()} on all hosts finishes it where it is not"
            error.hint = "; ".join(filter(None, [error.hint, f"{_published(stage)} here: {finishes}"]))
    elif keep and (stage.is_proved or _can_be_resumed(error, stage)) and not interrupts.is_repeated():
        kept = _kept(stage)
        come_of_it.set(kept)
        if isinstance(error, EplbError):
            error.hint = "; ".join(filter(None, [error.hint, kept]))
    else:
        if stage.is_held:
            _remove(stage.path, stage.descriptor)
        is_left = stage.is_held and is_at(stage.path, stage.descriptor)
        gone = NOTHING_WRITTEN if stage.prepared is None else REMOVED
        come_of_it.set(f"{stage.path} could not be removed" if is_left else gone)


def _published(stage: Staging) -> str:
    return f"{stage.destination} is there and whole"


def _kept(stage: Staging) -> str:
    """How much is done, where it is, and how to go on."""
    return f"what was done{_done(stage)} is kept in {stage.path}: {_resuming()} goes on from it"


def _resuming() -> str:
    """How to run again with what is there, in words."""
    words = going_on(command.get())
    return f"`{words}`" if words else "resume=True"


def _done(stage: Staging) -> str:
    """` (412 MB of 843 MB)`, of all that is copied; nothing where it is not known."""
    prepared = stage.prepared
    if prepared is None:
        return ""
    nbytes = prepared.new_places.nbytes * stage.holds(prepared.hosting.node_of_new)[prepared.new_places.rank]
    places = prepared.pieces.destination
    total = int(nbytes[places].sum())
    if stage.is_proved:
        return f" ({bytes_in_words(total)}, all of it proved)"
    try:
        written = read_written(journals(stage.work), prepared.digest, len(nbytes))
    except EplbError:
        return ""
    return f" ({bytes_in_words(int(nbytes[written].sum()))} of {bytes_in_words(total)})"


def _can_be_resumed(error: BaseException, stage: Staging) -> bool:
    """Whether what is written is good and on record, and the same inputs may do another time."""
    if not journals(stage.work) and not stage.was_proved:
        return False
    if not isinstance(error, EplbError):
        return stage.resumes or not isinstance(error, Exception)  # an interruption is none
    if isinstance(error, OutputError):
        return error.code != "EP606"  # nobody knows what the disk has
    return isinstance(error, WorkerError) or error.code in {"EP201", "EP305"}


def _clear(path: Path, but: Collection[Path] = ()) -> None:
    """Remove what an earlier run left, but for some files; last what says that it is not finished."""
    with files.writing(path), os.scandir(path) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name == WORK):
            if Path(entry.path) in but:
                continue
            if entry.is_dir(follow_symlinks=False):
                files.remove_tree(Path(entry.path))
            else:
                files.attempt("unlink", os.unlink, entry.path)


def _remove(path: Path, descriptor: int) -> None:
    """Remove staging, if it is still there under its own name; never raises."""
    if is_at(path, descriptor):
        with contextlib.suppress(OSError, EplbError):
            _clear(path)
            files.attempt("rmdir", os.rmdir, path)


def _publish(stage: Staging) -> None:
    """Make staging DST, in one rename that never replaces anything but an empty directory, whose mode stays.

    Raises:
        OutputError: EP601, DST is not free any more; EP604; EP606, DST is there but may not survive a crash.
    """
    require_place(stage.destination)
    with files.writing(stage.path):
        ended = stage.path / _ENDED_WORK
        files.attempt("rename", os.rename, stage.work, ended)
        files.remove_tree(ended)
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
