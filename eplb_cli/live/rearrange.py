"""Rearranging live expert weights, with the names and results of vLLM's `rebalance_execute`.

A caller of that module changes the import and nothing else. Beneath is the same plan and the same
exchange as for files; what the reference gets wrong is a typed error on all ranks alike, raised before
the first transfer. The words of the reference are kept in this module: `indices` for placements,
`expert_weights` for live tensors.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.distributed as dist

from eplb_cli.exchange.units import Ramp
from eplb_cli.live.agreement import (
    DEFAULT_BUFFER_NBYTES,
    Ready,
    check_device,
    connected,
    kinds_of,
    plan_between,
    reconnected,
    same_of,
)
from eplb_cli.live.buffers import MoveToBufferResult, OneLayer, layer_to_buffer
from eplb_cli.live.connection import Connection, has_devices, is_kept
from eplb_cli.live.indices import Indices, as_array
from eplb_cli.live.plan import CHUNKS_PER_BUFFER, LivePlan, plan_live
from eplb_cli.live.room import chunk_room
from eplb_cli.live.rows import LiveRows
from eplb_cli.live.tensors import Layers, read_layers, row_nbytes
from eplb_cli.plan.choice import Senders
from eplb_cli.plan.moves import ReshardPlan
from eplb_cli.values import dataclass

LAYERS_FOR_A_THIRD = 32
"""Layers from which a device moves them in three parts, and not two, each twice the one before: it is cut
into chunks while that is moved. More parts take longer to plan than the first of them take to move."""


class Rearrangement:
    """A rearrangement of certain tensors, planned once and carried out as often as wanted.

    Holds its buffers: at most `buffer_size` bytes, less where there is less to move.

    Args:
        old: (L, P) integers, the expert in each slot before, -1 for none; the same on all ranks.
        new: (L, P) integers, the expert in each slot afterwards, likewise.
        expert_weights: per layer, tensors of (S, ...) rows; K and shapes may differ between layers.
        ep_group: any group whose ranks hold S = P / size rows each.
        senders: "vllm", or "balanced" to spread the bytes sent.
        buffer_size: bytes of all send and receive buffers of a rank; the same on all ranks.
        rank_mapping: old rank to new rank, -1 where it leaves; a partial injection.

    Attributes:
        plan: the plan, which all ranks have alike.

    Raises:
        PlacementError: the indices cannot be used.
        CheckpointError: the tensors are not what the indices need.
        PlanError: EP302, ranks have different indices, tensors or options.
        WorkerError: EP401, an argument is none; EP404, there is no triton for a CUDA device; EP406, the
            device lacks memory.

    What is wrong on one rank is raised on all of them alike, before anything is moved. A run cannot be
    refused: the tensors have to keep their memory as long as there are runs.
    """

    def __init__(
        self,
        old: Indices,
        new: Indices,
        expert_weights: Sequence[Iterable[torch.Tensor]],
        ep_group: dist.ProcessGroup,
        *,
        senders: Senders = "vllm",
        buffer_size: int = DEFAULT_BUFFER_NBYTES,
        rank_mapping: Mapping[int, int] | None = None,
    ) -> None:
        def prepare(met: list[torch.Tensor]) -> Ready[tuple[ReshardPlan, LivePlan, Layers]]:
            layers = read_layers(expert_weights, met)
            plan = plan_between(
                as_array(old), as_array(new), layers, ep_group, senders=senders, rank_mapping=rank_mapping
            )
            sizes = row_nbytes(layers)
            live = plan_live(plan, sizes, ep_group.rank(), buffer_size)
            same = same_of("plan", plan, layers, buffer_size)
            return Ready(same, (plan, live, layers), chunk_room(plan, sizes, buffer_size))

        def build(made: tuple[ReshardPlan, LivePlan, Layers], connection: Connection) -> LiveRows:
            _, live, layers = made
            return LiveRows(live, layers, layers, ep_group, connection)

        self._group, self._build = ep_group, build
        self._ready, self._rows, self._connection = connected(prepare, build, ep_group)
        self.plan = self._ready.made[0]

    @property
    def transport(self) -> str:
        """How rows get to other ranks: "push", "nccl" or "gloo", or "push+nccl" with several hosts."""
        return self._connection.transport

    def run(self) -> None:
        """Move the rows in place, in the order of the current stream; must be called by all ranks.

        Raises:
            WorkerError: EP402, EP403 or what another rank raised, where rows are pushed and a rank cannot go
                on; the weights are undefined then.
        """
        if not is_kept(self._connection, self._group):
            self._rows, self._connection = reconnected(
                self._ready, self._build, self._group, self._rows.device
            )
        with self._connection.running():
            self._rows.start()
            self._rows.finish()


def _parts(num_layers: int, num_parts: int) -> list[slice]:
    """Parts that double in size: while one is moved, the next is cut into chunks."""
    ends = [-(-num_layers * ((1 << part) - 1) // ((1 << num_parts) - 1)) for part in range(num_parts + 1)]
    return [slice(begin, end) for begin, end in itertools.pairwise(ends) if begin < end] or [slice(0, 0)]


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
    """Rearrange the weights of all layers in place; must be called by all ranks.

    Args:
        old_global_expert_indices: (L, P) integers, the expert in each slot before, -1 for none.
        new_global_expert_indices: (L, P) integers, the expert in each slot afterwards.
        expert_weights: per layer, tensors of (S, ...) rows.
        ep_group: any group whose ranks hold S = P / size rows each.
        is_profile: move nothing; one all-gather of the first layer reserves communication memory.
        rank_mapping: old rank to new rank, -1 where it leaves; a partial injection.
        senders: "vllm", or "balanced" to spread the bytes sent.
        buffer_size: bytes of all send and receive buffers of a rank; the same on all ranks.

    Raises:
        EplbError: as `Rearrangement`, on all ranks alike, before anything is moved.
    """
    if is_profile:
        _profile(expert_weights, ep_group, buffer_size)
        return

    def prepare(met: list[torch.Tensor]) -> Ready[Planned]:
        old, new = as_array(old_global_expert_indices), as_array(new_global_expert_indices)
        layers = read_layers(expert_weights, met)
        plan = plan_between(old, new, layers, ep_group, senders=senders, rank_mapping=rank_mapping)
        same = same_of("in place", plan, layers, buffer_size)
        num_parts = 2 + (len(layers) >= LAYERS_FOR_A_THIRD) if has_devices(ep_group) else 1
        parts = _parts(len(layers), num_parts)
        planned = Planned(plan, layers, ep_group, buffer_size, parts)
        return Ready(same, planned, chunk_room(plan, row_nbytes(layers), buffer_size))

    ready, rows, connection = connected(prepare, lambda made, way: made.rows(made.parts[0], way), ep_group)
    with connection.running():
        rows.start()
        started = [rows]
        del rows
        for part in ready.made.parts[1:]:
            if not connection.keeps_buffers:
                started.pop().finish()  # and gives its buffers back, before there are others
            started.append(ready.made.rows(part, connection))
            started[-1].start()
        for rows in started:
            rows.finish()


@dataclass(frozen=True)
class Planned:
    """All that is to be done, of which each part of the layers has its own chunks."""

    plan: ReshardPlan
    layers: Layers
    group: dist.ProcessGroup
    buffer_size: int
    parts: list[slice]

    def rows(self, part: slice, connection: Connection) -> LiveRows:
        """What this rank does in some of the layers."""
        plan, layers = self.plan.of_layers(part), self.layers[part]
        pauses = not connection.keeps_buffers
        ramp = Ramp(pauses or part == self.parts[0], pauses or part == self.parts[-1])
        live = plan_live(plan, row_nbytes(layers), self.group.rank(), self.buffer_size, ramp=ramp)
        return LiveRows(live, layers, layers, self.group, connection)


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

    Args:
        old_global_expert_indices: (L, P) integers, the expert in each slot before, -1 for none.
        new_global_expert_indices: (L, P) integers, the expert in each slot afterwards.
        expert_weights: per layer, tensors of (S, ...) rows.
        expert_weights_buffer: a tensor for each of the layer's, of the same shape and dtype.
        ep_group: any group whose ranks hold S = P / size rows each.
        is_profile: accepted, and changes nothing, as in the reference.
        layer: which of the L layers; negative numbers count from the last.
        cuda_stream: if given, everything is in its order: it first waits for what is on the current stream,
            which itself goes on without waiting.
        rank_mapping: old rank to new rank, -1 where it leaves; a partial injection.

    Raises:
        EplbError: as `Rearrangement`, on all ranks alike, before anything is moved; EP222 for buffers too.
    """
    del is_profile

    def choose() -> OneLayer:
        num_layers = len(expert_weights)
        number = operator.index(layer) + (num_layers if layer < 0 else 0)
        there = 0 <= number < num_layers
        chosen = slice(number, number + 1) if there else slice(0, 0)
        old, new = (
            as_array(indices)[chosen] for indices in (old_global_expert_indices, new_global_expert_indices)
        )
        return OneLayer(f"layer {number}", old, new, expert_weights[number] if there else [])

    return layer_to_buffer(choose, expert_weights_buffer, cuda_stream, ep_group, rank_mapping)


def _profile(
    expert_weights: Sequence[Iterable[torch.Tensor]], ep_group: dist.ProcessGroup, buffer_size: int
) -> None:
    """Reserve communication memory: buffers to push into, and those of an all-gather of the first layer."""

    def prepare(met: list[torch.Tensor]) -> Ready[tuple[list[torch.Tensor], torch.Tensor]]:
        layers = read_layers(itertools.islice(expert_weights, 1), met)
        mine = [tensor.detach().contiguous().view(-1).view(torch.uint8) for tensor in met]
        check_device(met, ep_group)
        size = max((len(of_tensor) for of_tensor in mine), default=0)
        device = met[0].device if met else torch.device("cpu")
        buffer = torch.empty(size, dtype=torch.uint8, device=device)
        sizes = [len(of_tensor) for of_tensor in mine]
        same = f"profile {operator.index(buffer_size)} {kinds_of(layers)} {sizes}"
        return Ready(same, (mine, buffer), buffer_size // CHUNKS_PER_BUFFER)

    ready, _, _ = connected(prepare, lambda made, _: made, ep_group)
    mine, buffer = ready.made
    for of_tensor in mine:
        dist.all_gather([buffer[: len(of_tensor)]] * ep_group.size(), of_tensor, group=ep_group)
