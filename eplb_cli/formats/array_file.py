"""An array in a `.npy` file, never unpickled."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eplb_cli.formats.budget import NotReadableError

_HEADER_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def parse_array(data: bytes) -> NDArray[Any]:
    """The array in the content of a file, which keeps its bytes where they are.

    Raises:
        NotReadableError: it is none, holds objects, or claims more or less than the file has.
    """
    stream = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(stream)
        shape, is_fortran, dtype = _HEADER_READERS[version](stream)
    except Exception as error:  # numpy has many words for a damaged header
        raise NotReadableError(f"not an array: {str(error)[:200]}") from error
    if dtype.hasobject or not dtype.itemsize or any(type(size) is not int or size < 0 for size in shape):
        raise NotReadableError("not an array: it holds objects, or has no sizes")
    start, nbytes = stream.tell(), math.prod(shape) * dtype.itemsize
    if start + nbytes != len(data):
        raise NotReadableError(f"not an array: it claims {nbytes:,} bytes, and has {len(data) - start:,}")
    flat = np.frombuffer(data, dtype, offset=start) if nbytes else np.empty(0, dtype)
    try:
        return flat.reshape(shape, order="F" if is_fortran else "C")
    except ValueError as error:  # no bytes, and sizes that nobody can count
        raise NotReadableError(f"not an array: {error}") from error
