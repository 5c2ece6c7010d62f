"""A command that is killed while its workers still start, and the next one, where PID 1 reaps orphans.

    unshare ──► this module as PID 1 ──► first command (killed) ──► torchrun ──► workers
                                    └──► second command, with another NEW, until it is not refused

In a container, whoever loses its parent becomes a child of PID 1, which tells nothing of where it came from.
Gates stop a process where it imports a module, so that what a race decides once in many runs is decided.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from eplb_cli.machine import find_process

_GIVE_UP_S = 300.0
"""Only ends a test that would hang; no result depends on it."""

_UNSHARE = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]

START, ROWS = "start", "rows"
"""Gates that are no imports: the start of a process, and where it opens a file of rows to write them."""

PROVED = "safetensors"
"""What a command with `--backend file` imports when all rows are proved, before it publishes them."""

_SITECUSTOMIZE = f"""
import json, os, sys, time

def wait(name):
    open(os.path.join(os.environ["GATES"], f"{{name}}-{{os.getpid()}}"), "w").close()
    while not os.path.exists(os.path.join(os.environ["GATES"], f"{{name}}.open")):
        time.sleep(0.005)

class Gates:
    def find_spec(self, name, path=None, target=None):
        if name in left:
            left.remove(name)
            wait(name)

def audit(event, arguments):
    if event == "open" and str(arguments[0]).endswith(".safetensors") and arguments[2] & os.O_RDWR:
        wait("{ROWS}")

module = sys.orig_argv[sys.orig_argv.index("-m") + 1] if "-m" in sys.orig_argv else ""
left = json.loads(os.environ["GATES_OF"]).get(module, [])
if "{START}" in left:
    wait("{START}")
sys.meta_path.insert(0, Gates())
if "{ROWS}" in left:
    sys.addaudithook(audit)
"""


@dataclass(frozen=True)
class Seen:
    """What came of it.

    Attributes:
        killed: whether the first command was still running.
        codes: exit codes of the second command, which is tried again while it is refused with EP605.
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


def kill_and_run_again(
    home: Path, first: list[str], second: list[str], *, after_s: float = 0, gates: Sequence[str] = ()
) -> Seen:
    """Kill a command and start another at once, in a PID namespace of their own; all have ended afterwards.

    Args:
        after_s: seconds after which the first is killed, without gates.
        gates: a module that the first command starts with `-m`, and what it imports, in order, where it is
            stopped. The command is killed at the first gate. The last is opened when the second command has
            proved its rows, or was refused.
    """
    (home / "gates").mkdir()
    (home / "gates" / "sitecustomize.py").write_text(_SITECUSTOMIZE)
    task = {"home": str(home), "first": first, "second": second, "after_s": after_s, "gates": list(gates)}
    done = subprocess.run(
        [*_UNSHARE, sys.executable, "-m", "tests.support.orphans", json.dumps(task)],
        capture_output=True,
        text=True,
        check=False,
        timeout=_GIVE_UP_S,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done
    return Seen(**json.loads(done.stdout))


@dataclass
class _Reaper:
    """PID 1: starts commands, and takes the exit codes of whatever ends."""

    home: Path
    codes: dict[int, int] = field(default_factory=dict)

    def start(self, words: list[str], name: str, gates: Mapping[str, list[str]]) -> int:
        """Start a command, and keep what it says in a file of a name; its process id."""
        environment = dict(os.environ)
        if gates:
            path = [str(self.home / "gates"), environment.get("PYTHONPATH", "")]
            environment |= {"PYTHONPATH": os.pathsep.join(path), "GATES_OF": json.dumps(gates)}
            environment |= {"GATES": str(self.home / "gates")}
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        says = [(os.POSIX_SPAWN_OPEN, number, str(self.home / name), flags, 0o600) for number in (1, 2)]
        return os.posix_spawn(words[0], words, environment, file_actions=says)

    def wait(self, holds: Callable[[], object], command: int | None = None) -> None:
        """Reap until something holds, or nobody but a command and what it has started is left."""
        while not holds() and not all(_is_of(process, command) for process in self.others()):
            time.sleep(0.001)

    def others(self) -> set[int]:
        """All other processes, when those that have ended are gone."""
        while any(ended := self._reap()):
            self.codes[ended[0]] = ended[1]
        return {int(path.name) for path in Path("/proc").glob("[0-9]*")} - {1}

    @staticmethod
    def _reap() -> tuple[int, int]:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return 0, 0
        return pid, os.waitstatus_to_exitcode(status) if pid else 0

    def has_ended(self, pid: int) -> bool:
        """Whether a command has."""
        return pid in self.codes

    def has_proved(self, pid: int) -> bool:
        """Whether a command has all rows, or none any more."""
        return self.has_ended(pid) or bool(self.waiting(PROVED))

    def waiting(self, gate: str) -> int:
        """How many processes are at a gate."""
        return len(list((self.home / "gates").glob(f"{gate}-*")))

    def open(self, gate: str) -> None:
        """Let whoever is at a gate go on."""
        (self.home / "gates" / f"{gate}.open").touch()


def _is_of(pid: int, command: int | None) -> bool:
    """Whether a process is a command, or was started by it, or has ended."""
    while pid not in {1, command}:
        process = find_process(pid)
        if process is None:
            return True
        pid = process.parent
    return pid == command


def main() -> None:
    """Be PID 1."""
    task = json.loads(sys.argv[1])
    reaper = _Reaper(Path(task["home"]))
    module, *gates = task["gates"] or [""]
    first = reaper.start(task["first"], "first", {module: gates} if gates else {})
    ends = time.monotonic() + task["after_s"]
    expected = 1 if module.endswith("torchrun") else 2
    reaper.wait(
        lambda: (
            first in reaper.codes
            or (reaper.waiting(gates[0]) == expected if gates else time.monotonic() > ends)
        )
    )
    killed = first not in reaper.codes
    if killed:
        os.kill(first, signal.SIGKILL)
    for gate, following in itertools.pairwise(gates):
        reaper.open(gate)
        reaper.wait(partial(reaper.waiting, following))
    tries: list[int] = []
    while not tries or "EP605" in (reaper.home / "second").read_text():
        second = reaper.start(task["second"], "second", {"eplb_cli": [PROVED]} if gates else {})
        reaper.wait(partial(reaper.has_proved, second))
        if gates:
            reaper.open(gates[-1])
            reaper.wait(lambda: False, second)
            reaper.open(PROVED)
        while not reaper.has_ended(second):  # it may end between being listed and being looked at
            reaper.wait(partial(reaper.has_ended, second))
        tries.append(reaper.codes[second])
    reaper.wait(lambda: False)
    said = (reaper.home / "second").read_text()
    sys.stdout.write(json.dumps({"killed": killed, "codes": tries, "said": said}))


if __name__ == "__main__":
    main()
