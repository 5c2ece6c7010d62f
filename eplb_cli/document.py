"""Files that hold placements or loads, as plain values: JSON, JSON lines, YAML, and tensors.

A file is taken for what its suffix says, and for JSON where that says nothing. Whatever it is, it has been
checked for size and depth before anything is built from it.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from eplb_cli import files
from eplb_cli.errors import PlacementError
from eplb_cli.json_text import JsonText, NotJsonError, parse_json

MAX_FILE_NBYTES = 64 << 20
"""Larger files are not read: ten bytes for each of the values that `parse_json` takes are enough."""

MAX_RECORDS = 100_000
"""Lines of a .jsonl file that are read."""


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


def parse_document(name: str, data: bytes) -> Document:
    """The value in the content of a file. Raises NotReadableError."""
    suffix = PurePath(name).suffix.lower()
    if suffix in {".pt", ".pth"}:
        from eplb_cli.tensor_file import parse_tensors

        return Document(name, parse_tensors(data))
    if suffix == ".npy":
        return Document(name, _array(data))
    if suffix in {".yaml", ".yml"}:
        from eplb_cli.yaml_text import parse_yaml

        return Document(name, parse_yaml(data))
    if suffix == ".jsonl":
        return Document(name, _json_lines(data))
    text = _json(data)
    return Document(name, text.value, text)


def _json(data: bytes, line: int | None = None) -> JsonText:
    try:
        return parse_json(data)
    except NotJsonError as error:
        raise NotReadableError(error.message, error.line if line is None else line) from error


def _json_lines(data: bytes) -> list[Any]:
    """The value of each line that is not empty. A record has each of its keys once."""
    lines = data.split(b"\n")
    if len(lines) > MAX_RECORDS:
        raise NotReadableError(f"more than {MAX_RECORDS:,} lines are not read")
    values = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            text = _json(line, number)
            if text.repeated_keys:
                problem = f"more than once in one object: {text.repeated_keys[0]!r}"
                raise NotReadableError(problem, number)
            values.append(text.value)
    return values


def _array(data: bytes) -> Any:  # noqa: ANN401 - an array of any kind
    """The array in a .npy file, never unpickled. Its header cannot claim more than the file holds."""
    import numpy as np

    try:
        return np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # numpy has many words for a damaged file
        raise NotReadableError(f"not an array: {str(error)[:200]}") from error


def read_bytes(path: str) -> bytes:
    """The content of a regular file, or of one that a link points at; pipes and devices are not read.

    Raises:
        PlacementError: EP101.
    """
    with _reading(path):
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        descriptor = files.attempt("open", os.open, path, flags)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise PlacementError("EP101", f"{path} is no regular file")
        if status.st_size > MAX_FILE_NBYTES:
            problem = f"has {status.st_size:,} bytes; more than {MAX_FILE_NBYTES:,} are not read"
            raise PlacementError("EP101", f"{path} {problem}")
        with _reading(path), open(descriptor, "rb", closefd=False) as stream:
            return files.attempt("read", stream.read, status.st_size)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _reading(path: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise PlacementError("EP101", f"{path} cannot be read: {reason}") from error
