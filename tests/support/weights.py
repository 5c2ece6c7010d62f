"""Bytes that are a function of where they belong, so that an expected result needs no bookkeeping."""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@lru_cache(maxsize=4096)
def stream(name: str, nbytes: int) -> bytes:
    """The first `nbytes` of the stream called `name`: splitmix64 over the byte's number."""
    seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
    with np.errstate(over="ignore"):
        words = np.uint64(seed) + np.arange(-(-nbytes // 8), dtype=np.uint64) * _GOLDEN
        words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (words ^ (words >> np.uint64(31))).tobytes()[:nbytes]


def expert_row(layer: int, expert: int, tensor: str, nbytes: int) -> bytes:
    """The row of an expert: a function of (layer, expert, tensor, byte) and of nothing else."""
    return stream(f"expert {layer} {expert} {tensor}", nbytes)


def other_tensor(key: str, rank: int | None, nbytes: int) -> bytes:
    """Another tensor: the same on all ranks where `rank` is None."""
    return stream(f"other {key} {rank}", nbytes)


def garbage(key: str, slot: int, nbytes: int) -> bytes:
    """What lies in an empty slot of SRC: anything, so that only zeros that were meant are zeros."""
    return stream(f"garbage {key} {slot}", nbytes)
