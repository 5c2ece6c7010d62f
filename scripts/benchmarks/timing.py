"""Running commands, and letting those that are compared take turns."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

Sample = dict[str, float]
"""What one run of one side gave: seconds, or bytes, by name; "whole" is the whole command, "cpu" its user and
system time on all cores, which says more where other programs share the machine."""

PYTHON = sys.executable
EPLB = str(Path(sys.executable).parent / "eplb")

NOTHING_S = 0.0005
"""A stage as short as this is not worth a word."""

_ERROR_TAIL = 3000


class BenchError(Exception):
    """A command failed; the message is for a person."""


class UnavailableError(Exception):
    """A benchmark cannot be run here, and why."""


@dataclass(frozen=True)
class Finished:
    """A command that succeeded, with its time and its and its children's processor time."""

    seconds: float
    cpu_s: float
    stdout: str


def run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Finished:
    """Run a command and take its time. Raises BenchError where it fails.

    Python keeps its byte code, as that of an installed package is kept, whatever the environment says.
    """
    wanted = {**(os.environ if environment is None else environment)}
    wanted.pop("PYTHONDONTWRITEBYTECODE", None)
    cpu_before, started = _children_cpu_s(), time.perf_counter()
    done = subprocess.run(  # noqa: S603 - a list of arguments, all of them from this package
        command, capture_output=True, text=True, check=False, env=wanted
    )
    seconds, cpu_s = time.perf_counter() - started, _children_cpu_s() - cpu_before
    if done.returncode:
        raise BenchError(f"{command[0]} exits {done.returncode}: {done.stderr.strip()[-_ERROR_TAIL:]}")
    return Finished(seconds, cpu_s, done.stdout)


def _children_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def interleave(sides: Mapping[str, Callable[[], Sample]], runs: int) -> dict[str, list[Sample]]:
    """Run every side once to warm up, then all of them `runs` times in turn.

    Sample i of one side and sample i of another were taken in the same round, so that their ratio is
    one of neighbours. Every round starts with another side::

        warm-up: a b c | a b c | b c a | c a b
    """
    names = list(sides)
    samples: dict[str, list[Sample]] = {name: [] for name in names}
    for round_number in range(-1, runs):
        first = max(round_number, 0) % len(names)
        for name in names[first:] + names[:first]:
            sample = sides[name]()
            _tell(name, round_number, runs, sample)
            if round_number >= 0:
                samples[name].append(sample)
    return samples


def _tell(name: str, round_number: int, runs: int, sample: Sample) -> None:
    turn = "warm-up" if round_number < 0 else f"{round_number + 1} of {runs}"
    numbers = ", ".join(f"{key} {_short(value)}" for key, value in sample.items() if value > NOTHING_S)
    print(f"  {turn:<8} {name:<40} {numbers}", file=sys.stderr, flush=True)


def _short(value: float) -> str:
    return f"{value / 1e6:.0f} MB" if value > 1e5 else f"{value:.3f} s"  # noqa: PLR2004 - bytes, not seconds
