"""Where the time of threads goes: `python -m scripts.benchmarks.profiled reshard ...`, as `eplb` takes it.

For each of the stages transfer and verify, on stderr: the seconds on the clock, and summed over all threads
those in calls that read, hash and write, of which so many on a processor. What is on the clock of a call and
not on a processor waited there: for a lock of the kernel, for the disk, or to get Python's lock back.
What is left of the threads' time is Python between the calls, and waiting for its lock.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

import xxhash

from eplb_cli import files
from eplb_cli.cli import main
from eplb_cli.transfer import digest_table
from eplb_cli.transfer import transfer as transfers

T = TypeVar("T")

_calls: list[tuple[str, int, int]] = []
"""A stage, and nanoseconds on the clock and on a processor of one call; appending is atomic."""


def _timed(stage: str, call: Callable[..., T]) -> Callable[..., T]:
    def timed(*args: Any) -> T:  # noqa: ANN401 - whatever the call takes
        clock, cpu = time.perf_counter_ns(), time.thread_time_ns()
        result = call(*args)
        _calls.append((stage, time.perf_counter_ns() - clock, time.thread_time_ns() - cpu))
        return result

    return timed


class _State:
    """As `xxhash.xxh3_128()`, and every call is timed."""

    def __init__(self) -> None:
        state = xxhash.xxh3_128()
        self.update, self.digest = _timed("digest", state.update), state.digest


class _Xxhash:
    xxh3_128 = _State
    xxh3_128_digest = staticmethod(_timed("digest", xxhash.xxh3_128_digest))


def _told(stage: str, call: Callable[..., T]) -> Callable[..., T]:
    def told(share: Any, *args: Any) -> T:  # noqa: ANN401 - whatever the call takes
        _calls.clear()
        clock, cpu = time.perf_counter(), time.process_time()
        result = call(share, *args)
        clock, cpu = time.perf_counter() - clock, time.process_time() - cpu
        parts = [f"{stage} {clock:.3f} s, {cpu:.3f} s of processors"]
        for kind in ("read", "digest", "write"):
            taken = [(wall, own) for name, wall, own in _calls if name == kind]
            wall, own = (sum(column) / 1e9 for column in zip(*taken, strict=True)) if taken else (0.0, 0.0)
            parts.append(f"{kind} {wall:.3f} s in {len(taken)} calls ({own:.3f} on a processor)")
            cpu -= own
        print("; ".join([*parts, f"Python and all else {cpu:.3f} s of processors"]), file=sys.stderr)
        return result

    return told


if __name__ == "__main__":
    files.read_into = _timed("read", files.read_into)
    files.write_from = _timed("write", files.write_from)
    digest_table.xxhash = _Xxhash  # type: ignore[assignment, attr-defined]
    share = transfers._Share  # noqa: SLF001 - there is no other door to what happens between two stages
    share.move = _told("transfer", share.move)  # type: ignore[method-assign]
    share.settle = _told("verify", share.settle)  # type: ignore[method-assign]
    sys.argv[0] = "eplb"
    main()
