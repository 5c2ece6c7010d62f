"""What ranks do in a case: each function runs on every rank of a new group.

All of them take the group and the rank's device first, and return bytes and other plain values.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import astuple
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist

from eplb_cli import rearrange
from eplb_cli.errors import EplbError
from tests.support.live_problems import Bytes, Contents, Problem, Rows, before
from tests.support.reference import load_reference

Group = dist.ProcessGroup
Masks = list[tuple[str, list[Any]]]
"""dtype and values of all fields of a `MoveToBufferResult`."""

_ODD = [
    getattr(torch, name)
    for name in ("float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "float4_e2m1fn_x2")
    if hasattr(torch, name)
]
"""One byte each, and not for every backend: the reference is given their bytes."""


class Live:
    """The weights of a rank, and the memory they are in."""

    def __init__(self, memory: list[list[Bytes]], layers: Sequence[Sequence[Rows]], device: torch.device):
        self._filled = [[torch.from_numpy(array) for array in arrays] for arrays in memory]
        self._memory = [[array.to(device, copy=True) for array in arrays] for arrays in self._filled]
        self.weights = [
            [_tensor(raw, rows) for raw, rows in zip(arrays, tensors, strict=True)]
            for arrays, tensors in zip(self._memory, layers, strict=True)
        ]

    def plain(self) -> list[list[torch.Tensor]]:
        """The same memory, in dtypes that every backend sends."""
        return [
            [tensor.view(torch.uint8) if tensor.dtype in _ODD else tensor for tensor in tensors]
            for tensors in self.weights
        ]

    def refill(self) -> None:
        """Make all memory what it was first."""
        for arrays, filled in zip(self._memory, self._filled, strict=True):
            for raw, content in zip(arrays, filled, strict=True):
                raw.copy_(content)

    def contents(self) -> Contents:
        """All memory."""
        return [[raw.cpu().numpy().tobytes() for raw in arrays] for arrays in self._memory]


def _tensor(raw: torch.Tensor, rows: Rows) -> torch.Tensor:
    """The tensor of as many rows as fit into the memory."""
    dtype = getattr(torch, rows.dtype)
    row = torch.empty(rows.shape, device="meta").stride()
    stride = rows.numel + rows.gap
    typed = raw.view(dtype)
    num_rows = (typed.numel() - rows.offset) // stride if stride else raw.shape[0]
    return typed.as_strided((num_rows, *rows.shape), (max(stride, 1), *row), rows.offset)


def live(problem: Problem, group: Group, device: torch.device) -> Live:
    """The weights of this rank before anything."""
    return Live(before(problem, group.rank()), problem.layers, device)


def tables(problem: Problem) -> tuple[torch.Tensor, torch.Tensor]:
    """OLD and NEW as a caller gives them."""
    return torch.tensor(problem.old), torch.tensor(problem.new)


@cache
def reference() -> ModuleType:
    """The reference."""
    return load_reference()


def _reference_runs(group: Group, device: torch.device) -> AbstractContextManager[object]:
    """What the reference needs: a device to wait for, and with nccl a first collective of all ranks."""
    if device.type == "cuda":
        dist.barrier(group)
        return nullcontext()
    return mock.patch.object(torch.cuda, "synchronize")


# what is compared with the reference


def both(group: Group, device: torch.device, problem: Problem) -> tuple[Contents, Contents]:
    """All memory after `rearrange_expert_weights_inplace`: ours, and the reference's."""
    ours, theirs = (live(problem, group, device) for _ in range(2))
    _inplace(problem, ours.weights, group)
    with _reference_runs(group, device):
        reference().rearrange_expert_weights_inplace(
            *tables(problem), theirs.plain(), group, rank_mapping=problem.rank_mapping
        )
    return ours.contents(), theirs.contents()


class Transferred(NamedTuple):
    """What became of a rank in all layers: results, buffers, and weights in the end."""

    masks: list[Masks]
    buffers: Contents
    weights: Contents


def both_by_layer(
    group: Group, device: torch.device, problem: Problem, function: str
) -> tuple[Transferred, Transferred]:
    """Ours and the reference's `transfer_layer` or `move_to_buffer`, and what `move_from_buffer` makes of it."""
    ours = _by_layer(group, device, problem, rearrange, function)
    with _reference_runs(group, device):
        theirs = _by_layer(group, device, problem, reference(), function)
    return ours, theirs


def _by_layer(
    group: Group, device: torch.device, problem: Problem, module: ModuleType, function: str
) -> Transferred:
    weights, buffers = live(problem, group, device), buffers_of(problem, group, device)
    plain = module is not rearrange
    layers = weights.plain() if plain else weights.weights
    spare = buffers.plain() if plain else buffers.weights
    call: Callable[..., Any] = getattr(_Layer(problem, module, group), function)
    results = [call(layers, spare[layer], layer) for layer in range(len(layers))]
    filled = buffers.contents()
    for layer, result in enumerate(results):
        new = _group_tables(problem)[1][layer]
        module.move_from_buffer(layers[layer], spare[layer], *result, new, group)
    return Transferred([_masks(result) for result in results], filled, weights.contents())


def buffers_of(problem: Problem, group: Group, device: torch.device) -> Live:
    """Buffers shaped like the weights of each layer, full of other bytes."""
    layers = [[Rows(rows.dtype, rows.shape) for rows in tensors] for tensors in problem.layers]
    num_rows = problem.num_rows
    memory = [[np.full(rows.row_nbytes * num_rows, 0xA5, np.uint8) for rows in tensors] for tensors in layers]
    return Live(memory, layers, device)


def _group_tables(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """OLD and NEW over the ranks of the group."""
    old, new = tables(problem)
    mapping = problem.rank_mapping
    if mapping is not None and len(mapping) == problem.num_ranks:
        new = reference()._map_new_expert_indices_with_rank_mapping(new, mapping)
    elif mapping is not None:
        old = reference()._map_old_expert_indices_with_rank_mapping(old, mapping, problem.num_ranks)
    return old.numpy(), new.numpy()


class _Layer(NamedTuple):
    """The two functions that do one layer, called alike."""

    problem: Problem
    module: ModuleType
    group: Group

    def transfer_layer(self, layers: Any, buffers: Any, layer: int) -> Any:
        mapping = self.problem.rank_mapping
        return asyncio.run(
            self.module.transfer_layer(
                *tables(self.problem), layers, buffers, self.group, layer=layer, rank_mapping=mapping
            )
        )

    def move_to_buffer(self, layers: Any, buffers: Any, layer: int) -> Any:
        old, new = _group_tables(self.problem)
        return self.module.move_to_buffer(
            self.problem.num_rows, old[layer], new[layer], layers[layer], buffers, None, self.group
        )


def _masks(result: Any) -> Masks:
    is_unchanged, is_received_locally, metadata = result
    fields = (is_unchanged, is_received_locally, *astuple(metadata))
    return [(str(np.asarray(field).dtype), np.asarray(field).tolist()) for field in fields]


# what is compared with the definition


def _inplace(problem: Problem, weights: Any, group: Group, **options: Any) -> None:
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
    _inplace(problem, mine.weights, group, senders=senders)
    return mine.contents()


def there_and_back(group: Group, device: torch.device, problem: Problem, rounds: int) -> list[Contents]:
    """All memory after each of `rounds` ways there and as many back, by two objects made before."""
    mine = live(problem, group, device)
    ways = [_planned(way, mine, group) for way in (problem, problem.reversed())]
    found = []
    for _ in range(rounds):
        for way in ways:
            way.run()
            found.append(mine.contents())
    return found


def refilled(group: Group, device: torch.device, problem: Problem, rounds: int) -> list[Contents]:
    """All memory after each of several runs of one object, each from the weights as they were first."""
    mine = live(problem, group, device)
    planned = _planned(problem, mine, group)
    found = []
    for _ in range(rounds):
        mine.refill()
        planned.run()
        found.append(mine.contents())
    return found


def _planned(problem: Problem, mine: Live, group: Group) -> rearrange.Rearrangement:
    old, new = tables(problem)
    return rearrange.Rearrangement(old, new, mine.weights, group, buffer_size=problem.buffer_size)


def profiled(group: Group, device: torch.device, problem: Problem) -> Contents:
    """All memory after a rearrangement that only reserves memory."""
    mine = live(problem, group, device)
    _inplace(problem, mine.weights, group, is_profile=True)
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


# what is refused


class Given(NamedTuple):
    """What a caller passes, before a flaw is put in."""

    old: torch.Tensor
    new: torch.Tensor
    weights: list[list[torch.Tensor]]
    options: dict[str, Any]


def _replace(
    tensors: list[torch.Tensor], number: int, change: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    tensors[number] = change(tensors[number])


def _set(table: torch.Tensor, layer: int, slot: int, value: int) -> None:
    table[layer, slot] = value


FLAWS: dict[str, Callable[[Given], object]] = {
    "expert from nowhere": lambda given: _set(given.new, 0, 1, 77),
    "expert of another layer": lambda given: _set(given.new, 0, 1, 9),
    "id below -1 in old": lambda given: _set(given.old, 0, 0, -2),
    "id below -1 in new": lambda given: _set(given.new, 0, 0, -2),
    "a row too few": lambda given: _replace(given.weights[0], 1, lambda tensor: tensor[:-1]),
    "a row too many": lambda given: _replace(given.weights[0], 1, lambda tensor: tensor.repeat(2, 1)),
    "no dimension": lambda given: _replace(given.weights[0], 1, lambda tensor: tensor[0, 0]),
    "one row for all": lambda given: _replace(given.weights[0], 1, lambda t: t[:1].expand(len(t), -1)),
    "rows that overlap": lambda given: _replace(
        given.weights[0], 1, lambda tensor: tensor.as_strided(tuple(tensor.shape), (1, 1))
    ),
    "rows in pieces": lambda given: _replace(given.weights[0], 0, lambda t: t.transpose(1, 2)),
    "another dtype": lambda given: _replace(given.weights[0], 1, lambda tensor: tensor.view(torch.int32)),
    "another shape": lambda given: _replace(given.weights[0], 0, lambda tensor: tensor.flatten(1)),
    "a tensor too few": lambda given: given.weights[0].pop(),
    "no tensors": lambda given: [tensors.clear() for tensors in given.weights],
    "another old": lambda given: _set(given.old, 0, 0, 1),
    "another new": lambda given: _set(given.new, 0, 0, 1),
    "a layer too few": lambda given: given.weights.pop(),
    "another buffer size": lambda given: given.options.update(buffer_size=1 << 10),
    "other senders": lambda given: given.options.update(senders="balanced"),
}


class Refusal(NamedTuple):
    """What a rank saw: the code of the error, or "" and no error; and whether its weights are unchanged."""

    code: str
    message: str
    is_untouched: bool


def refused(
    group: Group,
    device: torch.device,
    problem: Problem,
    flaw: str,
    ranks: Sequence[int],
    functions: Sequence[str],
) -> tuple[list[Refusal], Contents]:
    """What each function says to the flaw, which only `ranks` have; then all memory after a good run."""
    found = []
    for function in functions:
        mine, spare = live(problem, group, device), buffers_of(problem, group, device)
        given = Given(*tables(problem), [list(tensors) for tensors in mine.weights], {})
        if group.rank() in ranks:
            FLAWS[flaw](given)
        first = mine.contents(), spare.contents()
        error = _error_of(lambda f=function, g=given, s=spare: _call(f, g, s.weights[0], group))  # type: ignore[misc]
        found.append(Refusal(*error, (mine.contents(), spare.contents()) == first))
    return found, inplace(group, device, problem)


def _error_of(call: Callable[[], object]) -> tuple[str, str]:
    try:
        call()
    except EplbError as error:
        return error.code, error.message
    return "", ""


def _call(function: str, given: Given, buffers: list[torch.Tensor], group: Group) -> None:
    old, new, weights, options = given
    if function == "rearrange_expert_weights_inplace":
        rearrange.rearrange_expert_weights_inplace(old, new, weights, group, **options)
    elif function == "transfer_layer":
        asyncio.run(rearrange.transfer_layer(old, new, weights, buffers, group))
    else:
        tensors = weights[0]
        rearrange.move_to_buffer(
            len(buffers[0]), old[0].numpy(), new[0].numpy(), tensors, buffers, None, group
        )


def refused_mapping(
    group: Group, device: torch.device, problem: Problem, mappings: Sequence[dict[int, int] | None]
) -> list[Refusal]:
    """What is said to the mapping of each rank, in place and by layer."""
    mapping, found = mappings[group.rank()], []
    for function in ("rearrange_expert_weights_inplace", "transfer_layer"):
        mine = live(problem, group, device)
        first = mine.contents()
        error = _error_of(lambda f=function, m=mine: _call_mapped(f, problem, mapping, m, group))  # type: ignore[misc]
        found.append(Refusal(*error, mine.contents() == first))
    return found


def _call_mapped(
    function: str, problem: Problem, mapping: dict[int, int] | None, mine: Live, group: Group
) -> None:
    old, new = tables(problem)
    if function == "transfer_layer":
        spare = [torch.empty_like(tensor) for tensor in mine.weights[0]]
        asyncio.run(rearrange.transfer_layer(old, new, mine.weights, spare, group, rank_mapping=mapping))
    else:
        rearrange.rearrange_expert_weights_inplace(old, new, mine.weights, group, rank_mapping=mapping)


def refused_buffers(
    group: Group, device: torch.device, problem: Problem, flaw: str, ranks: Sequence[int]
) -> Refusal:
    """What `transfer_layer` says to buffers that do not fit, which only `ranks` have."""
    mine, spare = live(problem, group, device), buffers_of(problem, group, device)
    buffers, (old, new) = list(spare.weights[0]), tables(problem)
    changes: dict[str, Callable[[], object]] = {
        "too few": buffers.pop,
        "another dtype": lambda: _replace(buffers, 1, lambda tensor: tensor.view(torch.int32)),
        "another shape": lambda: _replace(buffers, 1, lambda tensor: tensor[:, :-1].contiguous()),
        "rows in pieces": lambda: _replace(
            buffers, 1, lambda tensor: torch.empty(tensor.T.shape, device=device).T
        ),
        "one row for all": lambda: _replace(buffers, 1, lambda tensor: tensor[:1].expand_as(tensor)),
    }
    if group.rank() in ranks:
        changes[flaw]()
    first = mine.contents(), spare.contents()
    error = _error_of(lambda: asyncio.run(rearrange.transfer_layer(old, new, mine.weights, buffers, group)))
    return Refusal(*error, (mine.contents(), spare.contents()) == first)
