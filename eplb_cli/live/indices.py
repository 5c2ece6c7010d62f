"""Indices as a caller gives them: which expert is in each slot, before and after."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from eplb_cli.arrays import Int
from eplb_cli.errors import PlacementError
from eplb_cli.live.rank_mapping import mapped
from eplb_cli.live.tensors import why_not
from eplb_cli.models.model import MAX_EXPERTS
from eplb_cli.placements.placement import EMPTY

Indices = torch.Tensor | NDArray[np.integer]


def as_array(indices: Indices) -> Int:
    """A copy of indices of any type of integers, in host memory.

    Raises:
        PlacementError: EP104, they are no integers, or cannot be read.
    """
    if isinstance(indices, torch.Tensor):
        kind = indices.dtype
        if reason := why_not(indices):
            raise PlacementError("EP104", f"a tensor of indices {reason}")
        if kind.is_floating_point or kind.is_complex or kind is torch.bool:
            raise PlacementError("EP104", f"indices are of {kind}, not integers")
        indices = indices.detach().cpu().numpy()
    try:
        array = np.asarray(indices)
    except (TypeError, ValueError) as error:
        raise PlacementError("EP104", f"indices are no array: {error}") from error
    if array.dtype.kind not in "iu":
        raise PlacementError("EP104", f"indices are of {array.dtype}, not integers")
    if array.dtype.kind == "u":
        array = np.minimum(array.astype(np.uint64), np.uint64(np.iinfo(np.int64).max))
    return array.astype(np.int64)


def over_group(
    old: Int, new: Int, num_layers: int, num_ranks: int, rank_mapping: Mapping[int, int] | None
) -> tuple[Int, Int]:
    """Both (L, P) tables over the ranks of the group, each a placement of as many rows a rank.

    Raises:
        PlacementError: EP105, an expert id that is none; EP108, the slots do not divide over the ranks;
            EP109, tables and layers do not fit; EP115, the mapping is no partial injection.
    """
    if old.ndim == new.ndim == 2:  # noqa: PLR2004 - (L, P)
        old, new = mapped(old, new, rank_mapping, num_ranks)
    if old.ndim != 2 or old.shape != new.shape or len(old) != num_layers:  # noqa: PLR2004
        raise PlacementError(
            "EP109",
            f"old indices {old.shape}, new indices {new.shape} and {num_layers} layers do not fit",
        )
    if old.shape[1] % num_ranks:
        raise PlacementError("EP108", f"{old.shape[1]} slots do not divide over {num_ranks} ranks")
    for name, table in (("old", old), ("new", new)):
        _check_experts(name, table)
    return old, new


def _check_experts(name: str, table: Int) -> None:
    wrong = np.argwhere((table < EMPTY) | (table >= MAX_EXPERTS))
    if len(wrong):
        layer, slot = wrong[0].tolist()
        raise PlacementError(
            "EP105", f"{name}: layer {layer}, slot {slot}: {table[layer, slot]} is no expert"
        )
