"""Elastic expert parallelism: placements over ranks that come, go or change their number.

A mapping says what becomes of each old rank, -1 where it leaves. The names are those of vLLM's
`rebalance_execute`; unlike there, a mapping that loses or merges ranks is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral

import numpy as np
import torch
from numpy.typing import NDArray

from eplb_cli.errors import PlacementError
from eplb_cli.placements.placement import EMPTY


def mapped(
    old: NDArray[np.int64], new: NDArray[np.int64], rank_mapping: Mapping[int, int] | None, num_ranks: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Both (L, P) maps over the ranks of the group: with a mapping, one of them is expanded with -1.

    Raises:
        PlacementError: EP108, the slots do not divide over the mapped ranks; EP115.
    """
    if rank_mapping is None:
        return old, new
    mapping = _as_dict(rank_mapping)
    if len(mapping) == num_ranks:
        return old, _map_new_expert_indices_with_rank_mapping(torch.from_numpy(new), mapping).numpy()
    return _map_old_expert_indices_with_rank_mapping(torch.from_numpy(old), mapping, num_ranks).numpy(), new


def _map_old_expert_indices_with_rank_mapping(
    old_global_expert_indices: torch.Tensor, rank_mapping: dict[int, int], new_ep_size: int
) -> torch.Tensor:
    """Scale up: OLD over the new ranks, -1 where a rank is new; (L, old P) to (L, new P)."""
    rank_mapping = _as_dict(rank_mapping)
    stays = _injection(rank_mapping, new_ep_size)
    by_rank = _by_rank(old_global_expert_indices, len(rank_mapping))
    return _place_ranks(by_rank, list(stays), list(stays.values()), new_ep_size)


def _map_new_expert_indices_with_rank_mapping(
    new_global_expert_indices: torch.Tensor, rank_mapping: dict[int, int]
) -> torch.Tensor:
    """Scale down: NEW over the old ranks, -1 where a rank leaves; (L, new P) to (L, old P)."""
    rank_mapping = _as_dict(rank_mapping)
    new_ep_size = sum(new_rank != EMPTY for new_rank in rank_mapping.values())
    stays = _injection(rank_mapping, new_ep_size)
    by_rank = _by_rank(new_global_expert_indices, new_ep_size)
    return _place_ranks(by_rank, list(stays.values()), list(stays), len(rank_mapping))


def _as_dict(rank_mapping: object) -> dict[int, int]:
    """A mapping of integers. Raises EP115 where it is something else."""
    if not isinstance(rank_mapping, Mapping) or not all(
        isinstance(rank, Integral) for pair in rank_mapping.items() for rank in pair
    ):
        raise PlacementError("EP115", f"{rank_mapping!r} is no mapping of ranks, which are integers")
    return {int(old): int(new) for old, new in rank_mapping.items()}


def _by_rank(indices: torch.Tensor, num_ranks: int) -> torch.Tensor:
    """(L, R, S) of (L, P) indices; S may be 0.

    Raises:
        PlacementError: EP109, they are no indices; EP108, the slots do not divide.
    """
    if indices.dim() != 2:  # noqa: PLR2004 - (L, P)
        raise PlacementError("EP109", f"indices {list(indices.shape)} are not those of layers and slots")
    num_layers, num_slots = indices.shape
    if num_slots % num_ranks:
        raise PlacementError("EP108", f"{num_slots} slots do not divide over {num_ranks} mapped ranks")
    return indices.reshape(num_layers, num_ranks, num_slots // num_ranks)


def _injection(rank_mapping: dict[int, int], num_targets: int) -> dict[int, int]:
    """The ranks that stay, old to new.

    Raises:
        PlacementError: EP115, two old ranks become one, one becomes a rank that is not there, or the old
            ranks are not all that count from 0.
    """
    stays = {old: new for old, new in rank_mapping.items() if new != EMPTY}
    is_inside = set(stays.values()) <= set(range(num_targets)) and set(rank_mapping) == set(
        range(len(rank_mapping))
    )
    if not stays or not is_inside or len(set(stays.values())) != len(stays):
        raise PlacementError(
            "EP115",
            f"{rank_mapping} does not map ranks one to one to ranks 0 to {num_targets - 1}",
            "each new rank is the target of at most one old rank; -1 for a rank that leaves",
        )
    return stays


def _place_ranks(
    by_rank: torch.Tensor, sources: list[int], targets: list[int], num_ranks: int
) -> torch.Tensor:
    """Rank sources[i] of (L, R, S) becomes rank targets[i] of `num_ranks`; all other slots are empty."""
    num_layers, _, rows = by_rank.shape
    result = by_rank.new_full((num_layers, num_ranks, rows), EMPTY)
    result[:, targets] = by_rank[:, sources]
    return result.flatten(1)
