"""Tensors of integers in a small safetensors file, as arrays."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eplb_cli import files
from eplb_cli.errors import CheckpointError
from eplb_cli.formats.budget import MAX_FILE_NBYTES
from eplb_cli.formats.safetensors_header import parse_header

_TYPES = {
    "U8": "<u1",
    "I8": "<i1",
    "I16": "<i2",
    "U16": "<u2",
    "I32": "<i4",
    "U32": "<u4",
    "I64": "<i8",
    "U64": "<u8",
}


def read_integers(path: Path, limit: int = MAX_FILE_NBYTES) -> dict[str, NDArray[Any]]:
    """All tensors of a file by name, each a view of its bytes.

    Args:
        limit: bytes that the file may have.

    Raises:
        CheckpointError: EP203, it is no safetensors file, or has tensors of no integers; EP201, it cannot be
            read or is larger than `limit`; EP204.
    """
    data = files.read_small_file(path, limit)
    length = int.from_bytes(data[:8], "little")
    header = parse_header(data[8 : 8 + length], len(data) - 8 - length, path)
    arrays = {}
    for name, entry in header.tensors.items():
        if entry.dtype not in _TYPES:
            raise CheckpointError("EP203", f"{path}: {name[:80]!r} is of {entry.dtype}, which is no integer")
        start, count = header.data_start + entry.begin, math.prod(entry.shape)
        arrays[name] = np.frombuffer(data, _TYPES[entry.dtype], count, start if count else 0).reshape(
            entry.shape
        )
    return arrays
