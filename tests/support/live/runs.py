"""What ranks do when only the result counts; all return the memory behind their weights."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist

from eplb_cli import live as rearrange
from tests.support.live.problems import Contents, Problem
from tests.support.live.weights import Group, Live, buffers_of, live, tables


def rearrange_inplace(problem: Problem, weights: Any, group: Group, **options: Any) -> None:
    rearrange.rearrange_expert_weights_inplace(
        *tables(problem),
        weights,
        group,
        rank_mapping=problem.rank_mapping,
        buffer_size=problem.buffer_size,
        **options,
    )


def inplace(group: Group, device: torch.device, problem: Problem, senders: str = "vllm") -> Contents:
    """All memory after a rearrangement."""
    mine = live(problem, group, device)
    rearrange_inplace(problem, mine.weights, group, senders=senders)
    return mine.contents()


def there_and_back(group: Group, device: torch.device, problem: Problem, rounds: int) -> list[Contents]:
    """All memory after each of `rounds` ways there and as many back, by two objects made before."""
    mine = live(problem, group, device)
    ways = [planned(way, mine, group) for way in (problem, problem.reversed())]
    found = []
    for _ in range(rounds):
        for way in ways:
            way.run()
            found.append(mine.contents())
    return found


def refilled(group: Group, device: torch.device, problem: Problem, rounds: int) -> list[Contents]:
    """All memory after each of several runs of one object, each from the weights as they were first."""
    mine = live(problem, group, device)
    way = planned(problem, mine, group)
    found = []
    for _ in range(rounds):
        mine.refill()
        way.run()
        found.append(mine.contents())
    return found


def planned(problem: Problem, mine: Live, group: Group) -> rearrange.Rearrangement:
    old, new = tables(problem)
    return rearrange.Rearrangement(old, new, mine.weights, group, buffer_size=problem.buffer_size)


def profiled(group: Group, device: torch.device, problem: Problem) -> Contents:
    """All memory after a rearrangement that only reserves memory."""
    mine = live(problem, group, device)
    rearrange_inplace(problem, mine.weights, group, is_profile=True)
    return mine.contents()


def given_as(group: Group, device: torch.device, problem: Problem, form: str) -> Contents:
    """All memory after a rearrangement whose arguments come in other forms than lists and tensors."""
    mine = live(problem, group, device)
    old, new = tables(problem)
    if form == "transfer_layer":
        for layer, spare in enumerate(buffers_of(problem, group, device).weights):
            coroutine = rearrange.transfer_layer(
                old, new, [iter(tensors) for tensors in mine.weights], spare, group, layer=layer
            )
            result = asyncio.run(coroutine)
            rearrange.move_from_buffer(iter(mine.weights[layer]), spare, *result, new[layer].numpy(), group)
        return mine.contents()
    weights: dict[str, Callable[[], Any]] = {
        "tuples": lambda: tuple(tuple(tensors) for tensors in mine.weights),
        "iterators": lambda: [iter(tensors) for tensors in mine.weights],
        "generators": lambda: _generators(mine.weights),
        "dict values": lambda: [dict(enumerate(tensors)).values() for tensors in mine.weights],
        "int32 indices": lambda: mine.weights,
        "indices on the device": lambda: mine.weights,
    }
    if form == "int32 indices":
        old, new = old.int(), new.int()
    if form == "indices on the device":
        old, new = old.to(device), new.to(device)
    rearrange.rearrange_expert_weights_inplace(old, new, weights[form](), group)
    return mine.contents()


def _generators(layers: list[list[torch.Tensor]]) -> Iterator[Iterator[torch.Tensor]]:
    for tensors in layers:
        yield (tensor for tensor in tensors)


def in_subgroups(
    group: Group, device: torch.device, problem: Problem, members: Sequence[Sequence[int]]
) -> Contents | None:
    """All memory of a member after the same rearrangement in each group of other ranks, at the same time.

    A message of the default group is on its way meanwhile, from each rank to the next.
    """
    groups = [dist.new_group(list(of_group)) for of_group in members]
    mine = [made for made, of_group in zip(groups, members, strict=True) if group.rank() in of_group]
    before_it = torch.full((2, 7), group.rank(), device=device)
    size = group.size()
    operations = [
        dist.P2POp(dist.isend, before_it[0], (group.rank() + 1) % size),
        dist.P2POp(dist.irecv, before_it[1], (group.rank() - 1) % size),
    ]
    pending = dist.batch_isend_irecv(operations) if device.type == "cpu" else []
    found = inplace(mine[0], device, problem) if mine else None
    for work in pending or dist.batch_isend_irecv(operations):
        work.wait()
    assert before_it[1].tolist() == [(group.rank() - 1) % size] * 7
    dist.barrier()
    return found


def warm_up(group: Group, device: torch.device) -> None:
    """Move rows of each width of words once, in place and by way of buffers."""
    ranks, rows = group.size(), 2
    old = torch.arange(ranks * rows)[None]
    new = old.roll(1, dims=1)
    for dtype in (torch.uint8, torch.int32, torch.int64):
        weights = [
            [torch.zeros((rows, 1 << 18), dtype=dtype, device=device), torch.zeros((rows, 3), device=device)]
        ]
        rearrange.rearrange_expert_weights_inplace(old, new, weights, group)
        spare = [torch.empty_like(tensor) for tensor in weights[0]]
        asyncio.run(rearrange.transfer_layer(old, new, weights, spare, group))


# what tests of the pool itself ask for


def trouble(group: Group, device: torch.device, what: str) -> None:
    """One rank does what it must not do, and the other waits for it."""
    if group.rank() == 1 and what == "error":
        raise ValueError("a deliberate error")
    if group.rank() == 1 and what == "end":
        os._exit(3)
    if group.rank() == 1 and what == "hang":
        time.sleep(3600)
    if what == "message":
        if group.rank() == 1:
            dist.send(torch.zeros(11, dtype=torch.int32, device=device), 0)
        return
    dist.barrier()
