"""What ranks do on CUDA devices, where work that was started is not work that is done."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext

import torch

from eplb_cli import live as rearrange
from tests.support.live.problems import Contents, Problem
from tests.support.live.runs import planned
from tests.support.live.weights import Group, Live, buffers_of, live, tables

_LATE_CYCLES = 300_000_000
_LONG_CYCLES = 4_000_000_000
"""About 0.2 s and 2 s."""


def _arrive_late(mine: Live) -> None:
    """The weights are zero until the current stream has slept."""
    arrived = [[raw.clone() for raw in arrays] for arrays in mine.memory]
    for arrays in mine.memory:
        for raw in arrays:
            raw.zero_()
    torch.cuda.synchronize()
    torch.cuda._sleep(_LATE_CYCLES)
    for arrays, contents in zip(mine.memory, arrived, strict=True):
        for raw, content in zip(arrays, contents, strict=True):
            raw.copy_(content)


def read_at_once(group: Group, device: torch.device, problem: Problem, on_side_stream: bool) -> Contents:
    """What the current stream reads right after a rearrangement of weights that it has just written.

    The memory that the rearrangement has given back is overwritten at once.
    """
    mine = live(problem, group, device)
    old, new = tables(problem)
    with torch.cuda.stream(torch.cuda.Stream(device)) if on_side_stream else nullcontext():
        _arrive_late(mine)
        rearrange.rearrange_expert_weights_inplace(
            old, new, mine.weights, group, buffer_size=problem.buffer_size
        )
        read = [[raw.clone() for raw in arrays] for arrays in mine.memory]
        nbytes = sum(raw.numel() for arrays in mine.memory for raw in arrays)
        spoiled = [torch.full((nbytes // 4,), 0x5A, dtype=torch.uint8, device=device) for _ in range(16)]
    torch.cuda.synchronize()
    del spoiled
    return [[raw.cpu().numpy().tobytes() for raw in arrays] for arrays in read]


def to_and_fro(group: Group, device: torch.device, problem: Problem, rounds: int) -> Contents:
    """All memory after many ways there and back, started one after the other without a look."""
    mine = live(problem, group, device)
    ways = [planned(way, mine, group) for way in (problem, problem.reversed())]
    _arrive_late(mine)
    for _ in range(rounds):
        for way in ways:
            way.run()
    return mine.contents()


def beside(group: Group, device: torch.device, problem: Problem, current: bool) -> tuple[bool, Contents]:
    """Whether a layer was transferred while the default stream computed, and all memory in the end.

    Args:
        current: the caller has made the side stream the current one, and the computation starts
            before; otherwise the current stream is the default one, on which the weights arrive late,
            and the computation starts after.
    """
    mine, spare = live(problem, group, device), buffers_of(problem, group, device)
    old, new = tables(problem)
    side = torch.cuda.Stream(device)

    def transfer() -> rearrange.MoveToBufferResult:
        with torch.cuda.stream(side) if current else nullcontext():
            return asyncio.run(
                rearrange.transfer_layer(old, new, mine.weights, spare.weights[0], group, cuda_stream=side)
            )

    transfer()  # kernels are compiled, and connections made
    for tensor in spare.weights[0]:
        tensor.view(torch.uint8).zero_()
    if current:
        torch.cuda.synchronize()
        torch.cuda._sleep(_LONG_CYCLES)
        computed = torch.cuda.current_stream().record_event()
        result = transfer()
    else:
        _arrive_late(mine)
        result = transfer()
        torch.cuda._sleep(_LONG_CYCLES)
        computed = torch.cuda.current_stream().record_event()
    side.synchronize()
    is_beside = not computed.query()
    with torch.cuda.stream(side):
        rearrange.move_from_buffer(mine.weights[0], spare.weights[0], *result, new[0].numpy(), group)
    side.synchronize()
    return is_beside, mine.contents()
