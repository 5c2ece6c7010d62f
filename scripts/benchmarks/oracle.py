"""`scripts/bench faults --oracle N`: random checkpoints through `eplb reshard`, beside an oracle of its own.

Each case is drawn from the seed and its number alone. It has to end with exit 0 and the tree that the oracle
says, down to every byte, or with the error that was made on purpose. What fails is kept, with its commands.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from scripts.benchmarks.images import KINDS, mounted_image
from scripts.benchmarks.timing import BenchError, UnavailableError
from tests.support.oracle.fuzz import Failure, Tally, run_case

IMAGE_NBYTES = 1 << 30
"""Of a sparse file; XFS is none below 300 MB."""

MAX_FAILURES = 20
TELL_EVERY = 500


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of the oracle."""
    parser.add_argument("--oracle", type=int, default=0, metavar="N", help="only this: N cases of the oracle")
    parser.add_argument("--first", type=int, default=0, help="number of the oracle's first case")
    parser.add_argument(
        "--gloo-every", type=int, default=0, metavar="K", help="run every K-th case of the oracle with gloo"
    )
    parser.add_argument(
        "--mounts", action="store_true", help="run the oracle's cases on XFS and Btrfs in turn; needs root"
    )


def run(options: argparse.Namespace) -> int:
    """Run the cases, and print what came of them: 1 where one failed."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # what is mounted is taken away
    print(f"oracle: seed {options.seed}, cases {options.first} to {options.first + options.oracle - 1}")
    root = Path(tempfile.mkdtemp(prefix="eplb-oracle-"))
    failures: list[Failure] = []
    tally = Tally()
    with contextlib.ExitStack() as stack:
        homes = [root / "case", *(_mounts(root, stack) if options.mounts else ())]
        homes[0].mkdir()
        for number in range(options.first, options.first + options.oracle):
            gloo = options.gloo_every > 0 and number % options.gloo_every == 0
            home = homes[number % len(homes)]
            failure = run_case(options.seed, number, home, root, tally, gloo=gloo)
            if failure is not None:
                failures.append(failure)
                _tell(failure, options, gloo=gloo)
            if tally.cases % TELL_EVERY == 0:
                print(f"oracle: {tally.cases:,} cases in {tally.seconds:.0f} s", flush=True)
            if len(failures) == MAX_FAILURES:
                print(f"{MAX_FAILURES} cases failed: the rest is left out")
                break
    print("\n".join(tally.lines()))
    print(
        f"seed {options.seed}: {len(failures):,} failed"
        if failures
        else f"seed {options.seed}: all as they must be"
    )
    if not failures:
        shutil.rmtree(root)
    return 1 if failures else 0


def _mounts(root: Path, stack: contextlib.ExitStack) -> Iterator[Path]:
    """A directory on each file system that can be mounted here; what cannot is said."""
    for kind in KINDS:
        try:
            mounted = stack.enter_context(mounted_image(kind, root / f"{kind}.img", IMAGE_NBYTES))
        except (UnavailableError, BenchError) as error:
            print(f"oracle: {kind} is left out: {error}")
            continue
        print(f"oracle: {kind} is mounted")
        home = mounted / "case"
        home.mkdir()
        yield home


def _tell(failure: Failure, options: argparse.Namespace, *, gloo: bool) -> None:
    """What failed, where its inputs are, and the command that does it again."""
    again = f"scripts/bench faults --oracle 1 --seed {options.seed} --first {failure.number}"
    again += " --gloo-every 1" * gloo + " --mounts" * options.mounts
    print(f"FAILED case {failure.number} of seed {options.seed}: {failure.message}")
    print(f"  kept: {failure.kept}{os.linesep}  again: {again}", flush=True)
