"""The hosts of a run, as its flow sees them: one of them, or all of them together (`together`)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from eplb_cli.errors import WorkerError
from eplb_cli.hosts.board import BoardError
from eplb_cli.hosts.sparse import or_into, pack
from eplb_cli.hosts.words import from_words, to_words

T = TypeVar("T", np.uint8, np.bool_)


class Hosts:
    """One host alone, for which nothing has to be said. A collective is called by all hosts alike.

    Attributes:
        node: the number of this host, from 0 to `count` - 1.
        count: how many there are.
        names: of each, as its system calls it.
    """

    def __init__(self, node: int, names: tuple[str, ...]) -> None:
        self.node = node
        self.count = len(names)
        self.names = names

    def name_of(self, node: int) -> str:
        """How a message calls a host: "host 1 (node-b)"."""
        return f"host {node} ({self.names[node]})"

    def gather(self, said: bytes, label: str = "") -> list[bytes]:  # noqa: ARG002 - see `Together`
        """What every host says, in the order of nodes; a collective.

        Waits as long as all hosts are heard from: what keeps one of them is for that one to find out.

        Args:
            said: at most 1 GiB.
            label: what it is about, the same on all hosts; up to 100 letters.

        Raises:
            EplbError: that of the first host that failed, with "host 1 (b): " before its message.
            WorkerError: EP407, a host is lost; EP401, hosts are at different steps, which is a bug.
        """
        return [said]

    def gather_words(self, said: Mapping[str, object], label: str = "") -> list[dict[str, Any]]:
        """The same of names and values, as JSON of at most 1 MiB. Raises as `gather`."""
        told = self.gather(to_words(said), label)
        try:
            return [from_words(words) for words in told]
        except BoardError as error:
            raise WorkerError("EP401", f"{error} ({label})", "is every host one of this run?") from error

    def union(self, values: NDArray[T], label: str = "union") -> NDArray[T]:
        """Bitwise or over all hosts of arrays (X, ...) of one shape and type, uint8 or bool; a collective.

        Only rows that are not zero travel. One host alone gets `values` itself.

        Raises:
            EplbError: as `gather`; EP401 also where the shapes differ, which is a bug.
        """
        if self.count == 1:
            return values
        united = np.ascontiguousarray(values).copy()
        told = self.gather(pack(united), f"{label} {values.dtype} {values.shape}")
        for node, packed in enumerate(told):
            if node != self.node:
                try:
                    or_into(united, packed)
                except ValueError as error:
                    raise WorkerError("EP401", f"{self.name_of(node)} sent {error} ({label})") from error
        return united

    def tell_progress(self, progress: int) -> None:
        """Say a number that changes as the work of this host goes on."""

    def moved_at(self) -> float:
        """When such a number was last seen to change, by `time.monotonic`; 0 where there is no other host."""
        return 0.0

    def check(self) -> None:
        """Raise what `gather` would raise, as far as it is known; costs nothing."""

    def fail(self, error: BaseException) -> None:
        """Tell the others, once, that this host ends by `error`; never raises.

        Whoever leaves the block of `joined` by an error has told it: this is for telling it earlier.
        """


ALONE = Hosts(0, (os.uname().nodename,))
"""One host, as long as nobody says that there are more."""
