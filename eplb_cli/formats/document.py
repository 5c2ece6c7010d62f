"""Files of strangers: what is read of them, and how much."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from eplb_cli import files
from eplb_cli.errors import PlacementError
from eplb_cli.formats.json_text import JsonText

MAX_FILE_NBYTES = 64 << 20
"""Larger files are not read: ten bytes for each of the values that `parse_json` takes are enough."""


@dataclass(frozen=True)
class Document:
    """A file and what it says.

    Attributes:
        value: objects, lists, numbers and strings as Python has them; tensors as arrays.
        json_text: where it is one JSON text, with the lines of its values.
    """

    name: str
    value: Any
    json_text: JsonText | None = None


class NotReadableError(Exception):
    """A file is not what its suffix says; `line` counts from 1."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.line = line


def read_bytes(path: str) -> bytes:
    """The content of a regular file, or of one that a link points at; pipes and devices are not read.

    Raises:
        PlacementError: EP101.
    """
    with _reading(path):
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        descriptor = files.attempt("open", os.open, path, flags)
    with files.closing(descriptor):
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise PlacementError("EP101", f"{path} is no regular file")
        if status.st_size > MAX_FILE_NBYTES:
            problem = f"has {status.st_size:,} bytes; more than {MAX_FILE_NBYTES:,} are not read"
            raise PlacementError("EP101", f"{path} {problem}")
        with _reading(path), open(descriptor, "rb", closefd=False) as stream:
            return files.attempt("read", stream.read, status.st_size)


@contextlib.contextmanager
def _reading(path: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise PlacementError("EP101", f"{path} cannot be read: {reason}") from error
