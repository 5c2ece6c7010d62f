"""Everything that can be wrong with indices, weights and buffers, told to all ranks alike."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from eplb_cli.errors import CheckpointError, EplbError, PlacementError
from eplb_cli.exchange.agree import agree
from eplb_cli.live.plan import Layers, check_rows, row_nbytes
from eplb_cli.live.rank_mapping import mapped
from eplb_cli.placements.placement import EMPTY, Placement
from eplb_cli.plan.moves import ReshardPlan, Senders
from eplb_cli.plan.plan import plan_reshard

DEFAULT_BUFFER_NBYTES = 2 << 30


def agreed_plan(  # noqa: PLR0913 - all that ranks have to agree on
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
    agree(_digest(plan, layers, buffer_size), group, device_of(layers, group), error)
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


def as_array(indices: torch.Tensor | NDArray[np.integer]) -> NDArray[np.int64]:
    """A copy of indices, in host memory."""
    array = indices.cpu().numpy() if isinstance(indices, torch.Tensor) else indices
    return np.array(array, np.int64)


def device_of(layers: Layers, group: dist.ProcessGroup) -> torch.device:
    """Where a group's collectives run: beside its tensors, or where its backend works."""
    if "nccl" not in str(dist.get_backend(group)):
        return torch.device("cpu")
    devices = (tensor.device for tensors in layers for tensor in tensors if tensor.device.type == "cuda")
    return next(devices, torch.device("cuda", torch.cuda.current_device()))
