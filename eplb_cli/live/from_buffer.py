"""The second half of a transfer by way of buffers: from the buffers to the weights, on one rank alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from eplb_cli.arrays import Int
from eplb_cli.errors import CheckpointError, PlacementError
from eplb_cli.live.buffers import RecvMetadata
from eplb_cli.live.copies import Copies, make_mover
from eplb_cli.live.indices import as_array
from eplb_cli.live.tensors import check_apart, check_buffers, check_rows, read_buffers, read_layers


def move_from_buffer(
    expert_weights: Iterable[torch.Tensor],
    expert_weights_buffers: Sequence[torch.Tensor],
    is_unchanged: NDArray[np.bool_],
    is_received_locally: NDArray[np.bool_],
    recv_metadata: RecvMetadata,
    new_indices: NDArray[np.integer],
    ep_group: dist.ProcessGroup,
) -> None:
    """Copy what `move_to_buffer` has put into the buffers to the weights, and repeat it where needed.

    Waits for no other rank.

    Args:
        expert_weights: the layer's tensors of (S, ...) rows.
        expert_weights_buffers: the buffers that `move_to_buffer` or `transfer_layer` was given.
        is_unchanged: (S,) bool, the first of its results.
        is_received_locally: (S,) bool, the second.
        recv_metadata: the third.
        new_indices: (P,) integers, the expert in each slot of the group afterwards.
        ep_group: the group that it was given.

    Raises:
        EplbError: on this rank, before anything is copied: as `move_to_buffer` for tensors and indices,
            and EP222 for what it has not returned for them.
    """
    met: list[torch.Tensor] = []
    (weights,), buffers = read_layers([expert_weights], met), read_buffers(expert_weights_buffers, met)
    num_rows = len(is_unchanged)
    check_rows([weights], num_rows)
    check_buffers(weights, buffers)
    check_apart([weights], buffers)
    experts = _experts_of(as_array(new_indices), num_rows, ep_group)
    _check_received(num_rows, is_unchanged, is_received_locally, recv_metadata)
    from_buffer = np.flatnonzero(~is_unchanged & (is_received_locally | recv_metadata.recv_primary_mask))
    received = recv_metadata.recv_expert_ids[: recv_metadata.recv_count]
    again = np.flatnonzero(
        ~is_unchanged & ~is_received_locally & ~recv_metadata.recv_primary_mask & np.isin(experts, received)
    )
    primary = recv_metadata.recv_dst_rows[np.searchsorted(received, experts[again])]
    if weights:
        copied = [
            _row_copies(buffer, from_buffer, weight, from_buffer, 0)
            for weight, buffer in zip(weights, buffers, strict=False)
        ]
        repeated = [_row_copies(weight, primary, weight, again, 1) for weight in weights]
        columns = (np.concatenate(column) for column in zip(*copied, *repeated, strict=True))
        mover = make_mover(Copies(*columns), weights[0].device)
        mover.run(0)
        mover.run(1)


def _experts_of(new: Int, num_rows: int, group: dist.ProcessGroup) -> Int:
    """(S,) the experts of this rank."""
    if new.shape != (num_rows * group.size(),):
        raise PlacementError(
            "EP109",
            f"new indices {new.shape} are not those of {num_rows} rows on each of {group.size()} ranks",
        )
    first = group.rank() * num_rows
    return new[first : first + num_rows]


def _check_received(
    num_rows: int, is_unchanged: NDArray[np.bool_], is_local: NDArray[np.bool_], received: RecvMetadata
) -> None:
    """Refuse masks and rows that are not those of (num_rows, ...) tensors."""
    masks: tuple[object, ...] = (is_unchanged, is_local, received.recv_primary_mask)
    rows: tuple[object, ...] = (received.recv_expert_ids, received.recv_dst_rows)
    count = received.recv_count
    fits = (
        all(_is_column(mask, "b", num_rows) for mask in masks)
        and all(_is_column(row, "i", num_rows) for row in rows)
        and 0 <= count <= num_rows
        and bool(np.all(np.diff(received.recv_expert_ids[:count]) > 0))
        and bool(np.all((received.recv_dst_rows[:count] >= 0) & (received.recv_dst_rows[:count] < num_rows)))
    )
    if not fits:
        raise CheckpointError(
            "EP222",
            f"masks and received rows are not those of {num_rows} rows",
            "pass what `move_to_buffer` has returned for this layer",
        )


def _is_column(array: object, kind: str, num_rows: int) -> bool:
    return isinstance(array, np.ndarray) and array.dtype.kind == kind and array.shape == (num_rows,)


def _row_copies(
    source: torch.Tensor,
    source_rows: NDArray[np.integer],
    target: torch.Tensor,
    target_rows: NDArray[np.integer],
    step: int,
) -> tuple[Int, Int, Int, Int]:
    """Columns of `Copies` for `target[target_rows] = source[source_rows]`."""
    origin, goal = (
        tensor.data_ptr() + rows.astype(np.int64) * tensor.stride(0) * tensor.element_size()
        for tensor, rows in ((source, source_rows), (target, target_rows))
    )
    nbytes = target.numel() // max(target.shape[0], 1) * target.element_size()
    return np.full(len(origin), step), origin, goal, np.full(len(origin), nbytes)
