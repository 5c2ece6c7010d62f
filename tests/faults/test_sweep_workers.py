"""Faults in commands whose launcher and workers are processes: every call of each of them, and kill -9."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.faults import Fault, Kind, path_of
from tests.support.forked import LAUNCHER, run_forked
from tests.support.runs import contents, wait_until
from tests.support.scratch import scratch
from tests.support.small import SmallCase, require_sound, small_case
from tests.support.sweeps import share, stride

GLOO = ("--backend", "gloo", "--nproc-per-node", 2, "--buffer-size", 64)
KINDS: tuple[Kind, ...] = ("EIO", "ENOSPC", "short", "EINTR")
SEED = 20261124


@pytest.fixture
def case(monkeypatch):
    """A small checkpoint, in memory, of which even small tensors are worth a file that ranks share."""
    monkeypatch.setattr("eplb_cli.run.shared_others.LEAST_SHARED_NBYTES", 0)
    with scratch() as path:
        (path / "said").mkdir()
        (path / "work").mkdir()
        yield small_case(path / "work")


def run_with(case: SmallCase, process: str, fault: Fault, *options: object, interval_s: float = 30.0) -> bool:
    """Run a command with a fault in one of its processes and check it; whether there was such a call."""
    said = case.home.parent / "said"
    fault.report = said / "hit"
    ended = run_forked(said, case.command(*options), {process: fault}, interval_s)
    fault.take_report()
    if fault.hit is None:
        assert ended.code == 0, ended
        case.remove_destination()
        return False
    require_no_worker_left(case)
    require_sound(case, fault, ended, by_worker=process != LAUNCHER)
    return True


def require_no_worker_left(case: SmallCase) -> None:
    """Every worker that said its process id is gone, or goes now."""
    pids = [path.read_text() for path in case.staging.glob(".eplb/pid-*")]
    wait_until(lambda: not any(pid and is_running(Path("/proc") / pid) for pid in pids))


def is_running(process: Path) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("part", range(2))
@pytest.mark.parametrize("process", [LAUNCHER, "0", "1"])
def test_every_call_with_gloo(case: SmallCase, process: str, part: int, count):
    """Each call of a process fails once, in one of the ways in turn; every fifth of them by day."""
    step = 2 * stride(5)
    first = (part * step // 2 + len(process)) % step
    hits = 0
    for number in itertools.count(first, step):
        if not run_with(case, process, Fault(number, KINDS[number // step % len(KINDS)]), *GLOO):
            break
        hits += 1
    assert number > 40
    count("failing calls", hits)


@pytest.mark.parametrize("part", range(2))
def test_kill_9_with_file(case: SmallCase, part: int, count):
    """The command is killed at a call; half of them are while the journal has a line every millisecond."""
    num_calls = len(case.calls)
    chosen = random.Random(SEED + part).sample(range(num_calls), min(share(95, 3), num_calls))
    for number in chosen:
        run_with(
            case, LAUNCHER, Fault(number, "kill"), "--backend", "file", interval_s=(0.001, 30)[number % 2]
        )
    count("kill -9", len(chosen))


def test_kill_9_with_gloo(case: SmallCase, count):
    """The launcher is killed at a call, or one of its workers; all the others end with it."""
    chance = random.Random(SEED)
    hits = 0
    while hits < 10:
        process = chance.choice([LAUNCHER, "0", "1"])
        hits += run_with(case, process, Fault(chance.randrange(100), "kill"), *GLOO)
    count("kill -9", hits)


class Sleepy(Fault):
    """Lets a worker sleep in its calls: for `sleep_s` in each write to DST, or for good in the first."""

    def __init__(self, sleep_s: float) -> None:
        super().__init__(-1, "EIO")
        self._sleep_s = sleep_s

    def __call__(self, operation: str, call: Callable[..., Any], *args: Any) -> Any:
        """Stands for `files.make_call`."""
        if operation == "write" and len(args[1]) == ROW_NBYTES and "/.eplb/" not in path_of(call, args[0]):
            time.sleep(self._sleep_s)
        return call(*args)


ROW_NBYTES = 12


def test_a_worker_that_stands_still_is_told_from_one_that_waits(case: SmallCase):
    """EP403 and exit 4: which workers, of which ranks, and what each of them was doing."""
    said = case.home.parent / "said"
    ended = run_forked(said, case.command(*GLOO, "--timeout", 1.5), {"1": Sleepy(3600)})
    assert ended.code == 4, ended
    assert "error[EP403]: no progress for 1.5 s: " in ended.err
    assert "worker 1 (rank 1): writing files" in ended.err
    assert "worker 0 (rank 0): waiting for the other workers" in ended.err
    require_no_worker_left(case)


def test_a_slow_disk_is_no_standstill(case: SmallCase):
    """All writes together take longer than --timeout, and none of them does."""
    said = case.home.parent / "said"
    ended = run_forked(said, case.command(*GLOO, "--timeout", 4), {"1": Sleepy(1.2)})
    assert ended.code == 0, ended
    assert contents(case.destination) == case.result
