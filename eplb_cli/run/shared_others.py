"""Other tensors that every rank has alike: they are written once, and must be so where R changes.

Nothing is read where it is already known: the ranks share one file, or the manifest of SRC has the digests.
Of the rest three blocks are compared first, so that tensors which differ cost little; then all of it. Of
several hosts each reads what it sees, and what they have read is put together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from eplb_cli.arrays import Digests, Int, distinct
from eplb_cli.checkpoint.places import Places, file_identities, other_numbers
from eplb_cli.checkpoint.sharded import ShardedCheckpoint
from eplb_cli.checkpoint.shards import TensorAt
from eplb_cli.digests import DIGEST_NBYTES
from eplb_cli.hosts.hosts import ALONE, Hosts
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


def find_alike(
    checkpoint: ShardedCheckpoint,
    new: Placement,
    threads: int,
    progress: ProgressBar,
    hosts: Hosts = ALONE,
) -> Alike:
    """Compare the other tensors of all old ranks, where the answer matters; a collective of several hosts.

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
    for key, of_key in candidates.items():
        if known is not None and known[of_key].any(axis=1).all():
            digests[of_key] = known[of_key]
            alike |= {key} if _all_equal(known[of_key]) else set()
        elif len(distinct(one_file[of_key])) == 1 or not places.nbytes[of_key[0]]:
            alike.add(key)
        else:
            unsure[key] = of_key
    reads = checkpoint.shards.is_read_here
    with source_tree(checkpoint.shards.files) as tree:
        unsure = _samples_agree(places, unsure, reads, tree, hosts)
        wanted = np.concatenate([np.zeros(0, np.int64), *unsure.values()])
        mine = wanted[reads[places.file[wanted]]]
        with (
            progress(int(places.nbytes[mine].sum()), "compare") as show,
            Threads(threads) as pool,
            telling(show) as advance,
        ):
            found = digest_distinct(places, mine, one_file, tree, pool, advance)
    digests[wanted] = hosts.union(found[wanted], "other tensors")
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


def _samples_agree(
    places: Places, keys: Mapping[str, Int], reads: NDArray[np.bool_], tree: Tree, hosts: Hosts
) -> dict[str, Int]:
    """The keys of which the first, the middle and the last block are the same on all ranks.

    Args:
        keys: to the places of each.
        reads: (F,) the files that this host reads.
    """
    samples = [_samples(places, of_key, reads, tree) for of_key in keys.values()]
    merged = hosts.union(np.concatenate([np.zeros((0, DIGEST_NBYTES), np.uint8), *samples]), "samples")
    ends = np.cumsum([len(of_key) for of_key in keys.values()])
    agree = (_all_equal(part[part.any(axis=1)]) for part in np.split(merged, ends))
    return {key: of_key for (key, of_key), same in zip(keys.items(), agree, strict=False) if same}


def _samples(places: Places, of_key: Int, reads: NDArray[np.bool_], tree: Tree) -> Digests:
    """(R, 16) digests of three blocks of each place, up to the first that differs; else zero."""
    import xxhash

    nbytes = int(places.nbytes[of_key[0]])
    size = min(SAMPLE_NBYTES, nbytes)
    found = np.zeros((len(of_key), DIGEST_NBYTES), np.uint8)
    digests = set()
    for rank in np.flatnonzero(reads[places.file[of_key]]).tolist():
        file, offset = int(places.file[of_key[rank]]), int(places.offset[of_key[rank]])
        blocks = bytearray(3 * size)
        for number, begin in enumerate((0, (nbytes - size) // 2, nbytes - size)):
            tree.read(file, memoryview(blocks)[number * size : (number + 1) * size], offset + begin)
        digest = xxhash.xxh3_128_digest(blocks)
        found[rank] = np.frombuffer(digest, np.uint8)
        digests.add(digest)
        if len(digests) > 1:
            break
    return found


def _all_equal(digests: Digests) -> bool:
    return bool((digests == digests[:1]).all())
