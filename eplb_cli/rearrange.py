"""Rearranging live expert weights, with the names and results of vLLM's `rebalance_execute`.

A caller of that module changes the import and nothing else. Beneath is the same plan and the same
exchange as for files; what the reference gets wrong is a typed error on all ranks alike, raised before
the first transfer. The words of the reference are kept in this module: `indices` for placements,
`expert_weights` for live tensors.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from eplb_cli.errors import CheckpointError, EplbError, PlacementError
from eplb_cli.live import Layers, LiveRows, check_rows, plan_live, row_nbytes
from eplb_cli.mover import Copies, make_mover
from eplb_cli.placement import EMPTY, Placement
from eplb_cli.plan import ReshardPlan, Senders, plan_reshard
from eplb_cli.rank_mapping import (
    _map_new_expert_indices_with_rank_mapping,  # noqa: F401 - the reference has it here
    _map_old_expert_indices_with_rank_mapping,  # noqa: F401 - the reference has it here
    mapped,
)
from eplb_cli.transport import agree

__all__ = [
    "MoveToBufferResult",
    "Rearrangement",
    "RecvMetadata",
    "get_ep_ranks_with_experts_batch",
    "move_from_buffer",
    "move_to_buffer",
    "rearrange_expert_weights_inplace",
    "transfer_layer",
]

DEFAULT_BUFFER_NBYTES = 2 << 30

PARTS = 4
"""Parts of the layers that a device moves one after the other, each twice the one before."""


@dataclass
class RecvMetadata:
    """What a rank receives from others in one layer; arrays have one entry per row of the rank.

    Attributes:
        recv_primary_mask: True for the row that a received expert lands in.
        recv_count: number of experts received.
        recv_expert_ids: the experts received, ascending, then -1.
        recv_dst_rows: the rows they land in, then -1.
    """

    recv_primary_mask: NDArray[np.bool_]
    recv_count: int
    recv_expert_ids: NDArray[np.int64]
    recv_dst_rows: NDArray[np.int32]


MoveToBufferResult = tuple[NDArray[np.bool_], NDArray[np.bool_], RecvMetadata]
"""(rows that stay as they are, rows whose expert the rank had already, what it receives)."""


class Rearrangement:
    """A rearrangement of certain tensors, planned once and carried out as often as wanted.

    Holds its buffers: at most `buffer_nbytes`, less where there is less to move.

    Args:
        old, new: (L, P) expert in each slot before and after, -1 for none; the same on all ranks.
        expert_weights: per layer, tensors of (S, ...) rows; K and shapes may differ between layers.
        ep_group: any group whose ranks hold S = P / size rows each.
        senders: "vllm", or "balanced" to spread the bytes sent.

    Raises:
        EplbError: on all ranks alike, before anything is moved.
    """

    def __init__(
        self,
        old: torch.Tensor | NDArray[np.integer],
        new: torch.Tensor | NDArray[np.integer],
        expert_weights: Sequence[Iterable[torch.Tensor]],
        ep_group: dist.ProcessGroup,
        *,
        senders: Senders = "vllm",
        buffer_size: int = DEFAULT_BUFFER_NBYTES,
        rank_mapping: Mapping[int, int] | None = None,
    ) -> None:
        layers = [list(tensors) for tensors in expert_weights]
        self.plan = _agreed_plan(
            _array(old),
            _array(new),
            layers,
            ep_group,
            senders=senders,
            rank_mapping=rank_mapping,
            buffer_size=buffer_size,
        )
        self._rows = _rows_of(self.plan, slice(0, len(layers)), layers, ep_group, buffer_size)

    def run(self) -> None:
        """Move the rows in place, in the order of the current stream; must be called by all ranks."""
        self._rows.run()


def _rows_of(
    plan: ReshardPlan, part: slice, layers: Layers, group: dist.ProcessGroup, buffer_size: int
) -> LiveRows:
    """What this rank does in some of the layers of a plan."""
    chosen = layers[part]
    live = plan_live(plan.of_layers(part), row_nbytes(chosen), group.rank(), buffer_size)
    return LiveRows(live, chosen, chosen, group)


def _parts(num_layers: int, num_parts: int) -> Iterator[slice]:
    """Parts that double in size: while one is moved, the next is cut into chunks."""
    ends = [num_layers * ((1 << part) - 1) // ((1 << num_parts) - 1) for part in range(num_parts + 1)]
    return (slice(begin, end) for begin, end in itertools.pairwise(ends) if begin < end)


def rearrange_expert_weights_inplace(  # noqa: PLR0913 - the reference's signature
    old_global_expert_indices: torch.Tensor,
    new_global_expert_indices: torch.Tensor,
    expert_weights: Sequence[Iterable[torch.Tensor]],
    ep_group: dist.ProcessGroup,
    is_profile: bool = False,  # noqa: FBT001, FBT002 - the reference's signature
    rank_mapping: Mapping[int, int] | None = None,
    *,
    senders: Senders = "vllm",
    buffer_size: int = DEFAULT_BUFFER_NBYTES,
) -> None:
    """Rearrange the weights of all layers in place.

    Args:
        old_global_expert_indices, new_global_expert_indices: (L, P) expert in each slot.
        expert_weights: per layer, tensors of (S, ...) rows.
        is_profile: move nothing; one all-gather of the first layer reserves communication memory.
        rank_mapping: old rank to new rank, -1 where it leaves; a partial injection.

    Raises:
        EplbError: on all ranks alike, before anything is moved.
    """
    if is_profile:
        _profile(expert_weights, ep_group)
        return
    old, new = _array(old_global_expert_indices), _array(new_global_expert_indices)
    layers = [list(tensors) for tensors in expert_weights]
    plan = _agreed_plan(
        old, new, layers, ep_group, senders=senders, rank_mapping=rank_mapping, buffer_size=buffer_size
    )
    num_parts = 1 if _device_of(layers, ep_group).type == "cpu" else PARTS
    for part in _parts(len(layers), num_parts):
        _rows_of(plan, part, layers, ep_group, buffer_size).run()


async def transfer_layer(  # noqa: PLR0913, PLR0917 - the reference's signature
    old_global_expert_indices: torch.Tensor,
    new_global_expert_indices: torch.Tensor,
    expert_weights: Sequence[Iterable[torch.Tensor]],
    expert_weights_buffer: Sequence[torch.Tensor],
    ep_group: dist.ProcessGroup,
    is_profile: bool = False,  # noqa: FBT001, FBT002 - the reference's signature
    layer: int = 0,
    cuda_stream: torch.cuda.Stream | None = None,
    rank_mapping: Mapping[int, int] | None = None,
) -> MoveToBufferResult:
    """Put what one layer gets into buffers shaped like its weights; `move_from_buffer` completes it.

    On `cuda_stream`, if given, everything is in its order: it first waits for what is on the current
    stream, which itself goes on without waiting.
    """
    del is_profile
    num_layers = len(expert_weights)
    number = layer + num_layers if layer < 0 else layer
    there = 0 <= number < num_layers
    chosen = slice(number, number + 1) if there else slice(0, 0)
    old, new = (_array(indices)[chosen] for indices in (old_global_expert_indices, new_global_expert_indices))
    return _layer_to_buffer(
        old,
        new,
        list(expert_weights[number]) if there else [],
        expert_weights_buffer,
        cuda_stream,
        ep_group,
        rank_mapping,
    )


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
        old_indices, new_indices: (P,) expert in each slot.
    """
    del num_local_experts
    old, new = _array(old_indices)[None], _array(new_indices)[None]
    return _layer_to_buffer(
        old, new, list(expert_weights), expert_weights_buffers, cuda_stream, ep_group, None
    )


def _layer_to_buffer(
    old: NDArray[np.int64],
    new: NDArray[np.int64],
    weights: list[torch.Tensor],
    buffers: Sequence[torch.Tensor],
    stream: torch.cuda.Stream | None,
    group: dist.ProcessGroup,
    rank_mapping: Mapping[int, int] | None,
) -> MoveToBufferResult:
    """Exchange one layer, (1, P) indices, from its weights into buffers of the same shape."""
    targets = list(buffers)
    if stream is not None:
        stream.wait_stream(torch.cuda.current_stream(stream.device))
    with torch.cuda.stream(stream) if stream is not None else nullcontext():
        plan = _agreed_plan(old, new, [weights], group, buffers=[targets], rank_mapping=rank_mapping)
        sizes = row_nbytes([weights])
        live = plan_live(plan, sizes, group.rank(), DEFAULT_BUFFER_NBYTES, in_place=False)
        LiveRows(live, [weights], [targets], group).run()
    mine = plan.new.rank_of_slot == group.rank()
    return _masks(plan.old.physical_to_logical[0, mine], plan.new.physical_to_logical[0, mine])


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


def move_from_buffer(
    expert_weights: Iterable[torch.Tensor],
    expert_weights_buffers: Sequence[torch.Tensor],
    is_unchanged: NDArray[np.bool_],
    is_received_locally: NDArray[np.bool_],
    recv_metadata: RecvMetadata,
    new_indices: NDArray[np.integer],
    ep_group: dist.ProcessGroup,
) -> None:
    """Copy what `move_to_buffer` has put into the buffers to the weights, and repeat it where needed."""
    num_rows = len(is_unchanged)
    first = ep_group.rank() * num_rows
    experts = _array(new_indices)[first : first + num_rows]
    from_buffer = np.flatnonzero(~is_unchanged & (is_received_locally | recv_metadata.recv_primary_mask))
    count = recv_metadata.recv_count
    again = np.flatnonzero(
        ~is_unchanged
        & ~is_received_locally
        & ~recv_metadata.recv_primary_mask
        & np.isin(experts, recv_metadata.recv_expert_ids[:count])
    )
    source = np.searchsorted(recv_metadata.recv_expert_ids[:count], experts[again])
    primary = recv_metadata.recv_dst_rows[:count][source]
    pairs = list(zip(expert_weights, expert_weights_buffers, strict=False))
    if pairs:
        copied = [_row_copies(buffer, from_buffer, weight, from_buffer, 0) for weight, buffer in pairs]
        repeated = [_row_copies(weight, primary, weight, again, 1) for weight, _ in pairs]
        columns = (np.concatenate(column) for column in zip(*copied, *repeated, strict=True))
        mover = make_mover(Copies(*columns), pairs[0][0].device)
        mover.run(0)
        mover.run(1)


def _row_copies(
    source: torch.Tensor,
    source_rows: NDArray[np.integer],
    target: torch.Tensor,
    target_rows: NDArray[np.integer],
    step: int,
) -> tuple[NDArray[np.int64], ...]:
    """Columns of `mover.Copies` for `target[target_rows] = source[source_rows]`."""
    origin, goal = (
        tensor.data_ptr() + rows.astype(np.int64) * tensor.stride(0) * tensor.element_size()
        for tensor, rows in ((source, source_rows), (target, target_rows))
    )
    nbytes = target.numel() // target.shape[0] * target.element_size()
    return np.full(len(origin), step), origin, goal, np.full(len(origin), nbytes)


def get_ep_ranks_with_experts_batch(
    expert_ids: NDArray[np.integer],
    num_local_experts: int,
    old_indices: NDArray[np.integer],
    new_indices: NDArray[np.integer],
) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
    """For each expert asked for: the ranks that have it, and those that need it and do not have it."""
    senders: dict[int, list[int]] = {}
    receivers: dict[int, list[int]] = {}
    for expert in np.unique(expert_ids).tolist():
        senders[expert] = np.unique(np.flatnonzero(old_indices == expert) // num_local_experts).tolist()
        wanted = np.unique(np.flatnonzero(new_indices == expert) // num_local_experts).tolist()
        receivers[expert] = [rank for rank in wanted if rank not in senders[expert]]
    return senders, receivers


def _agreed_plan(  # noqa: PLR0913 - all that ranks have to agree on
    old: NDArray[np.int64],
    new: NDArray[np.int64],
    layers: Layers,
    group: dist.ProcessGroup,
    *,
    senders: Senders = "vllm",
    buffers: Layers | None = None,
    rank_mapping: Mapping[int, int] | None = None,
    buffer_size: int = DEFAULT_BUFFER_NBYTES,
) -> ReshardPlan:
    """The plan that all ranks have; an error that one of them has, all of them raise."""
    plan: ReshardPlan | None = None
    error: EplbError | None = None
    try:
        old, new = mapped(old, new, rank_mapping, group.size())
        _check(old, new, layers, group.size(), buffers)
        plan = plan_of(old, new, layers, group.size(), senders)
    except EplbError as raised:
        error = raised
    agree(_digest(plan, layers, buffer_size), group, _device_of(layers, group), error)
    if plan is None:
        raise error or PlacementError("EP109", "there is no plan")
    return plan


def _check(
    old: NDArray[np.int64], new: NDArray[np.int64], layers: Layers, num_ranks: int, buffers: Layers | None
) -> None:
    """Everything that can be wrong with indices, weights and buffers."""
    _check_indices(old, new, layers, num_ranks)
    error: EplbError | None = check_rows(layers, old.shape[1] // num_ranks)
    if error is None and buffers is not None:
        error = _check_buffers(layers, buffers)
    if error is not None:
        raise error


def plan_of(
    old: NDArray[np.int64], new: NDArray[np.int64], layers: Layers, num_ranks: int, senders: Senders = "vllm"
) -> ReshardPlan:
    """The plan for (L, P) indices over ranks of as many rows each. Raises PlacementError."""
    num_experts = int(max(old.max(initial=0), new.max(initial=0))) + 1
    first_slot = np.arange(num_ranks + 1) * (old.shape[1] // num_ranks)
    return plan_reshard(
        Placement(old, first_slot, num_experts),
        Placement(new, first_slot, num_experts),
        senders,
        expert_nbytes=row_nbytes(layers).sum(axis=1),
    )


def _check_indices(old: NDArray[np.int64], new: NDArray[np.int64], layers: Layers, num_ranks: int) -> None:
    if old.ndim != 2 or old.shape != new.shape or len(old) != len(layers):  # noqa: PLR2004
        raise PlacementError(
            "EP109",
            f"old indices {old.shape}, new indices {new.shape} and {len(layers)} layers do not fit",
        )
    if old.shape[1] % num_ranks:
        raise PlacementError("EP108", f"{old.shape[1]} slots do not divide over {num_ranks} ranks")
    for name, table in (("old", old), ("new", new)):
        below = np.argwhere(table < EMPTY)
        if len(below):
            layer, slot = below[0].tolist()
            raise PlacementError(
                "EP105", f"{name}: layer {layer}, slot {slot}: {table[layer, slot]} is no expert"
            )


def _check_buffers(layers: Layers, buffers: Layers) -> EplbError | None:
    for number, (weight, buffer) in enumerate(zip(layers[0], buffers[0], strict=False)):
        if buffer.shape != weight.shape or buffer.dtype != weight.dtype:
            return CheckpointError(
                "EP222",
                f"buffer {number} is {buffer.dtype} {list(buffer.shape)}, "
                f"and its weight {weight.dtype} {list(weight.shape)}",
            )
    if len(buffers[0]) < len(layers[0]):
        return CheckpointError("EP222", f"{len(buffers[0])} buffers for {len(layers[0])} weights")
    return check_rows(buffers, layers[0][0].shape[0] if layers[0] else 0)


def _digest(plan: ReshardPlan | None, layers: Layers, buffer_size: int) -> str:
    """What all ranks must have alike: the plan's inputs, the size of chunks, and kinds and sizes of rows."""
    sha = hashlib.sha256()
    if plan is not None:
        sha.update(f"{buffer_size} {plan.senders} {plan.old.digest} {plan.new.digest}".encode())
        rows = [[(str(tensor.dtype), list(tensor.shape[1:])) for tensor in tensors] for tensors in layers]
        sha.update(repr(rows).encode())
    return sha.hexdigest()


def _array(indices: torch.Tensor | NDArray[np.integer]) -> NDArray[np.int64]:
    """A copy of indices, in host memory."""
    array = indices.cpu().numpy() if isinstance(indices, torch.Tensor) else indices
    return np.array(array, np.int64)


def _device_of(layers: Layers, group: dist.ProcessGroup) -> torch.device:
    """Where a group's collectives run: beside its tensors, or where its backend works."""
    if "nccl" not in str(dist.get_backend(group)):
        return torch.device("cpu")
    devices = (tensor.device for tensors in layers for tensor in tensors if tensor.device.type == "cuda")
    return next(devices, torch.device("cuda", torch.cuda.current_device()))


def _profile(expert_weights: Sequence[Iterable[torch.Tensor]], ep_group: dist.ProcessGroup) -> None:
    """Reserve communication memory: an all-gather of the first layer into one buffer."""
    for weight in expert_weights[0]:
        mine = weight.contiguous().view(torch.uint8).view(-1)
        buffer = torch.empty_like(mine)
        dist.all_gather([buffer] * ep_group.size(), mine, group=ep_group)
