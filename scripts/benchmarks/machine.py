"""The lines above every table: what was run, on what, with which versions."""

from __future__ import annotations

import os
import platform
import re
import shlex
from importlib.metadata import version
from pathlib import Path

from eplb_cli import __version__
from scripts.benchmarks.timing import run

PACKAGES = ("numpy", "safetensors", "torch", "typer", "xxhash")


def heading(command: str, arguments: list[str], workdir: Path) -> str:
    """The command, the machine and the versions; nothing that tells one machine of a kind from another."""
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    copier = run(["cp", "--version"]).stdout.splitlines()[0].removeprefix("cp ")
    return (
        f"command:  {shlex.join(['scripts/bench', command, *arguments])}\n"
        f"machine:  {cpu_model()}, {len(os.sched_getaffinity(0))} cores, {memory_gib():.0f} GiB, "
        f"Linux {platform.release()}, {file_system(workdir)}\n"
        f"versions: eplb {__version__}, Python {platform.python_version()}, {packages}, cp {copier}"
    )


def cpu_model() -> str:
    """The processor, as the kernel calls it."""
    found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text("utf-8"), re.MULTILINE)
    return found[1] if found else platform.machine()


def memory_gib() -> float:
    """All memory of the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)


def file_system(path: Path) -> str:
    """The kind of file system that holds `path`."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text("utf-8").splitlines()]
    kinds = {Path(fields[1]): fields[2] for fields in mounts}
    place = path.resolve()
    return next(kinds[parent] for parent in (place, *place.parents) if parent in kinds)
