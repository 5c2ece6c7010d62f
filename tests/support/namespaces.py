"""Namespaces of the kernel, each held by a process that ends with the one that made it, however that ends.

Without root it is done in a user namespace. What the system refuses is a CalledProcessError.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

_WIRE = Path(__file__).with_name("wire.py")
_OWN = ("--net", "--mount", "--uts", "--ipc", "--pid")

_HOLD = "exec env --ignore-signal=CHLD cat"
"""Of PID 1 of a host: it lives until its input ends, and what loses its parent leaves no zombie."""

_BOOT = """
set -e
mount --bind "$OWN_PATH" "$SEEN_AT"
[ -z "$SHARED_PATH" ] || mount --bind "$SHARED_PATH" "$SEEN_AT/shared"
mount -t tmpfs -o ro none "$HIDDEN"
case "$HIDDEN" in /dev/shm/*) ;; *) mount -t tmpfs none /dev/shm ;; esac
mount --bind "$HOSTS_FILE" /etc/hosts
mount --bind "$BOOT_ID_FILE" /proc/sys/kernel/random/boot_id
hostname "$HOST_NAME"
ip link set lo up
"""


class Link(NamedTuple):
    """What a cable between a host and the switch does, either way; two of them are between two hosts."""

    delay_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0


@dataclass(frozen=True)
class Namespace:
    """Namespaces, and a process that holds them.

    Attributes:
        pid: of that process.
        enter: words that run in them what follows.
    """

    pid: int
    enter: tuple[str, ...]

    def run(self, *words: str) -> str:
        """Run a command of the system in them, and return what it says."""
        done = subprocess.run([*self.enter, *words], capture_output=True, text=True, check=True)
        return done.stdout


@contextlib.contextmanager
def make_switch() -> Iterator[Namespace]:
    """A network with a bridge, `switch`."""
    user = ["--user", "--map-root-user"] if os.geteuid() else []
    with _holding(["unshare", *user, "--net", "sh", "-c", _HOLD]) as pid:
        entering = ["--preserve-credentials", "--user"] if user else []
        switch = Namespace(pid, ("nsenter", f"--target={pid}", *entering, "--net"))
        switch.run("ip", "link", "add", "switch", "type", "bridge")
        switch.run("ip", "link", "set", "switch", "up")
        yield switch


@contextlib.contextmanager
def make_host(switch: Namespace, **variables: object) -> Iterator[Namespace]:
    """All namespaces of a host, whose PID 1 has done `_BOOT` with these variables."""
    unshare = ["unshare", *_OWN, "--fork", "--kill-child", "--mount-proc", "sh", "-c", _BOOT + _HOLD]
    strings = {name.upper(): str(value) for name, value in variables.items()}
    with _holding([*switch.enter, *unshare], {**os.environ, **strings}) as parent:
        (pid,) = children(parent)
        yield Namespace(pid, ("nsenter", f"--target={pid}", *switch.enter[2:-1], *_OWN))


@contextlib.contextmanager
def make_cable(switch: Namespace, host: Namespace, port: str, link: Link | None) -> Iterator[None]:
    """Join the host's eth0 with a port of the switch, directly or through a process that is a `link`."""
    with contextlib.ExitStack() as stack:
        if link is None:
            switch.run(*f"ip link add {port} type veth peer name eth0 netns {host.pid}".split())
        else:
            words = (_WIRE, switch.pid, port, host.pid, "eth0", *link)
            stack.enter_context(_holding([*switch.enter[:-1], sys.executable, "-IS", *map(str, words)]))
        switch.run("ip", "link", "set", port, "up")
        yield


def enter_host(switch: int, host: int, environment: Mapping[str, str], home: Path) -> None:
    """Let a child of this process, which has no threads, go on as a process of a host."""
    kinds = ("user",) * bool(os.geteuid()) + ("mnt", "net", "uts", "ipc", "pid")
    opened = [os.open(f"/proc/{switch if kind == 'user' else host}/ns/{kind}", os.O_RDONLY) for kind in kinds]
    for descriptor in opened:
        if ctypes.CDLL(None, use_errno=True).setns(descriptor, 0):
            raise OSError(ctypes.get_errno(), f"setns: {os.strerror(ctypes.get_errno())}")
        os.close(descriptor)
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        if code < 0 and code != -signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        if code < 0:
            os.kill(os.getpid(), -code)
        os._exit(code)
    os.environ.update(environment)
    os.chdir(home)


def descendants(pid: int) -> list[int]:
    """A process and all that it has started and that is there, in the order of a walk."""
    return [pid, *(found for child in children(pid) for found in descendants(child))]


def children(pid: int) -> list[int]:
    """Those of a process; none of one that has ended."""
    return list(map(int, read_proc(f"{pid}/task/{pid}/children").split()))


def read_proc(name: str) -> str:
    """The content of a file of /proc; empty where its process has ended."""
    try:
        return (Path("/proc") / name).read_text(errors="replace")
    except OSError:
        return ""


@contextlib.contextmanager
def _holding(words: Sequence[str], environment: Mapping[str, str] | None = None) -> Iterator[int]:
    """A process that repeats what it is told once it is ready; it ends with this block, or this process."""
    pipe = subprocess.PIPE
    with subprocess.Popen(words, bufsize=0, stdin=pipe, stdout=pipe, stderr=pipe, env=environment) as holder:
        try:
            assert holder.stdin
            assert holder.stdout
            assert holder.stderr
            with contextlib.suppress(BrokenPipeError):
                holder.stdin.write(b"ready\n")
            if holder.stdout.readline() != b"ready\n":
                said = holder.stderr.read().decode(errors="replace")
                raise subprocess.CalledProcessError(holder.wait(), words, stderr=said)
            yield holder.pid
        finally:
            holder.kill()
