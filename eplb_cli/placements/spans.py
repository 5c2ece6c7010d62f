"""Many numbers in few words, as options take them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise


def spans(numbers: Sequence[int]) -> str:
    """Ascending numbers, runs of them by their ends: `0,3-60`."""
    starts = [i for i, number in enumerate(numbers) if i == 0 or number != numbers[i - 1] + 1]
    runs = [(numbers[first], numbers[end - 1]) for first, end in pairwise([*starts, len(numbers)])]
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
