"""What need not be done: what the launcher has read already, and what an earlier run has left in staging."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from eplb_cli.machine import default_threads
from eplb_cli.output.journal import Known, journals, read_known
from eplb_cli.output.prepared import Prepared
from eplb_cli.output.staging import Staging
from eplb_cli.progress import ProgressBar, accumulate
from eplb_cli.transfer.trees import Tree, digest_places


def known_before(
    prepared: Prepared, stage: Staging, digests: NDArray[np.uint8], progress: ProgressBar
) -> Known:
    """What is known before the first byte moves.

    Every place that the journals of an earlier run name is read again; it counts where its digest is that
    of its source.

    Args:
        digests: (X, 16) of old places that were read already, zero for the others.

    Raises:
        PlanError: EP305, the earlier run had other inputs.
    """
    new, pieces = prepared.new_places, prepared.pieces
    known = Known(digests, np.zeros(len(new.rank), bool))
    if not stage.resumes:
        return known
    told = read_known(journals(stage.work), prepared.digest, known)
    wanted = np.zeros((len(new.rank), digests.shape[1]), np.uint8)
    wanted[pieces.destination] = told.digests[pieces.source]
    places = np.flatnonzero(told.written & wanted.any(axis=1))
    paths = [stage.path / file.name for file in prepared.output.files]
    with (
        Tree(paths) as tree,
        ThreadPoolExecutor(default_threads(1)) as pool,
        progress(int(new.nbytes[places].sum()), "check what is there") as show,
    ):
        found = digest_places(new, places, tree, pool, accumulate(show))
    known.written[places] = (found[places] == wanted[places]).all(axis=1)
    return Known(told.digests, known.written)
