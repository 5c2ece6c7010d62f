"""What each rank makes of its arguments, and the word of all ranks that they go on, or that none does."""

from __future__ import annotations

import hashlib
import operator
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, NamedTuple, TypeVar, cast, get_args

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from eplb_cli.arrays import Int
from eplb_cli.errors import CODES, CheckpointError, EplbError, WorkerError, error_of
from eplb_cli.exchange.agree import agree
from eplb_cli.live.connection import ON_HOST, Connection, connect, connection_of, has_devices
from eplb_cli.live.indices import over_group
from eplb_cli.live.tensors import Layers, check_apart, check_buffers, check_rows, row_nbytes
from eplb_cli.placements.placement import Placement
from eplb_cli.plan.choice import Senders
from eplb_cli.plan.moves import ReshardPlan
from eplb_cli.plan.plan import plan_reshard

DEFAULT_BUFFER_NBYTES = 2 << 30
"""All send and receive buffers of a rank, where nothing else is said."""

Made = TypeVar("Made")
Built = TypeVar("Built")


class Ready(NamedTuple, Generic[Made]):
    """What a rank has made of its arguments.

    Attributes:
        same: what all ranks must have alike, as text.
        made: what it made.
        chunk_nbytes: the largest chunk of any rank.
    """

    same: str
    made: Made
    chunk_nbytes: int = 0


Prepare = Callable[[list[torch.Tensor]], Ready[Made]]
"""Reads a rank's arguments, adding each tensor to the list, and plans."""


def connected(
    prepare: Prepare[Made], build: Callable[[Made, Connection], Built], group: dist.ProcessGroup
) -> tuple[Ready[Made], Built, Connection]:
    """What `prepare` and `build` make, once every rank of the group has made it, of arguments that fit.

    Where the ranks have been connected before, that is one agreement; the first time they agree on what to do
    before they connect, and on what they have built after.

    Args:
        build: makes ready all that moving needs, for a way of reaching the other ranks.

    Raises:
        EplbError: as `agreed`.
    """
    kept = connection_of(group) if has_devices(group) else ON_HOST
    met: list[torch.Tensor] = []

    def first(met: list[torch.Tensor]) -> tuple[str, tuple[Ready[Made], Built | None], bytes]:
        ready = prepare(met)
        if kept is None or not kept.serves(ready.chunk_nbytes):
            return ready.same, (ready, None), b""
        return ready.same, (ready, build(ready.made, kept)), kept.token

    (ready, built), notes = _told(first, met, group)
    if kept is not None and built is not None and len(set(notes)) == 1:
        return ready, built, kept
    return ready, *reconnected(ready, build, group, _device_of(met, group))


def reconnected(
    ready: Ready[Made],
    build: Callable[[Made, Connection], Built],
    group: dist.ProcessGroup,
    device: torch.device,
) -> tuple[Built, Connection]:
    """Connect the ranks of a group of devices anew, all of which have agreed on what to do, and build."""
    connection = connect(group, device, ready.chunk_nbytes)
    built = agreed(lambda _: Ready("built", build(ready.made, connection)), group)
    return built, connection


def agreed(prepare: Prepare[Made], group: dist.ProcessGroup) -> Made:
    """What `prepare` makes, once it has made it on every rank of the group, of arguments that fit.

    Whatever `prepare` raises on one rank, all ranks raise before anything is moved: no rank is left
    waiting. Only what is no Exception, as KeyboardInterrupt, stays itself on its own rank.

    Raises:
        EplbError: the error of the first rank that has one, with EP401 for what has no code and EP406
            for a lack of memory on a device; EP302 where ranks have arguments that do not fit.
    """

    def first(met: list[torch.Tensor]) -> tuple[str, Made, bytes]:
        ready = prepare(met)
        return ready.same, ready.made, b""

    return _told(first, [], group)[0]


def _told(
    prepare: Callable[[list[torch.Tensor]], tuple[str, Made, bytes]],
    met: list[torch.Tensor],
    group: dist.ProcessGroup,
) -> tuple[Made, list[bytes]]:
    """What `prepare` makes, and the note of each rank."""
    same, made, note, failure = "", None, b"", None
    try:
        same, made, note = prepare(met)
    except BaseException as raised:  # noqa: BLE001 - the others have to hear of it, or they wait
        failure = raised
    error = None if failure is None else _coded(failure, group.rank())
    try:
        notes = agree(hashlib.sha256(same.encode()).hexdigest(), group, _device_of(met, group), error, note)
    except Exception as told:
        if failure is not None and not isinstance(failure, Exception):
            raise failure from told
        raise told from failure
    return cast("Made", made), notes


def _coded(failure: BaseException, rank: int) -> EplbError:
    """What a rank tells all ranks."""
    if isinstance(failure, EplbError) and failure.code in CODES:
        return error_of(failure.code, f"rank {rank}: {failure.message}", failure.hint)
    words = " ".join("".join(traceback.format_exception_only(failure)).split())
    if isinstance(failure, torch.OutOfMemoryError):
        return WorkerError("EP406", f"rank {rank}: {words}")
    return WorkerError("EP401", f"rank {rank}: {words}", "reading or planning what it was given raised this")


def _device_of(met: Sequence[torch.Tensor], group: dist.ProcessGroup) -> torch.device:
    """Where a group's collectives run: beside its tensors, or where its backend works."""
    if not has_devices(group):
        return torch.device("cpu")
    devices = (tensor.device for tensor in met if tensor.device.type == "cuda")
    return next(devices, torch.device("cuda", torch.cuda.current_device()))


def plan_between(
    old: Int,
    new: Int,
    layers: Layers,
    group: dist.ProcessGroup,
    *,
    senders: Senders = "vllm",
    buffers: Sequence[torch.Tensor] | None = None,
    rank_mapping: Mapping[int, int] | None = None,
) -> ReshardPlan:
    """The plan for (L, P) indices and the tensors of this rank, all of which have been looked at.

    Args:
        buffers: where the rows of the one layer go; None where they stay in its tensors.

    Raises:
        EplbError: anything is wrong with indices, weights, buffers or mapping.
    """
    if senders not in get_args(Senders):
        raise WorkerError("EP401", f"senders is {senders!r}", f"one of {', '.join(get_args(Senders))}")
    old, new = over_group(old, new, len(layers), group.size(), rank_mapping)
    check_rows(layers, old.shape[1] // group.size())
    if buffers is not None:
        check_buffers(layers[0], buffers)
    check_apart(layers, buffers or ())
    check_device([*(tensor for tensors in layers for tensor in tensors), *(buffers or ())], group)
    return plan_of(old, new, layers, group.size(), senders)


def check_device(tensors: Sequence[torch.Tensor], group: dist.ProcessGroup) -> None:
    """Refuse tensors that the group's backend cannot send; all of them are on one device."""
    backend = str(dist.get_backend(group))
    if tensors and {"gloo": "cuda", "nccl": "cpu"}.get(backend) == tensors[0].device.type:
        raise CheckpointError(
            "EP228", f"{backend} connects the group, and tensors are on {tensors[0].device}"
        )


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


def same_of(what: str, plan: ReshardPlan, layers: Layers, buffer_size: int) -> str:
    """What all ranks must have alike: what they do, the plan's inputs, the size of chunks, and all rows."""
    plan_inputs = f"{plan.senders} {plan.old.digest} {plan.new.digest}"
    return f"{what} {operator.index(buffer_size)} {plan_inputs} {kinds_of(layers)}"


def kinds_of(layers: Layers) -> str:
    """The kind of device, all dtypes and shapes that there are, and which of them each tensor has."""
    kinds: dict[tuple[torch.dtype, torch.Size], int] = {}
    number = [
        [kinds.setdefault((tensor.dtype, tensor.shape), len(kinds)) for tensor in tensors]
        for tensors in layers
    ]
    device = next((tensor.device.type for tensors in layers for tensor in tensors), "none")
    return f"{device} {list(kinds)} {number}"
