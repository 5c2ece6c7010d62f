"""`scripts/bench reshard`: whole checkpoints, against `cp -r` and against the reference implementation.

All runs of a group take turns, after a warm-up; a ratio is one of neighbours in a round. Before each run, and
not timed, the tree is copied and the copy removed: the page cache is warm, and every run starts alike.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from scripts.benchmarks.bars import GROUPS, Bench
from scripts.benchmarks.machine import heading
from scripts.benchmarks.sides import Trees
from scripts.benchmarks.table import Line, render
from scripts.benchmarks.timing import BenchError, UnavailableError
from scripts.benchmarks.trees import NUM_EXPERTS, NUM_REDUNDANT, shape_of

VARIANTS = ("aligned", "unaligned", "narrow")
"""Headers as eplb writes them; as vLLM does; and the first with twice the layers of half the width."""

FAILED = "FAILED"
BARS_FROM_GB = 3.0


def main(arguments: list[str]) -> int:
    """Measure what was asked for, and print the table."""
    options = _parse(arguments)
    options.workdir.mkdir(parents=True, exist_ok=True)
    print(heading("reshard", arguments, options.workdir), end="\n\n", flush=True)
    scratch = Path(tempfile.mkdtemp(prefix="eplb-bench-", dir=options.workdir))
    try:
        bench = _bench(options, scratch)
        lines = [line for group in options.only for line in _measure(group, bench)]
    finally:
        if options.keep:
            print(f"kept: {scratch}", file=sys.stderr)
        else:
            shutil.rmtree(scratch)
    print(render(lines))
    return int(any(line.note.startswith(FAILED) for line in lines))


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench reshard", description=__doc__)
    parser.add_argument(
        "--gb", type=float, nargs="+", default=[3.0], help="sizes; rounded up to whole layers"
    )
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["aligned"])
    parser.add_argument(
        "--only", nargs="+", choices=list(GROUPS), default=list(GROUPS), help="groups of bars"
    )
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--runs", type=int, default=3, help="rounds, after a warm-up")
    parser.add_argument("--workdir", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--peer", type=Path, help="the reference implementation, a Python file")
    parser.add_argument("--keep", action="store_true", help="leave the generated data where it is")
    options = parser.parse_args(arguments)
    if (NUM_EXPERTS + NUM_REDUNDANT) % options.ranks:
        parser.error(f"--ranks must divide {NUM_EXPERTS + NUM_REDUNDANT}")
    return options


def _bench(options: argparse.Namespace, scratch: Path) -> Bench:
    shapes = []
    for gigabytes in options.gb:
        aligned = shape_of(gigabytes, options.ranks)
        known = {"aligned": aligned, "unaligned": replace(aligned, aligned=False), "narrow": aligned.narrow}
        shapes += [known[variant] for variant in options.variants]
    largest = shape_of(max(options.gb), options.ranks)
    if largest.gigabytes < BARS_FROM_GB:
        print(f"The bars are for {BARS_FROM_GB:g} GB and more: this run only shows that all of it runs.\n")
    return Bench(Trees(scratch), scratch / "out", shapes, largest, options.runs, options.peer)


def _measure(group: str, bench: Bench) -> Iterator[Line]:
    """The lines of a group, or one that says why there are none."""
    print(f"{group}:", file=sys.stderr, flush=True)
    try:
        yield from GROUPS[group](bench)
    except UnavailableError as error:
        yield Line(group, note=f"skipped: {error}")
    except (BenchError, OSError) as error:
        print(error, file=sys.stderr)
        yield Line(group, note=f"{FAILED}, see stderr")
