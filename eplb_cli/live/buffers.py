"""One layer by way of buffers, with the names and results of vLLM's `move_to_buffer`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from eplb_cli.arrays import Int
from eplb_cli.errors import PlacementError
from eplb_cli.live.agreement import DEFAULT_BUFFER_NBYTES, Ready, connected, plan_between, same_of
from eplb_cli.live.connection import Connection
from eplb_cli.live.indices import as_array
from eplb_cli.live.plan import LivePlan, plan_live
from eplb_cli.live.room import chunk_room
from eplb_cli.live.rows import LiveRows
from eplb_cli.live.tensors import Layers, read_buffers, read_layers, row_nbytes
from eplb_cli.placements.placement import EMPTY
from eplb_cli.plan.moves import ReshardPlan


@dataclass
class RecvMetadata:
    """What a rank receives from others in one layer.

    Attributes:
        recv_primary_mask: (S,) bool, True for the row that a received expert lands in.
        recv_count: number of experts received.
        recv_expert_ids: (S,) int64, the experts received, ascending, then -1.
        recv_dst_rows: (S,) int32, the rows they land in, then -1.
    """

    recv_primary_mask: NDArray[np.bool_]
    recv_count: int
    recv_expert_ids: NDArray[np.int64]
    recv_dst_rows: NDArray[np.int32]


MoveToBufferResult = tuple[NDArray[np.bool_], NDArray[np.bool_], RecvMetadata]
"""(rows that stay as they are, rows whose expert the rank had already, what it receives)."""


def move_to_buffer(
    num_local_experts: int,
    old_indices: NDArray[np.integer],
    new_indices: NDArray[np.integer],
    expert_weights: Iterable[torch.Tensor],
    expert_weights_buffers: Sequence[torch.Tensor],
    cuda_stream: torch.cuda.Stream | None,
    ep_group: dist.ProcessGroup,
) -> MoveToBufferResult:
    """Put the rows that change, from this rank or another, into the buffers' rows of the same number.

    Args:
        num_local_experts: S, which the indices and the group say too.
        old_indices: (P,) integers, the expert in each slot before, -1 for none.
        new_indices: (P,) integers, the expert in each slot afterwards.
        expert_weights: the layer's tensors of (S, ...) rows; only read.
        expert_weights_buffers: a tensor for each of them, of the same shape and dtype; buffers beyond the
            weights stay as they are.
        cuda_stream: if given, everything is in its order, after what is on the current stream.
        ep_group: any group whose ranks hold S = P / size rows each.

    Returns:
        (S,) rows that stay as they are; (S,) rows whose expert the rank had already; what it receives.

    Raises:
        EplbError: as `Rearrangement`, on all ranks alike, before anything is moved; EP222 for buffers too.
    """

    def choose() -> OneLayer:
        old, new = as_array(old_indices)[None], as_array(new_indices)[None]
        if num_local_experts * ep_group.size() != old.shape[1]:
            raise PlacementError(
                "EP108",
                f"{num_local_experts} rows on each of {ep_group.size()} ranks are not {old.shape[1]} slots",
            )
        return OneLayer("one layer", old, new, expert_weights)

    return layer_to_buffer(choose, expert_weights_buffers, cuda_stream, ep_group, None)


class OneLayer(NamedTuple):
    """One layer of what a caller passes: what it is called, (1, P) indices, and its weights."""

    name: str
    old: Int
    new: Int
    weights: Iterable[torch.Tensor]


def layer_to_buffer(
    choose: Callable[[], OneLayer],
    buffers: Sequence[torch.Tensor],
    stream: torch.cuda.Stream | None,
    group: dist.ProcessGroup,
    rank_mapping: Mapping[int, int] | None,
) -> MoveToBufferResult:
    """Exchange one layer from its weights into buffers of the same shape.

    Args:
        choose: called once, where an error of it becomes one of all ranks.
    """

    def prepare(met: list[torch.Tensor]) -> Ready[tuple[ReshardPlan, LivePlan, Layers, Layers]]:
        if stream is not None and not isinstance(stream, torch.cuda.Stream):
            raise TypeError(f"a stream of type {type(stream).__name__}")
        name, old, new, given = choose()
        weights, targets = read_layers([given], met), read_buffers(buffers, met)
        plan = plan_between(old, new, weights, group, buffers=targets, rank_mapping=rank_mapping)
        sizes = row_nbytes(weights)
        live = plan_live(plan, sizes, group.rank(), DEFAULT_BUFFER_NBYTES, in_place=False)
        same = same_of(name, plan, weights, DEFAULT_BUFFER_NBYTES)
        made = plan, live, weights, [targets[: len(weights[0])]]
        return Ready(same, made, chunk_room(plan, sizes, DEFAULT_BUFFER_NBYTES))

    def build(made: tuple[ReshardPlan, LivePlan, Layers, Layers], connection: Connection) -> LiveRows:
        _, live, weights, targets = made
        return LiveRows(live, weights, targets, group, connection)

    with _after_current(stream):
        ready, rows, connection = connected(prepare, build, group)
        with connection.running():
            rows.start()
            rows.finish()
    plan = ready.made[0]
    mine = plan.new.rank_of_slot == group.rank()
    return _masks(plan.old.physical_to_logical[0, mine], plan.new.physical_to_logical[0, mine])


def _after_current(stream: torch.cuda.Stream | None) -> AbstractContextManager[object]:
    """The stream as the current one, after what is on the current one; nothing where it is no stream."""
    if not isinstance(stream, torch.cuda.Stream):
        return nullcontext()
    stream.wait_stream(torch.cuda.current_stream(stream.device))
    return torch.cuda.stream(stream)


def _masks(old: NDArray[np.int64], new: NDArray[np.int64]) -> MoveToBufferResult:
    """What becomes of each of a rank's (S,) rows."""
    is_unchanged = old == new
    is_local = is_unchanged | ((new != EMPTY) & np.isin(new, old))
    wanted = np.flatnonzero(~is_local & (new != EMPTY))
    experts, first = np.unique(new[wanted], return_index=True)
    count = len(experts)
    primary = np.zeros(len(new), np.bool_)
    primary[wanted[first]] = True
    ids, rows = np.full(len(new), EMPTY, np.int64), np.full(len(new), EMPTY, np.int32)
    ids[:count], rows[:count] = experts, wanted[first]
    return is_unchanged, is_local, RecvMetadata(primary, count, ids, rows)


def get_ep_ranks_with_experts_batch(
    expert_ids: NDArray[np.integer],
    num_local_experts: int,
    old_indices: NDArray[np.integer],
    new_indices: NDArray[np.integer],
) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
    """For each expert asked for: the ranks that have it, and those that need it and do not have it.

    Asks no other rank.

    Args:
        expert_ids: (N,) integers, the experts asked for, in any order.
        num_local_experts: S, at least 1.
        old_indices: (P,) integers, the expert in each slot before, -1 for none.
        new_indices: (P,) integers, the expert in each slot afterwards.

    Returns:
        The ranks that have each expert; the ranks that need it and do not have it. Ranks are ascending.

    Raises:
        PlacementError: EP104, something is not of integers; EP108, no rows; EP109, not one dimension.
    """
    asked, old, new = (as_array(array) for array in (expert_ids, old_indices, new_indices))
    if num_local_experts < 1:
        raise PlacementError("EP108", f"a rank has {num_local_experts} rows")
    if old.ndim != 1 or new.ndim != 1:
        raise PlacementError("EP109", f"indices {old.shape} and {new.shape} are not those of one layer")
    senders: dict[int, list[int]] = {}
    receivers: dict[int, list[int]] = {}
    for expert in np.unique(asked).tolist():
        senders[expert] = np.unique(np.flatnonzero(old == expert) // num_local_experts).tolist()
        wanted = np.unique(np.flatnonzero(new == expert) // num_local_experts).tolist()
        receivers[expert] = [rank for rank in wanted if rank not in senders[expert]]
    return senders, receivers
