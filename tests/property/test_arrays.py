"""Columns of numbers: what sorts them, and what cuts them into runs."""

from __future__ import annotations

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from eplb_cli.arrays import begins, ranges, runs, sort_numbers, stable_order

LIMITS = st.integers(1, 20) | st.integers(0, 62).map(lambda bits: 1 << bits)
"""Up to numbers beside which nothing else fits into a word."""


@st.composite
def numbers(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    """A column, often with equal numbers in it, and what all of them are below."""
    limit = draw(LIMITS)
    few = draw(st.lists(st.integers(0, limit - 1), min_size=1, max_size=5))
    column = draw(st.lists(st.sampled_from(few) | st.integers(0, limit - 1), max_size=40))
    return np.array(column, np.int64), limit


@given(numbers())
def test_numbers_are_sorted(given_):
    """However many bytes they take meanwhile."""
    column, limit = given_
    found = sort_numbers(column, limit)
    assert found.dtype == np.int64
    assert found.tolist() == sorted(column.tolist())


@example((np.array([1 << 59, 0, 0, 0]), 1 << 60))
@example((np.array([1 << 60, 0, 0, 0]), 1 << 61))
@given(numbers())
def test_equal_numbers_keep_their_order(given_):
    """As in numpy's stable argsort, also where places and numbers do not fit into one."""
    column, limit = given_
    assert stable_order(column, limit).tolist() == np.argsort(column, kind="stable").tolist()


@given(st.lists(st.integers(0, 2), max_size=30))
def test_runs_tile_a_column(column):
    """Each holds one number, and another than its neighbour."""
    column = np.array(column, np.int64)
    first, length = runs(begins(column))
    assert ranges(first, first + length).tolist() == list(range(len(column)))
    assert np.repeat(column[first], length).tolist() == column.tolist()
    assert (np.diff(column[first]) != 0).all()
