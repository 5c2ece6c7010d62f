"""What follows from a map: the slots of each expert, and how many they are."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from eplb_cli.placements.dialects.dialect import not_this

COUNTS = {"logcnt", "logical_replica_count", "logical_to_all_physical_map_num_valid"}
"""What DeepSeek, vLLM and SGLang call (L, E): how many slots each expert has."""

SLOTS = {"log2phy", "logical_to_physical_map", "logical_to_all_physical_map"}
"""What they call (L, E, max): the slots of each expert, -1 at the end."""


def compare_inverses(name: str, key: str, rows: object, said: Mapping[str, object]) -> int:
    """E, as arrays beside the map say it that have to be its inverses.

    Args:
        key: of the map in the file.
        rows: the map.
        said: at least one of the keys in `COUNTS` and `SLOTS`, and its array.

    Raises:
        PlacementError: EP103, one of them is no array of integers, or does not follow from the map.
    """
    try:
        table = _integers(rows)
        arrays = {key: _integers(value) for key, value in said.items()}
    except (ValueError, TypeError, OverflowError) as error:
        raise not_this(name, "one of its arrays is none of integers") from error
    num_experts = next(iter(arrays.values())).shape[1] if all(a.ndim > 1 for a in arrays.values()) else 0
    if table.ndim != 2 or not num_experts or not 0 <= table.min() <= table.max() < num_experts:  # noqa: PLR2004
        raise not_this(name, f"{key} does not number the experts that the other arrays count")
    slots, counts = inverse(table, num_experts)
    for other, array in arrays.items():
        if not _agree(array, counts if other in COUNTS else slots):
            problem = f"{other} is not what follows from {key}"
            raise not_this(name, problem, "one of them is wrong: mend it, or delete the key")
    return num_experts


def _integers(value: object) -> NDArray[np.int64]:
    """Lists of integers as an array. Raises ValueError or TypeError for anything else."""
    array = np.array(value)
    if array.dtype.kind != "i":
        raise TypeError(f"an array of {array.dtype}")
    return array.astype(np.int64)


def _agree(said: NDArray[np.int64], expected: NDArray[np.int64]) -> bool:
    """Whether both list the same slots of each expert, in any order and with any padding."""
    if expected.ndim == 2:  # noqa: PLR2004
        return np.array_equal(said, expected)
    if said.ndim != 3 or said.shape[:2] != expected.shape[:2] or said.shape[2] < expected.shape[2]:  # noqa: PLR2004
        return False
    padding = ((0, 0), (0, 0), (said.shape[2] - expected.shape[2], 0))
    return np.array_equal(np.sort(said), np.sort(np.pad(expected, padding, constant_values=-1)))


def inverse(table: NDArray[np.int64], num_experts: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The slots (L, E, max), padded with -1, and the counts (L, E) of a map (L, P) without empty slots."""
    num_layers, num_slots = table.shape
    key = (np.arange(num_layers)[:, None] * num_experts + table).ravel()
    counts = np.bincount(key, minlength=num_layers * num_experts)
    order = np.argsort(key, kind="stable")
    within = np.arange(key.size) - np.repeat(np.cumsum(counts) - counts, counts)
    slots = np.full((num_layers * num_experts, counts.max(initial=1)), -1)
    slots[key[order], within] = order % num_slots
    return slots.reshape(num_layers, num_experts, -1), counts.reshape(num_layers, num_experts)
