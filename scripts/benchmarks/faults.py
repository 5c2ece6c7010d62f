"""`scripts/bench faults`: kill -9 by the thousand, and how soon a command ends after one of its workers.

With `--starting N` also kills at every 20 ms of the start-up of a command, of torchrun and of its workers.

Every kill is at a call to the file system, chosen by a seed; after it SRC is as it was, DST whole or absent,
and `--resume` makes it whole. One that is not ends the run with what was found.

With `--oracle N` there are no kills, but N random cases that have to come out as an oracle says.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import median

from eplb_cli.run import shared_others
from scripts.benchmarks import oracle
from scripts.benchmarks.machine import heading
from tests.support.faults import Fault
from tests.support.forked import LAUNCHER, run_forked
from tests.support.orphans import kill_and_run_again
from tests.support.runs import TINY_BUFFERS, command, contents, start, wait_until
from tests.support.scratch import scratch
from tests.support.small import SmallCase, require_sound, small_case

DATA = Path(__file__).parents[2] / "tests" / "data" / "eplb-replicas"
GLOO = ("--backend", "gloo", "--nproc-per-node", 2, "--buffer-size", 64)
STEP_S = 0.02
WORKER_CALLS = 100
"""A worker makes fewer calls than this; a number beyond the last one is drawn again."""


def main(arguments: list[str]) -> int:
    """Run what was asked for, and print what came of it."""
    parser = argparse.ArgumentParser(prog="scripts/bench faults", description=__doc__)
    parser.add_argument("--file", type=int, default=2000, help="kills of a command with --backend file")
    parser.add_argument("--gloo", type=int, default=200, help="kills of a launcher or of a worker with gloo")
    parser.add_argument(
        "--ends", type=int, default=5, help="workers of a torchrun job killed, with the time taken"
    )
    parser.add_argument(
        "--starting", type=int, default=0, help="kills while workers start, each followed by another command"
    )
    parser.add_argument("--seed", type=int, default=1)
    oracle.add_options(parser)
    options = parser.parse_args(arguments)
    print(heading("faults", arguments, Path(tempfile.gettempdir())), end="\n\n", flush=True)
    if options.oracle:
        return oracle.run(options)
    if options.starting:
        _kill_starting(options.starting)
    shared_others.LEAST_SHARED_NBYTES = 0  # even small tensors are worth a file that ranks share
    chance = random.Random(options.seed)  # noqa: S311 - no secret
    with scratch() as path:
        (path / "said").mkdir()
        (path / "work").mkdir()
        case = small_case(path / "work")
        _kill_file(case, options.file, chance)
        _kill_gloo(case, options.gloo, chance)
    if options.ends:
        _time_ends(options.ends)
    return 0


def _kill_file(case: SmallCase, count: int, chance: random.Random) -> None:
    found: Counter[str] = Counter()
    for _ in range(count):
        interval_s = chance.choice([0.001, 30.0])
        number = chance.randrange(len(case.calls))
        found[_kill(case, LAUNCHER, number, ("--backend", "file"), interval_s)] += 1
    _tell("file, the command killed", found)


def _kill_gloo(case: SmallCase, count: int, chance: random.Random) -> None:
    found: Counter[str] = Counter()
    while found.total() - found["not reached"] < count:
        process = chance.choice([LAUNCHER, "0", "1"])
        found[_kill(case, process, chance.randrange(WORKER_CALLS), GLOO, 30.0)] += 1
    _tell("gloo, the launcher or a worker killed", found)


def _kill(case: SmallCase, process: str, number: int, options: tuple[object, ...], interval_s: float) -> str:
    """Kill once, check, and say what was left."""
    said = case.home.parent / "said"
    fault = Fault(number, "kill", said / "hit")
    ended = run_forked(said, case.command(*options), {process: fault}, interval_s)
    fault.take_report()
    if fault.hit is None:
        case.remove_destination()
        return "not reached"
    left = "DST whole" if case.destination.exists() else "staging" if case.staging.exists() else "nothing"
    require_sound(case, fault, ended, by_worker=process != LAUNCHER)
    return left


def _tell(what: str, found: Counter[str]) -> None:
    left = ", ".join(f"{name} {count:,}" for name, count in sorted(found.items()) if name != "not reached")
    print(
        f"{what}: {found.total() - found['not reached']:,} kills, all sound; left behind: {left}", flush=True
    )


def _kill_starting(count: int) -> None:
    """Kill commands at every 20 ms until one has ended before, and from the beginning again, `count` times.

    The next command has another NEW: it has the right bytes, or is refused until it has them.
    """
    found: Counter[str] = Counter()
    after_s = 0.0
    for _ in range(count):
        with scratch() as path:
            case = small_case(path)
            first = command(*case.command(*GLOO, new=path / "old.json"), module=TINY_BUFFERS)
            second = command(*case.command("--backend", "file"))
            seen = kill_and_run_again(path, first, second, after_s=after_s)
            is_right = seen.codes[-1] == 0 and contents(case.destination) == case.result
            if seen.killed and not (is_right and set(seen.codes[:-1]) <= {6}):
                raise SystemExit(f"killed after {after_s:.2f} s: {seen}")
        found["refused at first" if len(seen.codes) > 1 else "right at once"] += seen.killed
        after_s = after_s + STEP_S if seen.killed else 0.0
    told = ", ".join(f"{name} {times:,}" for name, times in sorted(found.items()))
    print(f"gloo, the command killed while its workers start, every {STEP_S * 1e3:g} ms: {told}", flush=True)


def _time_ends(count: int) -> None:
    """Seconds from SIGKILL of a worker to the end of a command that torchrun runs."""
    seconds = [_time_end() for _ in range(count)]
    print(
        f"gloo under torchrun, from kill -9 of a worker to the end of the command: "
        f"median {median(seconds):.2f} s, at most {max(seconds):.2f} s, of {count}"
    )


def _time_end() -> float:
    with tempfile.TemporaryDirectory() as directory:
        placements = ("--old", DATA / "old.json", "--new", DATA / "new.json")
        workers = ("--backend", "gloo", "--nproc-per-node", 2, "--buffer-size", 1)
        process = start(
            "reshard", DATA / "src", Path(directory) / "dst", *placements, *workers, module=TINY_BUFFERS
        )
        work = Path(directory) / ".dst.eplb-staging" / ".eplb"
        wait_until((work / "journal-1").exists, process)
        began = time.monotonic()
        os.kill(int((work / "pid-1").read_text()), signal.SIGKILL)
        process.communicate()
        return time.monotonic() - began
