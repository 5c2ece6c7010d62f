"""A sample of the bytes of each shard: enough to tell one checkpoint from another, and soon read.

Names, sizes, times and headers can be those of another checkpoint. Of each file some blocks are read: the
first and the last of every expert tensor, then those of the other tensors, as far as the number of blocks
goes. What no block shows is harmless: whatever SRC holds is moved and proved as it is.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from eplb_cli import files
from eplb_cli.checkpoint.layout import Layout
from eplb_cli.checkpoint.shards import ShardFile, Shards
from eplb_cli.machine import reading_threads

BLOCK_NBYTES = 4096
MAX_BLOCKS = 4096
"""Blocks of all files together, of which each has as many; two at least."""


def sample_digests(shards: Shards) -> dict[str, str]:
    """Name of each shard to a hexadecimal sha256 of some of its blocks; of several hosts, those read here.

    Raises:
        CheckpointError: EP201 or EP220, a file cannot be read, or is not the one whose header was read.
    """
    count = max(MAX_BLOCKS // len(shards.files), 2)

    def digest(file: ShardFile) -> str:
        return _digest(file, sample_offsets(file, shards.layout, count))

    read = [shards.files[number] for number in np.flatnonzero(shards.is_read_here)]
    with ThreadPoolExecutor(reading_threads(1)) as pool:
        return {file.path.name: found for file, found in zip(read, pool.map(digest, read), strict=True)}


def sample_offsets(file: ShardFile, layout: Layout, count: int) -> list[int]:
    """Where the blocks of a file begin, at most `count`, ascending: they follow from its header alone."""
    experts, others = set[int](), set[int]()
    for key, entry in file.header.tensors.items():
        begin = file.header.data_start + entry.begin
        ends = {begin, begin + max(entry.nbytes - BLOCK_NBYTES, 0)} if entry.nbytes else set()
        (experts if layout.match_key(key) else others).update(ends)
    chosen = _spread(sorted(experts), count)
    return sorted({*chosen, *_spread(sorted(others - experts), count - len(chosen))})


def _spread(offsets: list[int], count: int) -> list[int]:
    """At most `count` of some offsets, evenly."""
    if len(offsets) <= count:
        return offsets
    return [offsets[number * len(offsets) // count] for number in range(count)]


def _digest(file: ShardFile, offsets: list[int]) -> str:
    sha = hashlib.sha256()
    block = memoryview(bytearray(BLOCK_NBYTES))
    with files.opened_source(file.path, file.stamp) as descriptor:
        for offset in offsets:
            view = block[: min(BLOCK_NBYTES, file.nbytes - offset)]
            files.read_into(descriptor, view, offset, file.path)
            sha.update(view)
    return sha.hexdigest()
