"""What vLLM's CPU build lacks to serve experts over several ranks, mended for the check; GPU builds have it.

Each function changes vLLM in this process. Nothing here knows eplb, and eplb needs none of it.
"""

from __future__ import annotations

import functools
import inspect
import os
from pathlib import Path
from typing import Any

import torch


def expert_parallelism() -> None:
    """The CPU kernel takes ids for rows and knows no other ranks: give it rows, and weigh the rest with 0."""
    from vllm.model_executor.layers.fused_moe.experts import cpu_moe

    kernel = cpu_moe.CPUUnquantizedExperts.apply
    signature = inspect.signature(kernel)

    @functools.wraps(kernel)
    def apply(*values: Any, **named: Any) -> Any:
        bound = signature.bind(*values, **named)
        said = bound.arguments
        if said["expert_map"] is not None:
            rows = said["expert_map"][said["topk_ids"].long()]
            said["topk_weights"] = said["topk_weights"].masked_fill(rows < 0, 0.0)
            said["topk_ids"] = rows.clamp(min=0).to(torch.int32)
        return kernel(*bound.args, **bound.kwargs)

    cpu_moe.CPUUnquantizedExperts.apply = apply


def maps() -> None:
    """On the CPU routers leave ids as they are, maps or not: do in torch what the GPU kernel does."""
    from vllm.model_executor.layers.fused_moe.router import base_router

    def to_slots(
        topk_ids: Any,
        expert_load_view: Any,
        logical_to_physical_map: Any,
        logical_replica_count: Any,
        record_enabled: Any,
        num_unpadded_tokens: Any = None,
    ) -> Any:
        del num_unpadded_tokens
        experts = topk_ids.long()
        token = torch.arange(len(experts))[:, None]
        slots = logical_to_physical_map[experts, token % logical_replica_count[experts]]
        if bool(record_enabled):
            expert_load_view += torch.bincount(slots.flatten(), minlength=len(expert_load_view)).int()
        return slots.to(topk_ids.dtype)

    base_router.eplb_map_to_physical_and_record = to_slots


def data_parallelism() -> None:
    """The CPU's communicator lacks the collectives over ranks that have unequal numbers of tokens."""
    import torch.distributed
    from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator

    def all_gatherv(self: Any, tensor: Any, dim: int = 0, sizes: list[int] | None = None) -> Any:
        if isinstance(tensor, list):
            return [all_gatherv(self, each, dim, sizes) for each in tensor]
        counts = sizes or [len(tensor)] * self.world_size
        padded = tensor.new_zeros((max(counts), *tensor.shape[1:]))
        padded[: len(tensor)] = tensor
        gathered = [torch.empty_like(padded) for _ in counts]
        torch.distributed.all_gather(gathered, padded, group=self.device_group)
        return torch.cat([each[:count] for each, count in zip(gathered, counts, strict=True)])

    def reduce_scatterv(self: Any, tensor: Any, dim: int = 0, sizes: list[int] | None = None) -> Any:
        del dim
        total = tensor.contiguous().clone()
        torch.distributed.all_reduce(total, group=self.device_group)
        counts = sizes or [len(tensor) // self.world_size] * self.world_size
        begin = sum(counts[: self.rank_in_group])
        return total[begin : begin + counts[self.rank_in_group]].contiguous()

    def into_output(self: Any, tensor: Any, output: Any, dim: int = 0, sizes: list[int] | None = None) -> Any:
        return output.copy_(reduce_scatterv(self, tensor, dim, sizes))

    CpuCommunicator.all_gatherv = all_gatherv
    CpuCommunicator.reduce_scatterv = reduce_scatterv
    CpuCommunicator.reduce_scatterv_into_output = into_output


class _NoEvent:
    """An event where there is nothing to wait for."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def record(self, *_: object) -> None:
        """Nothing."""

    synchronize = wait = record

    def elapsed_time(self, _: object) -> float:
        """No time."""
        return 0.0


class _LikeCuda:
    """The platform, but for the one question whether it may have EPLB."""

    def __init__(self, platform: Any) -> None:
        self._platform = platform

    def __getattr__(self, name: str) -> Any:
        return getattr(self._platform, name)

    def is_cuda_alike(self) -> bool:
        """It may."""
        return True


def balancing() -> None:
    """The CPU may not have EPLB: let the check of its config pass, and its runner keep EPLB's state."""
    from vllm.config import parallel
    from vllm.distributed.eplb.eplb_state import EplbState
    from vllm.model_executor.models.interfaces import get_mixture_of_experts_model
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    torch.Event = _NoEvent  # type: ignore[assignment,misc]
    parallel.current_platform = _LikeCuda(parallel.current_platform)
    load = CPUModelRunner.load_model

    @functools.wraps(load)
    def load_model(self: Any, *values: Any, **named: Any) -> None:
        load(self, *values, **named)
        self.eplb_state = EplbState(self.parallel_config, self.device)
        self._moe_model = get_mixture_of_experts_model(self.model)
        self.eplb_state.add_model(self._moe_model, self.model_config)

    CPUModelRunner.load_model = load_model


def own_shared_memory(name: str) -> None:
    """Ranks of one machine meet in shared memory, and every start of vLLM without ports calls it the same."""
    from vllm.distributed.device_communicators.cpu_communicator import _CPUSHMDistributed

    of_group = _CPUSHMDistributed.make_group_name

    def of_start(communicator: Any) -> str:
        return name + str(of_group(communicator)).replace("/", "")

    _CPUSHMDistributed.make_group_name = staticmethod(of_start)


def count_rearrangements() -> list[None]:
    """A list that grows with each rearrangement, with an entry that says nothing."""
    from vllm.distributed.eplb import eplb_state

    commit = eplb_state._commit_eplb_maps
    found: list[None] = []

    @functools.wraps(commit)
    def counted(*values: Any, **named: Any) -> None:
        commit(*values, **named)
        found.append(None)

    eplb_state._commit_eplb_maps = counted
    return found


def saving() -> None:
    """`--load-format saving`: vLLM's own shards, saved before weights are packed in a form it cannot load."""
    from vllm.model_executor.model_loader import register_model_loader
    from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
    from vllm.model_executor.model_loader.sharded_state_loader import ShardedStateLoader

    class Saving(DefaultModelLoader):  # type: ignore[misc]
        def __init__(self, load_config: Any) -> None:
            load_config.load_format = "auto"
            super().__init__(load_config)

        def load_weights(self, model: Any, model_config: Any) -> None:
            super().load_weights(model, model_config)
            path = Path(os.environ["SAVE_TO"])
            path.mkdir(parents=True, exist_ok=True)
            ShardedStateLoader.save_model(model, str(path))

    register_model_loader("saving")(Saving)


def monolithic_kernels() -> None:
    """Say of every kernel that it routes by itself, as some of a GPU do."""
    from vllm.model_executor.layers.fused_moe.fused_moe_method_base import FusedMoEMethodBase

    FusedMoEMethodBase.is_monolithic = property(lambda _: True)


MENDS = {
    function.__name__: function
    for function in (
        expert_parallelism,
        maps,
        data_parallelism,
        balancing,
        saving,
        monolithic_kernels,
    )
}
"""By name, for jobs."""
