"""What this machine has: cores, memory, devices, packages; the defaults that follow from it."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from eplb_cli.errors import UsageError

MIN_BUFFER_NBYTES = 64 << 20
MAX_BUFFER_NBYTES = 1 << 30
"""Bounds of the default `--buffer-size`; the lower one is that of gloo's best messages."""

MAX_WRITERS = 16
"""Threads of all workers beyond which files are not written faster, however many they are."""
WRITERS_A_FILE = 2
"""Threads for each file: the kernel lets one at a time write to it, while the other reads and hashes."""
MAX_WORKERS_OF_A_HOST = 2
MAX_READERS = 16
"""Threads of all workers beyond which files that are in memory are not read and hashed faster."""

_INSTALLED_AS = {"plotly": "'.[html]'", "yaml": "pyyaml"}
"""What pip calls a package, where that is not its name; eplb itself is on no index, but in its directory."""

_SAMPLE_S = 0.02
_MOUNTS = Path("/proc/self/mountinfo")
_DEVICE, _MOUNT_POINT = 2, 4
"""Which words of a line of `_MOUNTS` are the device and the directory; blanks in it are octal numbers."""
_IN_MEMORY = {b"tmpfs", b"ramfs"}
"""The file systems that fill with zeros what they allocate, a page after the other."""
_CGROUP = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")


def count_cores() -> int:
    """Cores that this process may use: where it may run, and no more than its control groups have."""
    return max(1, min([len(os.sched_getaffinity(0)), *map(math.ceil, _shares_of_cores())]))


def _shares_of_cores() -> Iterator[float]:
    """The limits of all control groups that this process is in, in both versions of control groups."""
    for group in _control_groups():
        with contextlib.suppress(OSError, ValueError):
            quota, period = (group / "cpu.max").read_text().split()
            yield int(quota) / int(period)  # a quota of "max" is no number
        with contextlib.suppress(OSError, ValueError):
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
            if int(quota) > 0:
                yield int(quota) / int(period)


def _control_groups() -> Iterator[Path]:
    """The directories of the control groups that this process is in, and of those that these are in."""
    with contextlib.suppress(OSError):
        for line in _OWN_CGROUPS.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            root = _CGROUP / controllers
            own = root / path.lstrip("/")
            yield from (own, *itertools.takewhile(root.__ne__, own.parents), root)


def host_identity() -> str:
    """What is the same for processes of one user that see each other: the kernel's start, and its processes.

    Raises:
        OSError: /proc does not say.
    """
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot} {Path('/proc/self/ns/pid').readlink()} {os.getuid()}"


def count_devices() -> int:
    """CUDA devices of this machine, told without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        named = [device.strip() for device in visible.split(",")]
        return len(list(itertools.takewhile(lambda device: device and not device.startswith("-"), named)))
    return len([path for path in Path("/dev").glob("nvidia*") if path.name[6:].isdigit()])


def has_package(name: str) -> bool:
    """Whether a package is installed, told without importing it; a bare directory of its name is none."""
    from importlib.util import find_spec

    spec = find_spec(name)
    return spec is not None and spec.has_location


def missing_package(name: str, needed_for: str, hint: str = "", why: str = "is not installed") -> UsageError:
    """EP002, for a package that cannot be had.

    Args:
        name: what is imported.
        needed_for: what cannot be done without it, as the subject of a sentence.
        hint: what else can be done, where there is something.
    """
    install = f"`pip install {_INSTALLED_AS.get(name, name)}`"
    problem = f"{needed_for} needs {name}, which {why}"
    return UsageError("EP002", problem, f"{install}, or {hint}" if hint else install)


def not_imported(error: ImportError | OSError, name: str, needed_for: str, hint: str = "") -> UsageError:
    """EP002, for a package whose import ended with `error`: it is missing, damaged, or needs one that is."""
    if isinstance(error, ModuleNotFoundError):
        return missing_package((error.name or name).partition(".")[0], needed_for, hint)
    first_line = str(error).partition("\n")[0][:200]
    return missing_package(name, needed_for, hint, f"cannot be imported: {first_line}")


@contextlib.contextmanager
def needed(name: str, needed_for: str, hint: str = "") -> Iterator[None]:
    """A block that imports a package and does nothing else. Raises UsageError as `not_imported` has it."""
    try:
        yield
    except (ImportError, OSError) as error:  # a library of torch's that cannot be loaded is an OSError
        raise not_imported(error, name, needed_for, hint) from error


def writing_threads(num_workers: int, num_files: int) -> int:
    """Threads of one worker that copy to files: its share of as many as pay, two at least.

    Args:
        num_files: that all workers write.
    """
    return _share_of(min(MAX_WRITERS, WRITERS_A_FILE * num_files), num_workers)


def reading_threads(num_workers: int) -> int:
    """Threads of one worker that only read files and hash them: its share of as many as pay, two at least."""
    return _share_of(MAX_READERS, num_workers)


def workers_of_a_host() -> int:
    """Workers of one of several hosts that exchange by gloo, each through connections of its own.

    A second one takes a third off the time, and half a GB; two more a quarter of the rest (docs/scale.md).
    """
    return min(MAX_WORKERS_OF_A_HOST, max(count_cores() // 8, 1))


def _share_of(most: int, num_workers: int) -> int:
    return max(2, min(count_cores(), most) // num_workers)


def default_buffer_nbytes(largest_chunk_nbytes: int, num_workers: int) -> int:
    """All send and receive buffers of a worker: four chunks, and an eighth of the memory for all workers."""
    most = min(MAX_BUFFER_NBYTES, max(available_memory_nbytes() // (8 * num_workers), MIN_BUFFER_NBYTES))
    return min(max(4 * largest_chunk_nbytes, MIN_BUFFER_NBYTES), most)


def available_memory_nbytes() -> int:
    """Memory that can be had without swapping: of the machine, or of the control group if that is less."""
    found = _kilobytes(Path("/proc/meminfo"), "MemAvailable")
    with contextlib.suppress(OSError, ValueError):
        limit = int((_CGROUP / "memory.max").read_text())
        found = min(found, max(limit - int((_CGROUP / "memory.current").read_text()), 0))
    return found


class Process(NamedTuple):
    """A process as /proc has it: its number, its parent's, and when it began, in ticks since the boot.

    A number is given to another process in time; the number together with the beginning is not.
    """

    pid: int
    parent: int
    start: int


def find_process(pid: int | Literal["self"]) -> Process | None:
    """The process of a number, None where there is none, or where it has ended and was not waited for."""
    try:
        before, _, after = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")  # a name may have any byte
        state, parent, *more = after.split()
        found = Process(int(before.split()[0]), int(parent), int(more[17]))
    except (OSError, ValueError, IndexError):
        return None
    return None if state in {b"Z", b"X"} else found


def _kilobytes(path: Path, name: str) -> int:
    """The line `name` of a file under /proc, in bytes; 0 where there is none."""
    with contextlib.suppress(OSError, ValueError, IndexError), path.open() as lines:
        for line in lines:
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) << 10
    return 0


class PeakMemory:
    """The most anonymous memory of this process, which the kernel does not keep: seen every 20 ms."""

    def __init__(self) -> None:
        self.nbytes = 0
        self._ended = threading.Event()

    @contextlib.contextmanager
    def watched(self) -> Iterator[PeakMemory]:
        """Watch while the block runs."""
        thread = threading.Thread(target=self._watch, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._ended.set()
            thread.join()

    def _watch(self) -> None:
        while True:
            self.nbytes = max(self.nbytes, _kilobytes(Path("/proc/self/status"), "RssAnon"))
            if self._ended.wait(_SAMPLE_S):
                return


def is_in_memory(path: Path) -> bool:
    """Whether a file system keeps its files in memory and nowhere else; False where that cannot be told."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        number = path.stat().st_dev
        device = f"{os.major(number)}:{os.minor(number)}".encode()
        for line in _MOUNTS.read_bytes().splitlines():
            before, _, after = line.partition(b" - ")
            if before.split()[_DEVICE] == device:
                return after.split()[0] in _IN_MEMORY
    return False


def is_mount_point(path: Path) -> bool:
    """Whether something is mounted there, be it a directory of the same file system."""
    if os.path.ismount(path):
        return True
    with contextlib.suppress(OSError):
        words = (line.split()[_MOUNT_POINT] for line in _MOUNTS.read_bytes().splitlines())
        return os.fsencode(path) in {re.sub(rb"\\([0-7]{3})", _character, word) for word in words}
    return False


def _character(octal: re.Match[bytes]) -> bytes:
    return bytes([int(octal[1], 8)])
