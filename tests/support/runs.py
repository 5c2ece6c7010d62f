"""The command line as a process, and what it may leave behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

TINY_BUFFERS = "tests.support.tiny_buffers"
SLOW_WRITES = "tests.support.slow_writes"
_GIVE_UP_S = 300.0
"""Only ends a test that would hang; no result depends on it."""


def command(*arguments: object, module: str = "eplb_cli") -> list[str]:
    """Words to run; `module` may be `TINY_BUFFERS` or `SLOW_WRITES`, other doors to the same command line."""
    return [sys.executable, "-m", module, *map(str, arguments)]


def run(*arguments: object, module: str = "eplb_cli") -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    words = command(*arguments, module=module)
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=_GIVE_UP_S)


def start(*arguments: object, module: str = "eplb_cli", group: bool = False) -> subprocess.Popen[str]:
    """Start a command, if wanted in a process group of its own."""
    return subprocess.Popen(
        command(*arguments, module=module),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        process_group=0 if group else None,
    )


def wait_until(holds: Callable[[], object], process: subprocess.Popen[str] | None = None) -> None:
    """Poll until something holds; fail where `process` ends before."""
    give_up = time.monotonic() + _GIVE_UP_S
    while not holds():
        if process is not None:
            assert process.poll() is None, process.communicate()
        assert time.monotonic() < give_up, "it never came to hold"
        time.sleep(0.02)


def processes_about(path: Path) -> list[str]:
    """Command lines of the processes, other than this one, that name `path`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            text = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(path) in text and int(process.name) != os.getpid():
            found.append(text)
    return found


def contents(path: Path) -> dict[str, bytes]:
    """Name to bytes of every file of a directory, which holds nothing else."""
    return {file.name: file.read_bytes() for file in sorted(path.iterdir())}
