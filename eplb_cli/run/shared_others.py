"""Other tensors that every rank has alike: they are written once, and must be so where R changes.

Nothing is read where it is already known: the ranks share one file, or the manifest of SRC has the digests.
Of the rest three blocks are compared first, so that tensors which differ cost little; then all of it.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

from eplb_cli.arrays import Digests, Int, distinct
from eplb_cli.checkpoint.places import Places, file_identities, other_numbers
from eplb_cli.checkpoint.sharded import ShardedCheckpoint
from eplb_cli.checkpoint.shards import TensorAt
from eplb_cli.digests import DIGEST_NBYTES
from eplb_cli.output.tree import sharded_error
from eplb_cli.placements.placement import Placement
from eplb_cli.progress import ProgressBar, telling
from eplb_cli.values import dataclass

if TYPE_CHECKING:
    from eplb_cli.transfer.trees import Tree

SAMPLE_NBYTES = 4096
LEAST_SHARED_NBYTES = 1 << 20
"""Bytes of a rank that are worth a file of their own."""


@dataclass(frozen=True, eq=False)
class Alike:
    """What was found.

    Attributes:
        keys: other tensors that all old ranks have, with the same bytes; none if they are not worth a file.
        digests: (X, 16) of the old places that were read for it, or that the manifest has; else zero.
    """

    keys: frozenset[str]
    digests: Digests

    @classmethod
    def unknown(cls, checkpoint: ShardedCheckpoint) -> Alike:
        """Nothing was compared."""
        return cls(frozenset(), np.zeros((len(checkpoint.places.rank), DIGEST_NBYTES), np.uint8))


def find_alike(checkpoint: ShardedCheckpoint, new: Placement, threads: int, progress: ProgressBar) -> Alike:
    """Compare the other tensors of all old ranks, where the answer matters.

    Raises:
        CheckpointError: EP213, one differs and R changes; EP220, SRC changes while it is read.
    """
    places = checkpoint.places
    digests = np.zeros((len(places.rank), DIGEST_NBYTES), np.uint8)
    candidates = _candidates(checkpoint, new)
    if not candidates:
        _refuse_sharded(checkpoint, new, set())
        return Alike(frozenset(), digests)
    # A plan that has nothing to compare starts without what reads and hashes.

    from eplb_cli.transfer.reading import digest_distinct
    from eplb_cli.transfer.threads import Threads
    from eplb_cli.transfer.trees import source_tree

    one_file = file_identities(checkpoint.shards, places)
    known = checkpoint.known_digests
    alike, unsure = set(), {}
    with source_tree(checkpoint.shards.files) as tree:
        for key, of_key in candidates.items():
            if known is not None and known[of_key].any(axis=1).all():
                digests[of_key] = known[of_key]
                alike |= {key} if _all_equal(known[of_key]) else set()
            elif len(distinct(one_file[of_key])) == 1 or not places.nbytes[of_key[0]]:
                alike.add(key)
            elif _samples_agree(places, of_key, tree):
                unsure[key] = of_key
        wanted = np.concatenate([np.zeros(0, np.int64), *unsure.values()])
        with (
            progress(int(places.nbytes[wanted].sum()), "compare") as show,
            Threads(threads) as pool,
            telling(show) as advance,
        ):
            digests[wanted] = digest_distinct(places, wanted, one_file, tree, pool, advance)[wanted]
    alike |= {key for key, of_key in unsure.items() if _all_equal(digests[of_key])}
    _refuse_sharded(checkpoint, new, alike)
    is_worth = sum(int(places.nbytes[candidates[key][0]]) for key in alike) >= LEAST_SHARED_NBYTES
    return Alike(frozenset(alike) if is_worth else frozenset(), digests)


def _candidates(checkpoint: ShardedCheckpoint, new: Placement) -> dict[str, Int]:
    """Key to the old places, one per old rank, of the tensors for which it matters whether they are alike.

    With the same R, it does for those that can be in files which the ranks share.
    """
    old = checkpoint.placement
    base = checkpoint.row_nbytes.size * old.num_slots
    found: dict[str, list[int]] = defaultdict(list)
    for (_, key), number in other_numbers(checkpoint.others).items():
        found[key].append(base + number)
    candidates = {
        key: np.array(numbers, np.int64)
        for key, numbers in found.items()
        if key not in checkpoint.settled
        and len(numbers) == old.num_ranks
        and len({_form(tensors[key]) for tensors in checkpoint.others}) == 1
    }
    is_worth = sum(checkpoint.others[0][key].entry.nbytes for key in candidates) >= LEAST_SHARED_NBYTES
    if new.num_ranks == old.num_ranks and not (checkpoint.can_share and is_worth):
        return {}
    return candidates


def _refuse_sharded(checkpoint: ShardedCheckpoint, new: Placement, alike: set[str]) -> None:
    """EP213 where R changes and another tensor is not the same on all old ranks."""
    different = {key for tensors in checkpoint.others for key in tensors} - alike - checkpoint.settled
    if different and new.num_ranks != checkpoint.placement.num_ranks:
        raise sharded_error(sorted(different), checkpoint.placement.num_ranks, new.num_ranks)


def _form(tensor: TensorAt) -> tuple[str, tuple[int, ...]]:
    return tensor.entry.dtype, tensor.entry.shape


def _samples_agree(places: Places, of_key: Int, tree: Tree) -> bool:
    """Whether the first, the middle and the last block are the same on all ranks."""
    nbytes = int(places.nbytes[of_key[0]])
    size = min(SAMPLE_NBYTES, nbytes)
    samples = set()
    for file, offset in zip(places.file[of_key].tolist(), places.offset[of_key].tolist(), strict=True):
        blocks = [bytearray(size) for _ in range(3)]
        for begin, block in zip((0, (nbytes - size) // 2, nbytes - size), blocks, strict=True):
            tree.read(file, memoryview(block), offset + begin)
        samples.add(bytes(b"".join(blocks)))
        if len(samples) > 1:
            return False
    return True


def _all_equal(digests: Digests) -> bool:
    return bool((digests == digests[0]).all())
