"""A directory in memory for trees that live for a moment."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

_MEMORY = Path("/dev/shm")


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A fresh directory, on a file system in memory where there is one."""
    where = _MEMORY if os.access(_MEMORY, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="eplb-test-", dir=where) as name:
        yield Path(name)
