"""Copies of one shard on several hosts: they are one file only if their bytes are the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np

from eplb_cli.checkpoint.places import Places
from eplb_cli.checkpoint.pooled import Pool, unlike
from eplb_cli.checkpoint.seen import unusable
from eplb_cli.digests import DIGEST_NBYTES
from eplb_cli.files import Stamp
from eplb_cli.machine import reading_threads
from eplb_cli.progress import ProgressBar, silent, telling
from eplb_cli.transfer.reading import digest_places
from eplb_cli.transfer.threads import Threads
from eplb_cli.transfer.trees import source_tree


class _Copy(NamedTuple):
    path: Path
    stamp: Stamp


def copies_digests(found: Pool, progress: ProgressBar = silent) -> bytes:
    """The digests of all copies that this host is the first to have, whole files, in the order of names.

    Raises:
        CheckpointError: EP201, EP204 or EP220, one cannot be read, or changes meanwhile.
    """
    copies = [
        _Copy(found.path / shard.name, shard.own)
        for shard in found.doubtful
        if found.node in shard.copies and shard.own is not None
    ]
    nbytes = np.array([copy.stamp.nbytes for copy in copies], np.int64)
    number, zero = np.arange(len(copies)), np.zeros(len(copies), np.int64)
    with (
        source_tree(copies) as tree,
        progress(int(nbytes.sum()), "compare copies") as show,
        Threads(reading_threads(1)) as pool,
        telling(show) as advance,
    ):
        return digest_places(Places(zero, number, zero, nbytes), number, tree, pool, advance).tobytes()


def require_alike(found: Pool, said: Sequence[bytes]) -> None:
    """EP237 where two copies of a shard are not the same, with both hosts.

    Args:
        said: what `copies_digests` gives, of each host.
    """
    counts = Counter(node for shard in found.doubtful for node in shard.copies)
    for node, content in enumerate(said):
        if len(content) != counts[node] * DIGEST_NBYTES:
            raise unusable(found.name_of(node), "it has not as many digests as copies")
    left = [BytesIO(content) for content in said]
    for shard in found.doubtful:
        (first, digest), *others = ((node, left[node].read(DIGEST_NBYTES)) for node in shard.copies)
        for node, other in others:
            if other != digest:
                raise unlike(found, shard.name, (first, node), "its content")
