"""`scripts/bench direct`: trees that are larger than memory, through the page cache and past it.

Bare loops in a control group with little memory: SRC is read cold and copied a MiB at a time, the copy is
synced and read back. "kept" leaves everything to the page cache; "forgotten" tells it with `posix_fadvise`
what will not be needed again, as eplb does for such trees; the others open one side, or both, with O_DIRECT.
"""

from __future__ import annotations

import argparse
import contextlib
import mmap
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import NamedTuple

from scripts.benchmarks.machine import heading
from scripts.benchmarks.timing import UnavailableError

BLOCK_NBYTES = 1 << 20
NUM_FILES = 4
_ROOTS = ((Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"), (Path("/sys/fs/cgroup"), "memory.max"))


class Way(NamedTuple):
    """How the files are opened, and whether what was read or written is forgotten."""

    source: int
    destination: int
    forgets: bool


WAYS = {
    "kept": Way(0, 0, forgets=False),
    "forgotten": Way(0, 0, forgets=True),
    "read directly": Way(os.O_DIRECT, 0, forgets=True),
    "written directly": Way(0, os.O_DIRECT, forgets=True),
    "both directly": Way(os.O_DIRECT, os.O_DIRECT, forgets=False),
}


def main(arguments: list[str]) -> int:
    """Measure all ways in turn, and print the medians."""
    parser = argparse.ArgumentParser(prog="scripts/bench direct", description=__doc__)
    parser.add_argument("--gb", type=float, default=4.0)
    parser.add_argument("--memory", type=int, default=1024, help="MiB that the group has")
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--dir", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args(arguments)
    print(heading("direct", arguments, options.dir), end="\n\n", flush=True)
    home = Path(tempfile.mkdtemp(prefix="eplb-bench-", dir=options.dir))
    per_file = int(options.gb * 1e9 / NUM_FILES) // BLOCK_NBYTES * BLOCK_NBYTES
    taken: dict[str, list[tuple[float, ...]]] = {name: [] for name in WAYS}
    try:
        with _little_memory(options.memory << 20):
            _write(home, per_file)
            for _ in range(options.runs):
                for name, way in WAYS.items():
                    taken[name].append(_run(home, per_file, way, options.threads))
    except UnavailableError as error:
        print(f"skipped: {error}")
    finally:
        shutil.rmtree(home)
    print(f"{'s, medians':<18}{'copy':>8}{'sync':>8}{'back':>8}{'all':>8}{'cpu':>8}")
    for name, runs in taken.items():
        columns = [median(column) for column in zip(*runs, strict=True)]
        print(f"{name:<18}" + "".join(f"{value:8.2f}" for value in columns))
    return 0


@contextlib.contextmanager
def _little_memory(nbytes: int) -> Iterator[None]:
    """Put this process into a control group. Raises UnavailableError where that may not be."""
    root, limit = next(
        ((root, limit) for root, limit in _ROOTS if (root / "cgroup.procs").exists()), _ROOTS[1]
    )
    group, own = root / f"eplb-bench-{os.getpid()}", str(os.getpid())
    try:
        group.mkdir()
        (group / limit).write_text(str(nbytes))
        (group / "cgroup.procs").write_text(own)
    except OSError as error:
        raise UnavailableError(f"no control group with little memory: {error}") from error
    try:
        yield
    finally:
        (root / "cgroup.procs").write_text(own)
        group.rmdir()


def _write(home: Path, nbytes: int) -> None:
    block = mmap.mmap(-1, BLOCK_NBYTES)
    block.write(os.urandom(BLOCK_NBYTES))
    for number in range(NUM_FILES):
        descriptor = os.open(home / f"src-{number}", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
        for offset in range(0, nbytes, BLOCK_NBYTES):
            os.pwrite(descriptor, block, offset)
        os.close(descriptor)


def _run(home: Path, nbytes: int, way: Way, threads: int) -> tuple[float, ...]:
    """Seconds of copying, of syncing, of reading back, of all, and of processors."""
    began_cpu = time.process_time()
    clock = [time.perf_counter()]
    sources = _open(home, "src", os.O_RDONLY | way.source)
    _forget(sources)
    copies = _open(home, "dst", os.O_RDWR | os.O_CREAT | way.destination)
    for descriptor in copies:
        os.posix_fallocate(descriptor, 0, nbytes)

    def copy(block: mmap.mmap, file: int, offset: int) -> None:
        os.preadv(sources[file], [block], offset)
        os.pwrite(copies[file], block, offset)
        if way.forgets:
            os.posix_fadvise(sources[file], offset, BLOCK_NBYTES, os.POSIX_FADV_DONTNEED)

    def read(block: mmap.mmap, file: int, offset: int) -> None:
        os.preadv(copies[file], [block], offset)
        if way.forgets:
            os.posix_fadvise(copies[file], offset, BLOCK_NBYTES, os.POSIX_FADV_DONTNEED)

    _each_block(copy, nbytes, threads)
    clock.append(time.perf_counter())
    for descriptor in copies:
        os.fsync(descriptor)
    clock.append(time.perf_counter())
    _each_block(read, nbytes, threads)
    clock.append(time.perf_counter())
    for descriptor in (*sources, *copies):
        os.close(descriptor)
    for number in range(NUM_FILES):
        (home / f"dst-{number}").unlink()
    copied, synced, back = (after - before for before, after in pairwise(clock))
    return copied, synced, back, clock[-1] - clock[0], time.process_time() - began_cpu


def _open(home: Path, name: str, flags: int) -> list[int]:
    return [os.open(home / f"{name}-{number}", flags) for number in range(NUM_FILES)]


def _forget(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def _each_block(step: Callable[[mmap.mmap, int, int], None], nbytes: int, threads: int) -> None:
    blocks = iter([(file, offset) for offset in range(0, nbytes, BLOCK_NBYTES) for file in range(NUM_FILES)])

    def work() -> None:
        block = mmap.mmap(-1, BLOCK_NBYTES)  # on a page, as O_DIRECT wants it
        for file, offset in blocks:
            step(block, file, offset)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
