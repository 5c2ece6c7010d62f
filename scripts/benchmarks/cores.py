"""`scripts/bench cores`: everything that reads or writes much, against `cp -r` and against the bare loop.

The bare loop (`bare.py`) is Python threads that call preadv, pwrite and xxh3-128 a MiB at a time, and nothing
else: what a machine gives. Sides of a group take turns; all figures are medians over the rounds. Before each
run, and not timed, the last output is removed: the page cache is warm, and there is memory just freed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from scripts.benchmarks.cores_groups import GROUPS, Bench, OverError
from scripts.benchmarks.machine import heading
from scripts.benchmarks.table import Line, render
from scripts.benchmarks.timing import BenchError, UnavailableError
from scripts.benchmarks.trees import NUM_EXPERTS, NUM_REDUNDANT, shape_of


def main(arguments: list[str]) -> int:
    """Measure what was asked for, and print the tables."""
    options = _parse(arguments)
    began = time.monotonic()
    if options.cores:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
    failed = False
    for directory in options.dir:
        directory.mkdir(parents=True, exist_ok=True)
        print(heading("cores", arguments, directory), end="\n\n", flush=True)
        scratch = Path(tempfile.mkdtemp(prefix="eplb-bench-", dir=directory))
        try:
            shape = shape_of(options.gb, options.ranks)
            bench = Bench(scratch, shape, options.runs, options.threads, began + 60 * options.minutes)
            lines, is_whole = _measure(bench, options.only)
            failed |= not is_whole
            print("\n" + render(lines) + "\n", flush=True)
        finally:
            shutil.rmtree(scratch)
    return int(failed)


def _measure(bench: Bench, groups: list[str]) -> tuple[list[Line], bool]:
    """The lines with bars, as far as time reached; and whether nothing failed."""
    lines: list[Line] = []
    is_whole = True
    for group in groups:
        print(f"{group}:", flush=True)
        try:
            lines += GROUPS[group](bench)
        except OverError:
            lines.append(Line(group, note="left out or cut short: --minutes are over"))
            break
        except UnavailableError as error:
            lines.append(Line(group, note=f"skipped: {error}"))
        except (BenchError, OSError) as error:
            print(error, file=sys.stderr)
            lines.append(Line(group, note="FAILED, see stderr"))
            is_whole = False
    return lines, is_whole


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench cores", description=__doc__)
    parser.add_argument("--gb", type=float, default=8.0, help="of the tree; rounded up to whole layers")
    parser.add_argument("--ranks", type=int, default=4, help="files of the tree, and of the output")
    parser.add_argument("--runs", type=int, default=3, help="rounds, after a warm-up")
    parser.add_argument("--threads", type=_numbers, default=[1, 2, 4, 8, 16, 32], metavar="N,N,...")
    parser.add_argument("--cores", type=int, help="use only so many")
    parser.add_argument(
        "--dir", type=Path, nargs="+", default=[Path(tempfile.gettempdir())], help="one after the other"
    )
    parser.add_argument("--only", nargs="+", choices=list(GROUPS), default=list(GROUPS))
    parser.add_argument("--minutes", type=float, default=7.5, help="after which nothing new is begun")
    options = parser.parse_args(arguments)
    if (NUM_EXPERTS + NUM_REDUNDANT) % options.ranks:
        parser.error(f"--ranks must divide {NUM_EXPERTS + NUM_REDUNDANT}")
    return options


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]
