"""A command that is killed while its workers still start, and the next one, where PID 1 reaps orphans.

    unshare ──► this module as PID 1 ──► first command (killed) ──► torchrun ──► workers
                                    └──► second command, with another NEW, until none is refused

In a container, whoever loses its parent becomes a child of PID 1, which says nothing of what it came from.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

_GIVE_UP_S = 120.0
"""Only ends a test that would hang; no result depends on it."""

GATE = '''
"""Stops the process that is named by GATE_OF: at its start, or where it imports the module GATE_AT."""
import os, sys, time

class Gate:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["GATE_AT"] and "EPLB_TEST_PASSED" not in os.environ:
            wait()

def wait():
    open(os.path.join(os.environ["GATE"], f"waits-{os.getpid()}"), "w").close()
    while not os.path.exists(os.path.join(os.environ["GATE"], "open")):
        time.sleep(0.005)
    os.environ["EPLB_TEST_PASSED"] = "1"

words = sys.orig_argv
after = words[words.index("-m") + 1] if "-m" in words else ""
if "GATE" in os.environ and after == os.environ["GATE_OF"]:
    if os.environ["GATE_AT"]:
        sys.meta_path.insert(0, Gate())
    else:
        wait()
'''


@dataclass(frozen=True)
class Seen:
    """What came of it.

    Attributes:
        killed: whether the first command was still running.
        codes: exit codes of the second command, tried until it is not refused with EP605.
        said: what its last attempt said on stderr.
    """

    killed: bool
    codes: list[int]
    said: str


def require_namespaces() -> None:
    """Skip the test, with the reason, where no PID namespace can be had."""
    if not shutil.which("unshare"):
        pytest.skip("there is no unshare here")
    tried = subprocess.run([*_UNSHARE, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"no PID namespace: {tried.stderr.strip()}")


_UNSHARE = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]


def kill_and_run_again(
    home: Path, first: list[str], second: list[str], kill_s: float, gate: Mapping[str, str] | None = None
) -> Seen:
    """Kill a command and start another at once, in a PID namespace of their own; all have ended afterwards.

    Args:
        kill_s: seconds after which the first is killed.
        gate: where its processes are stopped: GATE_OF a module and GATE_AT an import of it, "" for its
            start. It is killed once two of them wait there (one torchrun), and then they go on.
    """
    environment = dict(os.environ)
    if gate is not None:
        (home / "gate").mkdir()
        (home / "gate" / "sitecustomize.py").write_text(GATE)
        environment["PYTHONPATH"] = os.pathsep.join([str(home / "gate"), environment.get("PYTHONPATH", "")])
        environment |= gate
    task = {"home": str(home), "first": first, "second": second, "kill_s": kill_s, "gated": gate is not None}
    done = subprocess.run(
        [*_UNSHARE, sys.executable, "-m", "tests.support.orphans", json.dumps(task)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=_GIVE_UP_S,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done
    return Seen(**json.loads(done.stdout))


def main() -> None:
    """Be PID 1."""
    task = json.loads(sys.argv[1])
    home = Path(task["home"])
    environment = dict(os.environ)
    if task["gated"]:
        environment["GATE"] = str(home / "gate")
    codes: dict[int, int] = {}
    first = _spawn(task["first"], home / "first", environment)
    if task["gated"]:
        wanted = 1 if environment["GATE_OF"].endswith("torchrun") else 2
        while len(list((home / "gate").glob("waits-*"))) < wanted and first not in codes:
            _reap(codes)
            time.sleep(0.002)
    else:
        ends = time.monotonic() + task["kill_s"]
        while time.monotonic() < ends and first not in codes:
            _reap(codes)
            time.sleep(0.001)
    killed = first not in codes
    if killed:
        os.kill(first, signal.SIGKILL)
    if task["gated"]:
        (home / "gate" / "open").touch()
    tries: list[int] = []
    while not tries or "EP605" in (home / "second").read_text():
        second = _spawn(task["second"], home / "second", dict(os.environ))
        while second not in codes:
            _reap(codes)
            time.sleep(0.002)
        tries.append(codes[second])
    while _reap(codes):
        time.sleep(0.002)
    sys.stdout.write(json.dumps({"killed": killed, "codes": tries, "said": (home / "second").read_text()}))


def _spawn(words: list[str], says: Path, environment: dict[str, str]) -> int:
    """Start a command, and keep what it says; its process id."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    actions = [(os.POSIX_SPAWN_OPEN, number, str(says), flags, 0o600) for number in (1, 2)]
    return os.posix_spawn(words[0], words, environment, file_actions=actions)


def _reap(codes: dict[int, int]) -> bool:
    """Take the exit codes of whatever has ended; whether there is any process left."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return False
        if not pid:
            return True
        codes[pid] = os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    main()
