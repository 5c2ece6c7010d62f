"""What need not be done: what was read already, and what an earlier run has left in staging."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eplb_cli import files
from eplb_cli.arrays import distinct
from eplb_cli.checkpoint.staged import WORK
from eplb_cli.errors import CheckpointError, OutputError, PlanError
from eplb_cli.hosts.hosts import ALONE, Hosts
from eplb_cli.machine import reading_threads
from eplb_cli.output.destination import real_path, staging_path
from eplb_cli.output.journal import Known, journals, read_written, write_written
from eplb_cli.output.prepared import Prepared
from eplb_cli.output.shard_files import check_space
from eplb_cli.output.staging import Staging, proved_before
from eplb_cli.progress import ProgressBar, bytes_in_words, telling
from eplb_cli.transfer.reading import start_digests
from eplb_cli.transfer.threads import Threads
from eplb_cli.transfer.trees import Tree, source_tree


def written_before(
    prepared: Prepared,
    path: Path,
    *,
    was_proved: bool,
    hosts: Hosts = ALONE,
    staged: NDArray[np.bool_] | None = None,
) -> NDArray[np.bool_]:
    """(X,) new places that an earlier run calls written: all where it had proved all, else those in journals.

    Of several hosts each says what it was told of its own staging; a collective.

    Args:
        path: the staging directory, if there was one.
        staged: (F',) files that are in it, and that this host holds; all if it is left out.

    Raises:
        PlanError: EP305, it had other inputs.
        OutputError: EP604, what it has left cannot be read.
    """
    told = read_written(journals(path / WORK), prepared.digest, len(prepared.new_places.rank))
    if was_proved:
        if any(_begins_otherwise(path / file.name, file.header) for file in prepared.output.files):
            raise PlanError("EP305", f"{path} was begun with other inputs")
        told = np.ones_like(told)
    return hosts.union(told & _in_staging(prepared, staged), "what was written")


def _in_staging(prepared: Prepared, staged: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
    """(X,) new places that are in the staging directory of this host."""
    file = prepared.new_places.file
    return np.ones(len(file), bool) if staged is None else staged[file] & (file >= 0)


def _begins_otherwise(path: Path, header: bytes) -> bool:
    """Whether a file is there that has not this beginning, as far as it goes. Raises EP604."""
    if not path.exists():
        return False
    try:
        with files.opened_source(path) as descriptor:
            content = bytearray(min(len(header), os.fstat(descriptor).st_size))
            files.read_into(descriptor, memoryview(content), 0, path)
    except CheckpointError as error:
        raise OutputError("EP604", error.message) from error
    return not header.startswith(content)


def known_before(
    prepared: Prepared,
    stage: Staging,
    told: NDArray[np.bool_],
    digests: NDArray[np.uint8],
    progress: ProgressBar,
    hosts: Hosts = ALONE,
    staged: NDArray[np.bool_] | None = None,
) -> Known:
    """What is known before the first byte moves.

    Every place that an earlier run calls written is read again, and so is its source: it
    counts where both are the same now. That SRC has the names, sizes and times of before says nothing of
    its rows. Of several hosts each reads what is its own of both trees; a collective.

    Args:
        told: as `written_before` gives it.
        digests: (X, 16) of old places that were read already, zero for the others.
        staged: (F',) files that are in staging and that this host writes.

    Raises:
        CheckpointError: EP220, SRC changes while it is read.
    """
    num_new = len(prepared.new_places.rank)
    if not told.any():  # the same on all hosts, whatever each of them found
        return Known(digests, np.zeros(num_new, bool))
    here = _in_staging(prepared, staged)
    if stage.is_held and not journals(
        stage.work
    ):  # that all was proved is not forgotten while it is looked at
        held = stage.holds(prepared.hosting.node_of_new)[prepared.new_places.rank]
        write_written(stage.work, told & held, prepared.digest)
    pieces = np.flatnonzero(told[prepared.pieces.destination])
    source, destination = prepared.pieces.source[pieces], prepared.pieces.destination[pieces]
    sources, reads = distinct(source), prepared.checkpoint.shards.is_read_here
    mine = sources[reads[prepared.old_places.file[sources]]]
    old, new = _read_both(prepared, stage, mine, destination[here[destination]], progress)
    old[sources] = hosts.union(old[sources], "old rows of what was written")
    new[destination] = hosts.union(new[destination], "what was written, read again")
    written = np.zeros(num_new, bool)
    written[destination] = (old[source] == new[destination]).all(axis=1)
    return Known(np.where(old.any(axis=1, keepdims=True), old, digests), written)


def _read_both(
    prepared: Prepared,
    stage: Staging,
    source: NDArray[np.int64],
    destination: NDArray[np.int64],
    progress: ProgressBar,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The digests (X, 16) of some old and of some new places, zero for the others; both read at a time."""
    shards, old, new = prepared.checkpoint.shards.files, prepared.old_places, prepared.new_places
    staged = [stage.path / file.name for file in prepared.output.files]
    total_nbytes = int(old.nbytes[source].sum() + new.nbytes[destination].sum())
    with (
        source_tree(shards) as source_files,
        Tree(staged) as staged_files,
        Threads(reading_threads(1)) as pool,
        progress(total_nbytes, "check what is there") as show,
        telling(show) as advance,
    ):
        old_digests, reading = start_digests(old, source, source_files, pool, advance)
        new_digests, reading_staged = start_digests(new, destination, staged_files, pool, advance)
        reading.wait()
        reading_staged.wait()
    return old_digests, new_digests


def try_destination(prepared: Prepared, destination: Path, *, resume: bool, node: int = 0) -> None:
    """What a run finds in the place of DST before it writes: room, and what it could go on with.

    Args:
        node: which of several hosts this is.

    Raises:
        OutputError: EP603, it does not fit.
        PlanError: EP305, what an earlier run has left is for other inputs.
    """
    destination = real_path(destination)
    path = staging_path(destination)
    here = prepared.is_on(node)
    check_space(path, prepared.output, destination, np.flatnonzero(here).tolist())
    if resume:
        written_before(prepared, path, was_proved=proved_before(path), staged=here)


def taken_over(prepared: Prepared, stage: Staging, known: Known) -> list[str]:
    """What a run that goes on has not done again, in words; nothing where it does not go on."""
    if not stage.resumes:
        return []
    nbytes, places = prepared.new_places.nbytes, prepared.pieces.destination
    done, total = (bytes_in_words(int(nbytes[part].sum())) for part in (known.written, places))
    return [f"{done} of {total} taken over, read again"]
