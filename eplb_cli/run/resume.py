"""What need not be done: what the launcher has read already, and what an earlier run has left in staging."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from eplb_cli.machine import default_threads
from eplb_cli.output.journal import Known, journals, read_written
from eplb_cli.output.prepared import Prepared
from eplb_cli.output.staging import Staging
from eplb_cli.progress import ProgressBar, accumulate
from eplb_cli.transfer.trees import Tree, source_tree, start_digests


def known_before(
    prepared: Prepared, stage: Staging, digests: NDArray[np.uint8], progress: ProgressBar
) -> Known:
    """What is known before the first byte moves.

    Every place that the journals of an earlier run call written is read again, and so is its source: it
    counts where both are the same now. That SRC has the names, sizes and times of before says nothing of
    its rows.

    Args:
        digests: (X, 16) of old places that were read already, zero for the others.

    Raises:
        PlanError: EP305, the earlier run had other inputs.
        CheckpointError: EP220, SRC changes while it is read.
    """
    num_new = len(prepared.new_places.rank)
    if not stage.resumes:
        return Known(digests, np.zeros(num_new, bool))
    told = read_written(journals(stage.work), prepared.digest, num_new)
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
