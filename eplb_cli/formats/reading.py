"""Files from elsewhere as plain values: the way in for whoever knows what form a file has.

Each reader says how many bytes its file may have, and which error is its own: a function from the reason to
the error, with the file in it. A file that cannot be opened is EP201 or EP204.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eplb_cli import files
from eplb_cli.errors import CheckpointError, PlacementError
from eplb_cli.formats.budget import MAX_FILE_NBYTES, MAX_TOML_NBYTES, Fault, NotReadableError, refused
from eplb_cli.formats.json_text import parse_json

if TYPE_CHECKING:
    from numpy.typing import NDArray


def read_bytes(path: str, limit: int = MAX_FILE_NBYTES) -> bytes:
    """The content of a file that a user names, or of one that a link points at.

    Raises:
        PlacementError: EP101, it cannot be read, is no regular file, or is larger than `limit`.
    """
    try:
        return files.read_small_file(path, limit, follow_links=True)
    except CheckpointError as error:
        raise PlacementError("EP101", error.message, where=error.where) from error


def read_stdin(limit: int = MAX_FILE_NBYTES) -> bytes:
    """All that stdin has. Raises EP101 where it is closed, cannot be read, or has more than `limit` bytes."""
    try:
        content = b"" if sys.stdin is None else sys.stdin.buffer.read(limit + 1)
    except OSError as error:
        raise PlacementError("EP101", f"stdin cannot be read: {error.strerror}") from error
    if len(content) > limit:
        raise PlacementError("EP101", f"stdin has more than {limit:,} bytes, which are not read")
    return content


def read_json(path: Path, limit: int, fault: Fault) -> Any:  # noqa: ANN401 - JSON is anything
    """The value of a JSON file.

    Raises:
        EplbError: `fault`, it is not JSON, or more of it than is read; EP201, EP204 or EP220.
    """
    return json_value(files.read_small_file(path, limit), limit, fault)


def json_value(data: bytes, limit: int, fault: Fault, *, strict: bool = False) -> Any:  # noqa: ANN401 - as above
    """The value of a JSON text in which no object has a key twice; `strict` as `parse_json` has it.

    Raises:
        EplbError: `fault`.
    """
    with refused(fault):
        text = parse_json(data, limit, strict=strict)
        if text.repeated_keys:
            raise NotReadableError(f"{text.repeated_keys[0]!r} is more than once in one object")
        return text.value


def read_toml(path: Path, fault: Fault) -> dict[str, Any]:
    """The table of a TOML file. Raises as `read_json`."""
    return toml_value(files.read_small_file(path, MAX_TOML_NBYTES), fault)


def toml_value(data: bytes, fault: Fault) -> dict[str, Any]:
    """The table of a TOML text. Raises `fault`."""
    from eplb_cli.formats.toml_text import parse_toml

    with refused(fault):
        return parse_toml(data)


def npy_value(data: bytes, fault: Fault) -> NDArray[Any]:
    """The array of a `.npy` file. Raises `fault`."""
    from eplb_cli.formats.array_file import parse_array

    with refused(fault):
        return parse_array(data)
