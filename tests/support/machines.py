"""Several hosts on one machine: namespaces of the kernel, joined by a switch.

    node-a  eth0 10.77.0.1 ─┐
    node-b  eth0 10.77.0.2 ─┼─ a bridge, in a namespace of its own
    node-c  eth0 10.77.0.3 ─┘

Each has a network, a name, processes, a start of its kernel and a /dev/shm of its own, and one directory,
`home`, that has the same path on all and is another one on each. The rest of the file system, as Python and
this repository, they have in common, as hosts of one image do.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.faults import Ended, Fault
from tests.support.forked import Forked
from tests.support.namespaces import (
    Link,
    Namespace,
    children,
    descendants,
    enter_host,
    make_cable,
    make_host,
    make_switch,
    read_proc,
)
from tests.support.runs import wait_until

__all__ = ["Link", "Machine", "Process", "Traffic", "hosts"]

_GIVE_UP_S = 300.0
"""Only ends a test that would hang; no result depends on it."""

_LISTENS = "0A"


class Traffic(NamedTuple):
    """Bytes that have passed a host's interface, with all headers."""

    received: int
    sent: int


class Process:
    """A process on a host; what it says is in files, so that nobody has to read it for it to go on."""

    def __init__(self, entering: subprocess.Popen[bytes] | Forked, says: tuple[Path, Path]) -> None:
        self._entering = entering
        self._out, self._err = says

    @property
    def pid(self) -> int | None:
        """Its process id as seen from outside; None before it is there and when it has ended."""
        return next(iter(children(self.entered_by)), None)

    @property
    def entered_by(self) -> int:
        """The process outside that it is a child of."""
        return self._entering.pid

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        return self._entering.poll()

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it is there."""
        wait_until(lambda: self.pid or self.poll() is not None)
        _send([self.pid or 0], number)

    def out(self) -> str:
        """What it has said so far."""
        return self._out.read_text()

    def err(self) -> str:
        """What it has said so far on stderr."""
        return self._err.read_text()

    def wait(self, timeout: float = _GIVE_UP_S) -> Ended:
        """Wait for its end."""
        return Ended(self._entering.wait(timeout), self.out(), self.err())

    def discard(self) -> None:
        """Be rid of it; what it has started ends with its host."""
        self._entering.kill()
        self._entering.wait(_GIVE_UP_S)


@dataclass
class Machine:
    """A host.

    Attributes:
        name: as it calls itself, and all others call it.
        address: of its one interface, eth0.
        home: its directory, as it sees it.
        path: the same directory, as the test sees it.
    """

    name: str
    address: str
    home: Path
    path: Path
    _said: Path
    _switch: Namespace
    _namespace: Namespace
    _port: str
    _started: list[Process] = field(default_factory=list)

    def popen(self, words: Sequence[object], env: Mapping[str, str] | None = None) -> Process:
        """Start a process here, in `home`."""
        entering = [*self._namespace.enter, "env", f"--chdir={self.home}", *map(str, words)]
        out, err = says = self._says()
        with out.open("wb") as to_out, err.open("wb") as to_err:
            popen = subprocess.Popen(
                entering, stdin=subprocess.DEVNULL, stdout=to_out, stderr=to_err, env=self._environment(env)
            )
        return self._add(Process(popen, says))

    def fork(
        self,
        arguments: Sequence[object],
        env: Mapping[str, str] | None = None,
        faults: Mapping[str, Fault] | None = None,
        interval_s: float = 30.0,
    ) -> Process:
        """The same for a command of eplb that has loaded all it needs, and may have faults (`forked`)."""
        says = self._says()
        enter = partial(enter_host, self._switch.pid, self._namespace.pid, self._environment(env), self.home)
        forked = Forked(says, [*arguments], faults or {}, interval_s, enter=enter)
        return self._add(Process(forked, says))

    def _says(self) -> tuple[Path, Path]:
        said = self._said / f"{self.name}-{len(self._started)}"
        return said.with_suffix(".out"), said.with_suffix(".err")

    def _environment(self, more: Mapping[str, str] | None) -> dict[str, str]:
        return {**os.environ, "TMPDIR": str(self.home / "tmp"), **(more or {})}

    def _add(self, process: Process) -> Process:
        self._started.append(process)
        return process

    def run(self, words: Sequence[object], env: Mapping[str, str] | None = None) -> Ended:
        """Run a process here to its end."""
        return self.popen(words, env).wait()

    def python(self, code: str, *arguments: object) -> Process:
        """Start a few lines of Python here, which need no package."""
        return self.popen([sys.executable, "-ISc", code, *arguments])

    def processes(self, pattern: str = "") -> list[int]:
        """Process ids, as seen from outside, of all here whose command line has a pattern, but of PID 1."""
        roots = [self._namespace.pid, *(process.entered_by for process in self._started)]
        return [
            pid
            for root in roots
            for pid in descendants(root)[1:]
            if pattern in read_proc(f"{pid}/cmdline").replace("\0", " ")
        ]

    def kill(self, pattern: str = "", number: signal.Signals = signal.SIGKILL) -> int:
        """Send a signal to all processes with a pattern, and return how many they were."""
        pids = self.processes(pattern)
        _send(pids, number)
        return len(pids)

    def cut(self) -> None:
        """Pull the cable at the switch: whatever is sent is lost, and nobody is told."""
        self._switch.run("ip", "link", "set", self._port, "nomaster")

    def mend(self) -> None:
        """Put the cable back."""
        self._switch.run("ip", "link", "set", self._port, "master", "switch")

    def lose(self) -> None:
        """What the others see of a loss of power: no process is left, and none of them says goodbye."""
        self.cut()
        self._namespace.run("sh", "-c", "kill -KILL -1")
        wait_until(lambda: not self.processes())

    def interface_bytes(self) -> Traffic:
        """What has passed eth0 so far."""
        lines = self._namespace.run("cat", "/proc/net/dev").splitlines()
        words = next(line for line in lines if line.strip().startswith("eth0:")).split()
        return Traffic(int(words[1]), int(words[9]))

    def listening(self) -> set[str]:
        """The addresses on which something listens for TCP."""
        found = set()
        for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
            for line in self._namespace.run("cat", f"/proc/net/{table}").splitlines()[1:]:
                _, local, _, state, *_ = line.split()
                if state == _LISTENS:
                    found.add(_address(family, local.partition(":")[0]))
        return found


@contextlib.contextmanager
def hosts(
    count: int, base: Path, *, shared: bool = False, link: Link | None = None
) -> Iterator[list[Machine]]:
    """Some hosts, which end with all their processes; the test is skipped where they cannot be had.

    Args:
        count: of hosts.
        base: an empty directory that this may fill, and of which no host sees more than its `home`.
        shared: whether `home / "shared"` is one directory for all.
        link: how bad their cables are; None is a good one.
    """
    with contextlib.ExitStack() as stack:
        try:
            switch = stack.enter_context(make_switch())
            machines = [
                stack.enter_context(_machine(switch, base, number, shared=shared, link=link))
                for number in range(count)
            ]
        except FileNotFoundError as error:
            pytest.skip(f"there is no {error.filename} here")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"{' '.join(error.cmd[:2])}: {error.stderr.strip()}")
        (base / "hosts").write_text("".join(f"{address} {name}\n" for address, name in _addressees(machines)))
        yield machines


@contextlib.contextmanager
def _machine(
    switch: Namespace, base: Path, number: int, *, shared: bool, link: Link | None
) -> Iterator[Machine]:
    """A host that is on and connected."""
    name, port = f"node-{chr(ord('a') + number)}", f"port{number}"
    home, path = base / "home", base / "all" / name
    for directory in (
        home,
        path / "tmp",
        base / "all" / "shared",
        base / "said",
        *[path / "shared"][:shared],
    ):
        directory.mkdir(parents=True, exist_ok=True)
    (base / "hosts").touch()
    boot_id = base / f"boot-{name}"
    boot_id.write_text(f"{uuid.uuid4()}\n")
    variables = {
        "own_path": path,
        "seen_at": home,
        "shared_path": base / "all" / "shared" if shared else "",
        "hidden": base / "all",
        "hosts_file": base / "hosts",
        "boot_id_file": boot_id,
        "host_name": name,
    }
    address = f"10.77.0.{number + 1}"
    with make_host(switch, **variables) as host, make_cable(switch, host, port, link):
        host.run("ip", "address", "add", f"{address}/24", "dev", "eth0")
        host.run("ip", "link", "set", "eth0", "up")
        machine = Machine(name, address, home, path, base / "said", switch, host, port)
        machine.mend()
        try:
            yield machine
        finally:
            for process in machine._started:
                process.discard()


def _addressees(machines: Sequence[Machine]) -> Iterator[tuple[str, str]]:
    """Address and name of all that a host can speak with."""
    yield "127.0.0.1", "localhost"
    for machine in machines:
        yield machine.address, machine.name


def _send(pids: Sequence[int], number: signal.Signals) -> None:
    """Send a signal to those processes that are still there."""
    for pid in filter(None, pids):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _address(family: socket.AddressFamily, digits: str) -> str:
    """An address, of which the kernel's tables of sockets show each word of 32 bits as its own number."""
    words = [bytes.fromhex(digits[start : start + 8]) for start in range(0, len(digits), 8)]
    native = [word[::-1] if sys.byteorder == "little" else word for word in words]
    return socket.inet_ntop(family, b"".join(native))
