"""What ties a process to the command that started it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from eplb_cli.checkpoint.staged import OWNER
from eplb_cli.errors import OutputError
from eplb_cli.machine import find_process
from eplb_cli.output.lock import inheritable, locked, write_owner

TIE = """
import sys
from pathlib import Path
from eplb_cli.run.leash import tie
print(tie(Path(sys.argv[1]), generations=1))
"""
LIGHT = """
import sys
import eplb_cli.run.torchrun, eplb_cli.run.worker
sys.exit(bool({"numpy", "torch"} & sys.modules.keys()))
"""


@pytest.fixture
def job(tmp_path):
    """Where the job of a run of this process would be."""
    (tmp_path / "staging" / ".eplb").mkdir(parents=True)
    write_owner(tmp_path / "staging" / ".eplb" / OWNER)
    return tmp_path / "staging" / ".eplb" / "job.json"


def tied(job, stdin, program=()):
    """What a process says that is tied to a job."""
    words = [*program, sys.executable, "-c", TIE, str(job)]
    return subprocess.run(words, stdin=stdin, capture_output=True, text=True, check=False)


def test_a_child_with_the_lock_is_tied(job):
    """It has the directory open, and another one of that name would not be reached."""
    with inheritable(job.parent / OWNER) as owner:
        done = tied(job, owner)
    assert done.stdout.startswith("/proc/self/fd/"), done


def test_a_process_without_the_lock_ends(job):
    """With no standard input of ours, or that of another directory."""
    (job.parent / "other").write_bytes((job.parent / OWNER).read_bytes())
    assert "is not held by" in tied(job, subprocess.DEVNULL).stderr
    with (job.parent / "other").open("r+b") as other:
        assert "is not held by" in tied(job, other).stderr
    with inheritable(job.parent / OWNER), (job.parent / OWNER).open("r+b") as again:
        assert "is not held by" in tied(job, again).stderr


def test_a_process_of_somebody_else_ends(job):
    """A grandchild where a child is meant, and a child where the command is another with its number."""
    with inheritable(job.parent / OWNER) as owner:
        done = tied(job, owner, ["sh", "-c", '"$@"; exit $?', "sh"])
        assert "has ended" in done.stderr, done
        text = (job.parent / OWNER).read_text()
        this = find_process("self")
        assert this is not None
        (job.parent / OWNER).write_text(text.replace(str(this.start), str(this.start - 1)))
        assert "has ended" in tied(job, owner).stderr


def test_a_directory_that_a_worker_holds_is_in_use(job):
    """EP605 after its command has let go of it, and no longer than the worker lives."""
    staging = job.parents[1]
    with inheritable(job.parent / OWNER) as owner:
        worker = subprocess.Popen(["sleep", "1000"], stdin=owner)
    try:
        with (
            pytest.raises(OutputError, match=f"process {os.getpid()} ") as caught,
            locked(staging, job.parent / OWNER),
        ):
            pass
        assert caught.value.code == "EP605"
    finally:
        worker.kill()
        worker.wait()
    with locked(staging, job.parent / OWNER):
        pass


def test_what_a_process_of_a_run_begins_with_is_light():
    """The ties come before anything that takes long to import."""
    assert subprocess.run([sys.executable, "-c", LIGHT], check=False).returncode == 0


def test_processes():
    """By number and beginning; what has ended is not there, although nobody has waited for it."""
    this, child = find_process("self"), subprocess.Popen(["sleep", "1000"])
    found = find_process(child.pid)
    assert this is not None
    assert found is not None
    assert (this.pid, found.pid, found.parent) == (os.getpid(), child.pid, os.getpid())
    assert found.start >= this.start > 0
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert find_process(child.pid) is None
    child.wait()
    assert find_process(0) is None
