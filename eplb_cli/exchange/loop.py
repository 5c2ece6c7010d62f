"""The loop that moves chunks: one filled, one travelling and one drained at any time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

Span = tuple[float, float]
"""Begin and end, in seconds of `time.perf_counter`."""


class Pending(Protocol):
    """Work that was started."""

    def wait(self) -> None:
        """Return, or order what follows, after the work is done; raise what it raised."""


class Source(Protocol):
    """Where the bytes of a chunk come from."""

    def fill(self, chunk: int, after: Sequence[Pending]) -> Pending:
        """Start putting the parcels of a chunk into its send buffer, once `after` is done."""


class Transport(Protocol):
    """What carries the messages of a chunk."""

    def exchange(self, chunk: int, after: Sequence[Pending]) -> Pending:
        """Send all messages of a chunk and receive all of its other side, once `after` is done."""


class Sink(Protocol):
    """Where the bytes of a chunk go."""

    def drain(self, chunk: int, after: Sequence[Pending]) -> Pending:
        """Start taking the parcels of a chunk out of its receive buffer, once `after` is done."""


def run_exchange(
    num_chunks: int, source: Source, transport: Transport, sink: Sink, turns: int = 2
) -> list[Pending]:
    """Move all chunks, with one filled, one travelling and one drained at any time.

    Chunk c uses the send and the receive buffer c % turns: it is filled after chunk c - turns has left, and
    travels after chunk c - turns was drained.

    Returns:
        What is still to be waited for: the draining of the last chunks.
    """
    filled: list[Pending] = []
    travelled: list[Pending] = []
    drained: list[Pending] = []

    def fill(chunk: int) -> None:
        filled.append(source.fill(chunk, _at(filled, chunk - 1) + _at(travelled, chunk - turns)))

    if num_chunks:
        fill(0)
    for chunk in range(num_chunks):
        if chunk + 1 < num_chunks:
            fill(chunk + 1)
        travelled.append(transport.exchange(chunk, _at(filled, chunk) + _at(drained, chunk - turns)))
        drained.append(sink.drain(chunk, _at(travelled, chunk)))
    return drained[-turns:]


def _at(pendings: list[Pending], chunk: int) -> list[Pending]:
    return [pendings[chunk]] if chunk >= 0 else []
