"""Columns of numbers: their types, exact sums by group, and ranges one after the other."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Digests = NDArray[np.uint8]
Int = NDArray[np.int64]

MAX_BITS = 63
"""Of a number that is not negative."""


def sum_by(group: Int, values: Int, size: int) -> Int:
    """Exact sums by group: `bincount` with weights would go through float64."""
    result = np.zeros(size, np.int64)
    np.add.at(result, group, values)
    return result


def begins(column: Int) -> NDArray[np.bool_]:
    """(N,) whether each number is another than the one before it."""
    result = np.ones(len(column), np.bool_)
    np.not_equal(column[1:], column[:-1], out=result[1:])
    return result


def runs(is_first: NDArray[np.bool_]) -> tuple[Int, Int]:
    """Where runs begin and how long each of them is, from what marks the first of each; the first is one."""
    first = np.flatnonzero(is_first)
    length = np.empty_like(first)
    np.subtract(first[1:], first[:-1], out=length[:-1])
    length[-1:] = len(is_first) - first[-1:]
    return first, length


def sort_numbers(numbers: Int, limit: int) -> Int:
    """(N,) numbers from 0 to `limit` - 1, sorted: in half as many bytes, and time, where they fit."""
    if limit > np.iinfo(np.int32).max:
        return np.sort(numbers)
    return np.sort(numbers.astype(np.int32)).astype(np.int64)


def stable_order(key: Int, limit: int) -> Int:
    """(N,) where the smallest key is, then the next: a stable argsort of numbers from 0 to `limit` - 1.

    Numbers are sorted several times as fast as places, so both are packed into one where there is room.
    """
    bits = len(key).bit_length()
    if limit.bit_length() + bits > MAX_BITS:
        return np.argsort(key, kind="stable")
    packed = sort_numbers((key << bits) | np.arange(len(key)), limit << bits)
    return packed & ((1 << bits) - 1)


def distinct(values: Int) -> Int:
    """The different numbers, ascending. `np.unique` without indices imports numpy.ma, 15 ms for nothing."""
    ordered = np.sort(values, axis=None)
    different: Int = ordered[begins(ordered)]
    return different


def without(values: Int, taken: Int) -> Int:
    """The different numbers of `values` that are not in `taken`, ascending; none is large."""
    wanted = distinct(values)
    return wanted[~np.isin(wanted, taken, kind="table")]


def ranges(begin: Int, end: Int) -> Int:
    """The numbers of several ranges, one after the other."""
    lengths = end - begin
    numbers: Int = np.arange(lengths.sum()) + np.repeat(begin - np.cumsum(lengths) + lengths, lengths)
    return numbers
