"""What was done of a run: which places are written.

Every worker keeps a journal in the staging directory, and the launcher has one for what was written before
the workers began. A journal is lines of text, each with a checksum in front::

    f81c…  {"format": "eplb-journal/1", "digest": "…"}          the plan, and both trees, that it is about
    09ab…  {"written": [4, 5]}                                  new places

A line is added once what it says is on the disk, and a line that was cut off is not a line. There is no
digest in it: what SRC held then says nothing of what it holds now.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from eplb_cli import files
from eplb_cli.digests import DIGEST_NBYTES
from eplb_cli.errors import EplbError, PlanError
from eplb_cli.values import dataclass

FORMAT = "eplb-journal/1"
INTERVAL_S = 30.0
"""Seconds between two lines: what a run that was ended has to do again, at most."""

LAUNCHER = "launcher"

_PREFIX = "journal-"
_PARTIAL = ".partial"


@dataclass(frozen=True, eq=False)
class Known:
    """What is known before bytes move.

    Attributes:
        digests: (X, 16) of old places, as this run has read them, zero where unknown.
        written: (X,) new places that hold what they have to.
    """

    digests: NDArray[np.uint8]
    written: NDArray[np.bool_]

    @classmethod
    def nothing(cls, num_old: int, num_new: int) -> Known:
        """Nothing at all, of so many old and new places."""
        return cls(np.zeros((num_old, DIGEST_NBYTES), np.uint8), np.zeros(num_new, bool))


class Journal:
    """The journal that one process writes. Lines are added by one thread at a time.

    Raises:
        OutputError: a line cannot be written.
    """

    def __init__(self, work: Path, name: str, digest: str) -> None:
        self._path = work / (_PREFIX + name)
        self._descriptor = files.create(self._path, 0)
        self._end = 0
        try:
            self._add({"format": FORMAT, "digest": digest})
        except EplbError:
            self.close()
            raise

    def add(self, written: Sequence[int]) -> None:
        """Add new places that are written."""
        self._add({"written": list(written)})

    def sync(self) -> None:
        """Wait until the disk has all lines."""
        files.sync(self._descriptor, self._path)

    def _add(self, content: dict[str, Any]) -> None:
        text = json.dumps(content, separators=(",", ":")).encode()
        line = b"%s %s\n" % (_checksum(text), text)
        files.write_from(self._descriptor, memoryview(line), self._end, self._path)
        self._end += len(line)

    def close(self) -> None:
        """Close the file, which stays."""
        os.close(self._descriptor)


class WrittenLog:
    """What a worker has done, and its journal does not say yet.

    Args:
        nbytes: (X,) of new places.
        journal: where to say it; None to say it nowhere.
    """

    def __init__(self, nbytes: NDArray[np.int64], journal: Journal | None = None) -> None:
        self._missing = nbytes.copy()
        self._journal = journal
        self._lock, self._adding = threading.Lock(), threading.Lock()
        self._written: set[int] = set()

    def wrote(self, place: int, nbytes: int) -> None:
        """So many more bytes of a new place are written; from any thread."""
        with self._lock:
            self._missing[place] -= nbytes
            if not self._missing[place]:
                self._written.add(place)

    @contextlib.contextmanager
    def kept(self, flush: Callable[[], None]) -> Iterator[None]:
        """Add a line to the journal every `INTERVAL_S`, and at the end of the block, whatever ends it.

        Args:
            flush: returns when the disk has all that was written before.
        """
        ended, failed = threading.Event(), []

        def keep() -> None:
            try:
                while not ended.wait(INTERVAL_S):
                    self.tell(flush)
            except EplbError as error:
                failed.append(error)

        def end() -> None:
            ended.set()
            thread.join()
            if failed:
                raise failed[0]
            self.tell()

        thread = threading.Thread(target=keep, daemon=True)
        thread.start()
        try:
            yield
            end()
        except BaseException:
            with contextlib.suppress(EplbError):  # there is another error already
                self.tell()
            ended.set()
            thread.join()
            raise

    def tell(self, flush: Callable[[], None] = lambda: None) -> None:
        """Add a line of what is written and in no line yet.

        The last line waits for no disk: a run that goes on reads again what it is about.
        """
        with self._lock:
            written = sorted(self._written)
        if written and self._journal is not None:  # else nothing is called: who stands still looks like it
            flush()
            with self._adding:
                self._journal.add(written)
            with self._lock:
                self._written.difference_update(written)


def write_written(work: Path, written: NDArray[np.bool_], digest: str) -> None:
    """Leave one journal of what is written, (X,) by new place, in place of all that there are."""
    partial = Journal(work, f"{LAUNCHER}{_PARTIAL}", digest)
    try:
        partial.add(np.flatnonzero(written).tolist())
    finally:
        partial.close()
    with files.writing(work):
        files.attempt(
            "replace", os.replace, work / (_PREFIX + LAUNCHER + _PARTIAL), work / (_PREFIX + LAUNCHER)
        )
        for path in journals(work):
            if path.name != _PREFIX + LAUNCHER:
                files.attempt("unlink", os.unlink, path)


def journals(work: Path) -> list[Path]:
    """All journals of a run."""
    return sorted(path for path in work.glob(f"{_PREFIX}*") if not path.name.endswith(_PARTIAL))


def read_written(paths: Sequence[Path], digest: str, num_new: int) -> NDArray[np.bool_]:
    """(X,) which of the new places journals call written.

    Raises:
        PlanError: EP305, one of them is about another plan or other trees.
        OutputError: EP604, one of them cannot be read.
    """
    written = np.zeros(num_new, bool)
    for path in paths:
        head, *lines = _lines(path) or [{"digest": digest}]
        if head.get("digest") != digest:
            raise PlanError("EP305", f"{path.parent.parent} was begun with other inputs")
        for line in lines:
            written[np.array(line["written"], np.int64)] = True
    return written


def _lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a journal up to the first that is not whole; the run's own user wrote them."""
    found = []
    for line in files.read_own_file(path).splitlines():
        checksum, _, text = line.partition(b" ")
        if checksum != _checksum(text):
            break
        found.append(json.loads(text))
    return found


def _checksum(text: bytes) -> bytes:
    return xxhash.xxh3_64_hexdigest(text).encode()
