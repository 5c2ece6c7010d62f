"""How `eplb plan` grows with the number of slots: whole commands, and a line through them."""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from scripts.benchmarks.pairs import balanced_pair
from scripts.benchmarks.timing import EPLB, BenchError
from scripts.benchmarks.trees import SEED, write_placement

NUM_LAYERS = 61
NUM_EXPERTS = 256
SLOTS = (2560, 5120, 10_240, 20_480)
SLOTS_PER_RANK = 2

MAX_SECONDS = 5.0
MAX_NBYTES = 2e9
"""The bars for the largest size."""


@dataclass(frozen=True)
class Size:
    """One size, with the seconds of each run and the largest resident set of any."""

    num_slots: int
    seconds: list[float]
    peak_nbytes: int


def measure(scratch: Path, runs: int) -> list[Size]:
    """Plan each size `runs` times, sizes in turn, after one run to warm up."""
    commands = {num_slots: _command(num_slots, scratch) for num_slots in SLOTS}
    seconds: dict[int, list[float]] = {num_slots: [] for num_slots in SLOTS}
    peaks = dict.fromkeys(SLOTS, 0)
    for number in range(runs + 1):
        for num_slots, command in commands.items():
            elapsed, peak = _run(command)
            peaks[num_slots] = max(peaks[num_slots], peak)
            if number:
                seconds[num_slots].append(elapsed)
    return [Size(num_slots, seconds[num_slots], peaks[num_slots]) for num_slots in SLOTS]


def _command(num_slots: int, scratch: Path) -> list[str]:
    paths = [scratch / f"{side}-{num_slots}.json" for side in ("old", "new")]
    pair = balanced_pair(NUM_LAYERS, NUM_EXPERTS, num_slots, num_slots // SLOTS_PER_RANK, SEED)
    for path, content in zip(paths, pair, strict=True):
        write_placement(path, content)
    options = ["--expert-bytes", "44050944", "--ranks-per-node", "8", "--format", "json"]
    return [EPLB, "plan", *map(str, paths), *options]


def _run(command: list[str]) -> tuple[float, int]:
    """Seconds, and bytes of the largest resident set, of a command that has to succeed."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)  # noqa: S603 - arguments from here
    _, status, usage = os.wait4(process.pid, 0)
    elapsed = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise BenchError(f"{command[0]} exits {process.returncode}")
    return elapsed, usage.ru_maxrss * 1024


def render_sizes(sizes: list[Size]) -> str:
    """A line for each size, the fit, and whether the bars are reached."""
    lines = [f"{'slots':>7} {'ranks':>7} {'median':>8} {'µs per slot and layer':>22} {'peak memory':>12}"]
    for size in sizes:
        each = median(size.seconds) / size.num_slots / NUM_LAYERS * 1e6
        ranks = size.num_slots // SLOTS_PER_RANK
        lines.append(
            f"{size.num_slots:>7,} {ranks:>7,} {median(size.seconds):>6.2f} s {each:>22.2f} "
            f"{size.peak_nbytes / 1e6:>9.0f} MB"
        )
    return "\n".join([*lines, _fit(sizes), _verdict(sizes[-1])])


def _fit(sizes: list[Size]) -> str:
    """The straight line nearest to the medians, and how much of their spread it explains."""
    slots = np.array([size.num_slots for size in sizes])
    seconds = np.array([median(size.seconds) for size in sizes])
    slope, start = np.polyfit(slots, seconds, 1)
    rest = ((seconds - (start + slope * slots)) ** 2).sum() / ((seconds - seconds.mean()) ** 2).sum()
    return f"fit: {start:.2f} s + {slope * 1000:.3f} s per 1,000 slots, R² {1 - rest:.4f}"


def _verdict(largest: Size) -> str:
    seconds, nbytes = median(largest.seconds), largest.peak_nbytes
    reached = seconds <= MAX_SECONDS and nbytes <= MAX_NBYTES
    bars = f"at most {MAX_SECONDS:g} s and {MAX_NBYTES / 1e9:g} GB"
    return f"{largest.num_slots:,} slots: {bars}: {'reached' if reached else 'MISSED'}"
