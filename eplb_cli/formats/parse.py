"""Files that hold placements or loads, as plain values: JSON, JSON lines, YAML, arrays and tensors.

A file is taken for what its suffix says, and for JSON where that says nothing. Whatever it is, it has been
checked for size and depth before anything is built from it.
"""

from __future__ import annotations

import io
from pathlib import PurePath
from typing import Any

from eplb_cli.formats.document import Document, NotReadableError
from eplb_cli.formats.json_text import JsonText, NotJsonError, parse_json

MAX_RECORDS = 100_000
"""Lines of a .jsonl file that are read."""


def parse_document(name: str, data: bytes) -> Document:
    """The value in the content of a file. Raises NotReadableError."""
    suffix = PurePath(name).suffix.lower()
    if suffix in {".pt", ".pth"}:
        from eplb_cli.formats.tensor_file import parse_tensors

        return Document(name, parse_tensors(data))
    if suffix == ".npy":
        return Document(name, _array(data))
    if suffix in {".yaml", ".yml"}:
        from eplb_cli.formats.yaml_text import parse_yaml

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
