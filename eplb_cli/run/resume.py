"""What need not be done: what the launcher has read already, and what an earlier run has left in staging."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eplb_cli.checkpoint.manifest import read_manifest
from eplb_cli.errors import CheckpointError, OutputError, PlanError
from eplb_cli.machine import default_threads
from eplb_cli.output.journal import Known, journals, read_written
from eplb_cli.output.prepared import Prepared
from eplb_cli.output.staging import Staging, proved_before
from eplb_cli.progress import ProgressBar, accumulate
from eplb_cli.transfer.trees import Tree, source_tree, start_digests


def written_before(prepared: Prepared, work: Path) -> NDArray[np.bool_]:
    """(X,) new places that an earlier run calls written: all where it had proved all, else those in journals.

    Args:
        work: where its journals are, if there was one.

    Raises:
        PlanError: EP305, it had other inputs.
        OutputError: EP604, what it has left cannot be read.
    """
    told = read_written(journals(work), prepared.digest, len(prepared.new_places.rank))
    proved = proved_before(work)
    if proved is None:
        return told
    headers = _headers_in(proved)
    if headers == {file.name: file.header_digest for file in prepared.output.files}:
        return np.ones_like(told)
    if headers or not journals(work):
        raise PlanError("EP305", f"{work.parent} was begun with other inputs")
    return told


def _headers_in(proved: Path) -> dict[str, object]:
    """The digests of all headers, by file; none where `eplb.json` was cut off while it was written."""
    try:
        manifest = read_manifest(proved.parent)
    except CheckpointError as error:
        if error.code == "EP214":
            return {}
        raise OutputError("EP604", error.message) from error
    return {name: file["header_digest"] for name, file in manifest.files.items()} if manifest else {}


def known_before(
    prepared: Prepared,
    stage: Staging,
    told: NDArray[np.bool_],
    digests: NDArray[np.uint8],
    progress: ProgressBar,
) -> Known:
    """What is known before the first byte moves.

    Every place that an earlier run calls written is read again, and so is its source: it
    counts where both are the same now. That SRC has the names, sizes and times of before says nothing of
    its rows.

    Args:
        told: as `written_before` gives it.
        digests: (X, 16) of old places that were read already, zero for the others.

    Raises:
        CheckpointError: EP220, SRC changes while it is read.
    """
    num_new = len(prepared.new_places.rank)
    if not stage.resumes:
        return Known(digests, np.zeros(num_new, bool))
    pieces = np.flatnonzero(told[prepared.pieces.destination])
    source, destination = prepared.pieces.source[pieces], prepared.pieces.destination[pieces]
    old, new = _read_both(prepared, stage, np.unique(source), destination, progress)
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
        ThreadPoolExecutor(default_threads(1)) as pool,
        progress(total_nbytes, "check what is there") as show,
    ):
        advance = accumulate(show)
        old_digests, reading = start_digests(old, source, source_files, pool, advance)
        new_digests, reading_staged = start_digests(new, destination, staged_files, pool, advance)
        reading.wait()
        reading_staged.wait()
    return old_digests, new_digests
