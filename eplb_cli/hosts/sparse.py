"""Arrays of which most rows are zero, in few bytes."""

from __future__ import annotations

import math
import zlib
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T", np.uint8, np.bool_)


def pack(values: NDArray[T]) -> bytes:
    """The rows (X, ...) that are not zero, of uint8 or bool: a mask of rows, compressed, and those rows."""
    rows = _rows(values)
    is_set = rows.any(axis=1)
    mask = zlib.compress(np.packbits(is_set).tobytes(), 1)
    return len(mask).to_bytes(8, "little") + mask + rows[is_set].tobytes()


def or_into(values: NDArray[T], packed: bytes) -> None:
    """Set the bits of `packed`, which has the shape of `values`. Raises ValueError where it has not."""
    rows = _rows(values)
    end = 8 + int.from_bytes(packed[:8], "little")
    mask_nbytes = -(-len(rows) // 8)
    try:
        mask = zlib.decompressobj().decompress(packed[8:end], mask_nbytes + 1)
    except zlib.error as error:
        raise ValueError("no mask of rows") from error
    if len(mask) != mask_nbytes:
        raise ValueError("a mask of another number of rows")
    where = np.flatnonzero(np.unpackbits(np.frombuffer(mask, np.uint8), count=len(rows)))
    told = np.frombuffer(packed, np.uint8, offset=end)
    if len(told) != len(where) * rows.shape[1]:
        raise ValueError("rows of another width")
    rows[where] |= told.reshape(len(where), rows.shape[1])


def _rows(values: NDArray[T]) -> NDArray[np.uint8]:
    """The same memory as bytes (X, bytes of a row)."""
    return values.view(np.uint8).reshape(len(values), math.prod(values.shape[1:]))
