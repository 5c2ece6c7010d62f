"""Columns of numbers: their types, exact sums by group, and ranges one after the other."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Digests = NDArray[np.uint8]
Int = NDArray[np.int64]


def sum_by(group: Int, values: Int, size: int) -> Int:
    """Exact sums by group: `bincount` with weights would go through float64."""
    result = np.zeros(size, np.int64)
    np.add.at(result, group, values)
    return result


def ranges(begin: Int, end: Int) -> Int:
    """The numbers of several ranges, one after the other."""
    lengths = end - begin
    numbers: Int = np.arange(lengths.sum()) + np.repeat(begin - np.cumsum(lengths) + lengths, lengths)
    return numbers
