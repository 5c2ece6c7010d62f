"""Digests of rows, taken while their bytes are in the cache of a core."""

from __future__ import annotations

import threading
from dataclasses import field

import numpy as np
import xxhash
from numpy.typing import NDArray

from eplb_cli.digests import DIGEST_NBYTES
from eplb_cli.transfer.meter import Meter
from eplb_cli.values import dataclass


@dataclass(frozen=True, eq=False)
class DigestTable:
    """xxh3-128 of places, by their number: uint8 (X, 16).

    A row that arrives in stripes is fed in order, from one thread at a time.
    """

    values: NDArray[np.uint8]
    _meter: Meter
    _partial: dict[int, xxhash.xxh3_128] = field(default_factory=dict)

    @classmethod
    def empty(cls, num_places: int, meter: Meter) -> DigestTable:
        """A table without any digest."""
        return cls(np.zeros((num_places, DIGEST_NBYTES), np.uint8), meter)

    def feed(self, place: int, view: memoryview, *, first: bool, last: bool) -> None:
        """Add the next bytes of a place."""
        self._meter.timed("digest", len(view), self._feed, place, view, first, last)

    def _feed(self, place: int, view: memoryview, first: bool, last: bool) -> None:  # noqa: FBT001 - as `feed`
        if first and last:
            self._set(place, xxhash.xxh3_128_digest(view))
            return
        if first:
            self._partial[place] = xxhash.xxh3_128()
        state = self._partial[place]
        state.update(view)
        if last:
            self._set(place, state.digest())
            del self._partial[place]

    def _set(self, place: int, digest: bytes) -> None:
        self.values[place] = np.frombuffer(digest, np.uint8)


class ThreadBuffers(threading.local):
    """A small buffer for each thread, so that what is hashed and written stays in its core's cache."""

    def __init__(self, nbytes: int) -> None:
        self.view = memoryview(bytearray(nbytes))
