"""Runs that are ended in the middle: the root cause is told, and nothing is left."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from eplb_cli.errors import EplbError
from eplb_cli.progress import REMOVED
from eplb_cli.run.job import progress_counters, read_job
from tests.support.interrupts import APART_S
from tests.support.runs import TINY_BUFFERS, contents, processes_about, run, start, wait_until

DATA = Path(__file__).parents[1] / "data" / "eplb-replicas"

pytestmark = pytest.mark.distributed


@pytest.fixture
def running(tmp_path):
    """A run whose two workers exchange byte by byte, so that it is in the middle for long."""
    placements = ("--old", DATA / "old.json", "--new", DATA / "new.json")
    workers = ("--backend", "gloo", "--nproc-per-node", 2, "--buffer-size", 1)
    before = contents(DATA / "src")
    process = start("reshard", DATA / "src", tmp_path / "dst", *placements, *workers, module=TINY_BUFFERS)
    try:
        wait_until(lambda: all_move(tmp_path), process)
        yield process
    finally:
        process.kill()
        process.communicate()
    assert contents(DATA / "src") == before


def work_of(path: Path) -> Path:
    return path / ".dst.eplb-staging" / ".eplb"


def all_move(path: Path) -> bool:
    """Whether every worker has written bytes."""
    try:
        counters = progress_counters(read_job(work_of(path) / "job.json").progress)
    except (OSError, EplbError, ValueError):
        return False
    return len(counters) == 2 and bool((counters[:, 0] > 0).all())


def require_nothing_left(path: Path, process: subprocess.Popen[str]) -> str:
    """No DST, no staging, no process, nothing on stdout; what was said on stderr."""
    out, err = process.communicate()
    assert out == ""
    assert list(path.iterdir()) == []
    wait_until(lambda: not processes_about(path))
    return err


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_killed_worker_is_named(tmp_path, running, number):
    """Exit 4 and EP402 with the worker and the signal, not the complaints of the worker that survived.

    What was written is kept, and another backend finishes it.
    """
    os.kill(int((work_of(tmp_path) / "pid-1").read_text()), number)
    running.wait()
    out, err = running.communicate()
    assert (running.returncode, out) == (4, "")
    wait_until(lambda: not processes_about(tmp_path))
    assert list(tmp_path.iterdir()) == [tmp_path / ".dst.eplb-staging"]
    assert "--resume` goes on" in err
    again = ("--resume", "--backend", "file", "--new", DATA / "new.json", "--old", DATA / "old.json")
    done = run("reshard", DATA / "src", tmp_path / "dst", *again)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == [tmp_path / "dst"]
    assert run("verify", tmp_path / "dst", "--against", DATA / "src").returncode == 0
    assert f"error[EP402]: worker 1 (rank 1) ended by {number.name}" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_killed_torchrun_is_told(tmp_path, running, number):
    """Exit 4 and EP404 with the signal that ended it; the workers end with it, and nothing is a traceback."""
    worker = Path("/proc", (work_of(tmp_path) / "pid-1").read_text())
    torchrun = int((worker / "stat").read_text().rpartition(")")[2].split()[1])
    os.kill(torchrun, number)
    out, err = running.communicate()
    assert (running.returncode, out) == (4, "")
    wait_until(lambda: not processes_about(tmp_path))
    assert f"error[EP404]: torchrun was ended by {number.name}\n" in err
    assert "Traceback" not in err


def test_a_killed_launcher_leaves_no_process(tmp_path, running):
    """Nobody is there to end the workers, and they end; the next run does not wait for anything."""
    running.kill()
    running.communicate()
    wait_until(lambda: not processes_about(tmp_path))
    placements = ("--new", DATA / "new.json", "--old", DATA / "old.json")
    command = ("reshard", DATA / "src", tmp_path / "dst", *placements, "--backend", "file")
    done = run(*command)
    while "EP605" in done.stderr:  # a process that ends has no name any more, and its lock for a moment
        done = run(*command)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == [tmp_path / "dst"]


def test_an_interrupted_run_is_kept(tmp_path, running):
    """Ctrl-C, which only the command itself gets: exit 130, its workers end with it, and --resume goes on."""
    running.send_signal(signal.SIGINT)
    running.wait()
    out, err = running.communicate()
    assert (running.returncode, out) == (130, "")
    wait_until(lambda: not processes_about(tmp_path))
    assert "--resume` goes on" in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == [tmp_path / ".dst.eplb-staging"]
    again = ("--resume", "--backend", "file", "--new", DATA / "new.json", "--old", DATA / "old.json")
    done = run("reshard", DATA / "src", tmp_path / "dst", *again)
    assert done.returncode == 0, done.stderr
    assert "taken over, read again" in done.stdout
    assert run("verify", tmp_path / "dst", "--against", DATA / "src").returncode == 0


def test_an_interrupted_run_that_keeps_nothing(tmp_path, running):
    """Ctrl-C twice within the second."""
    running.send_signal(signal.SIGINT)
    time.sleep(APART_S)
    running.send_signal(signal.SIGINT)
    running.wait()
    err = require_nothing_left(tmp_path, running)
    assert running.returncode == 130
    assert REMOVED in err
    assert "Traceback" not in err
