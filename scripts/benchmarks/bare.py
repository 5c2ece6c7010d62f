"""The limit: what plain loops in Python threads reach, a MiB at a time, with no counting and no checks.

Ranges of all files take turns, so that threads meet in one file as seldom as there are files: a file system
lets one thread at a time write to a file.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import zip_longest
from pathlib import Path
from typing import Literal

import xxhash

Action = Literal["copy", "read", "digest", "write"]

BLOCK_NBYTES = 1 << 20
RANGE_NBYTES = 16 << 20

Range = tuple[int, int, int]
"""Number of a file, offset, bytes."""


def seconds_of(
    action: Action,
    sizes: Sequence[int],
    threads: int,
    sources: Sequence[Path] = (),
    out: Path | None = None,
    block_nbytes: int = BLOCK_NBYTES,
    *,
    allocate: bool = False,
) -> float:
    """How long some threads take for files of these sizes.

    Args:
        sources: what is read; nothing is by "write".
        out: a directory for the files that "copy" and "write" make, with their full size from the start.
        allocate: have the file system allocate what is written, not only know its size.
    """
    began = time.perf_counter()
    with ExitStack() as stack:
        reading = [_opened(stack, path, os.O_RDONLY) for path in sources]
        writing = []
        goals = [] if out is None else [out / str(number) for number in range(len(sizes))]
        for path, nbytes in zip(goals, sizes, strict=False):
            descriptor = _opened(stack, path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
            if allocate:
                os.posix_fallocate(descriptor, 0, nbytes)
            else:
                os.ftruncate(descriptor, nbytes)
            writing.append(descriptor)
        steps: dict[str, Callable[[memoryview, Range], object]] = {
            "copy": lambda view, at: (
                os.preadv(reading[at[0]], [view], at[1]),
                os.pwrite(writing[at[0]], view, at[1]),
            ),
            "read": lambda view, at: os.preadv(reading[at[0]], [view], at[1]),
            "digest": lambda view, at: (
                os.preadv(reading[at[0]], [view], at[1]),
                xxhash.xxh3_128_digest(view),
            ),
            "write": lambda view, at: os.pwrite(writing[at[0]], view, at[1]),
        }
        _run(steps[action], iter(_ranges(sizes)), threads, block_nbytes)
    return time.perf_counter() - began


def _opened(stack: ExitStack, path: Path, flags: int) -> int:
    descriptor = os.open(path, flags)
    stack.callback(os.close, descriptor)
    return descriptor


def _ranges(sizes: Sequence[int]) -> list[Range]:
    """All bytes of all files, the files in turn."""
    by_file = [
        [(number, begin, min(RANGE_NBYTES, nbytes - begin)) for begin in range(0, nbytes, RANGE_NBYTES)]
        for number, nbytes in enumerate(sizes)
    ]
    return [at for turn in zip_longest(*by_file) for at in turn if at is not None]


def _run(
    step: Callable[[memoryview, Range], object], ranges: Iterator[Range], threads: int, block_nbytes: int
) -> None:
    def work() -> None:
        view = memoryview(bytearray(block_nbytes))
        for number, offset, nbytes in ranges:
            for begin in range(offset, offset + nbytes, block_nbytes):
                length = min(block_nbytes, offset + nbytes - begin)
                step(view[:length], (number, begin, length))

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
