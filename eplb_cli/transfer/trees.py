"""The files of one tree: opened when they are needed, every byte of them counted."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from eplb_cli import files
from eplb_cli.errors import CheckpointError, OutputError
from eplb_cli.transfer.meter import Meter
from eplb_cli.transfer.threads import go_on


class Tree:
    """The files of one tree, by number, each opened on first use and closed at the end of the `with` block.

    Args:
        stamps: of SRC, what each file was when its header was read, and has to be at the end of the block;
            None for a tree that is being written.
        meter: what every byte goes through; one of its own if nobody asks.
        keep: leave what was read in the page cache; False for trees that are larger than it.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        stamps: Sequence[files.Stamp] | None = None,
        meter: Meter | None = None,
        *,
        keep: bool = True,
    ) -> None:
        self.paths = paths
        self.meter = meter or Meter()
        self._stamps, self._keep = stamps, keep
        self._lock, self._stack = threading.Lock(), ExitStack()
        self._open: dict[int, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.clear()
        self._stack.__exit__(kind, error, trace)

    def descriptor(self, number: int) -> int:
        """The open file."""
        found = self._open.get(number)
        if found is not None:
            return found
        with self._lock:
            if number not in self._open:
                self._open[number] = self._stack.enter_context(self._opening(number))
            return self._open[number]

    def _opening(self, number: int) -> AbstractContextManager[int]:
        if self._stamps is None:
            return files.opened_output(self.paths[number])
        return files.opened_source(self.paths[number], self._stamps[number])

    def read(self, number: int, view: memoryview, offset: int) -> None:
        """Fill `view` from a file. Raises CheckpointError, or OutputError where it is one of ours."""
        go_on()
        descriptor, path = self.descriptor(number), self.paths[number]
        try:
            self.meter.timed("read", len(view), files.read_into, descriptor, view, offset, path)
        except CheckpointError as error:
            if self._stamps is None:
                raise OutputError("EP604", f"{error.message}, where it was written before") from error
            raise

    def write(self, number: int, view: memoryview, offset: int) -> None:
        """Write `view` to a file."""
        go_on()
        descriptor = self.descriptor(number)
        self.meter.timed("write", len(view), files.write_from, descriptor, view, offset, self.paths[number])

    def sync(self, number: int) -> None:
        """Wait until the disk has a file."""
        go_on()
        self.meter.timed("write", 0, files.sync, self.descriptor(number), self.paths[number])

    def forget(self, number: int, offset: int, nbytes: int) -> None:
        """Say that a range is not needed again; 0 bytes are all up to the end."""
        if not self._keep:
            files.forget(self.descriptor(number), offset, nbytes)

    def opened(self) -> dict[int, int]:
        """Number to descriptor, for all files opened so far."""
        return dict(self._open)


class Known(Protocol):
    """A file of SRC whose header was read."""

    @property
    def path(self) -> Path:
        """Where it is."""

    @property
    def stamp(self) -> files.Stamp:
        """What it was then."""


def source_tree(sources: Sequence[Known], meter: Meter | None = None, *, keep: bool = True) -> Tree:
    """The files of SRC, which are the same at the end as when their headers were read, or EP220."""
    return Tree([file.path for file in sources], [file.stamp for file in sources], meter, keep=keep)
