"""Numbers that are different, without numpy.ma."""

from __future__ import annotations

import numpy as np
import pytest

from eplb_cli.arrays import distinct, without

NUMBERS = [[], [3], [2, 2], [5, 1, 5, 0, 1], [[7, 7], [0, 7]]]


@pytest.mark.parametrize("numbers", NUMBERS)
def test_distinct(numbers):
    """As np.unique says."""
    values = np.array(numbers, np.int64)
    assert distinct(values).tolist() == np.unique(values).tolist()
    assert distinct(values).dtype == np.int64


@pytest.mark.parametrize("numbers", NUMBERS)
@pytest.mark.parametrize("taken", NUMBERS[:4])
def test_without(numbers, taken):
    """As np.setdiff1d says."""
    values, less = np.array(numbers, np.int64), np.array(taken, np.int64)
    assert without(values, less).tolist() == np.setdiff1d(values, less).tolist()
