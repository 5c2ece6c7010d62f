"""What ranks do with arguments that are wrong on some of them, or on all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, MutableSequence, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from eplb_cli import live as rearrange
from eplb_cli.errors import EplbError
from tests.support.live.problems import Contents, Problem
from tests.support.live.runs import inplace
from tests.support.live.weights import Group, Live, buffers_of, live, tables


@dataclass
class Given:
    """What a caller passes, before a flaw is put in."""

    old: torch.Tensor
    new: torch.Tensor
    weights: list[list[torch.Tensor]]
    options: dict[str, Any]
    layer: int = 0


def _clear(layers: Iterable[MutableSequence[torch.Tensor]]) -> None:
    for tensors in layers:
        tensors.clear()


def _replace(
    tensors: list[torch.Tensor], number: int, change: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    tensors[number] = change(tensors[number])


def _set(table: torch.Tensor, layer: int, slot: int, value: int) -> None:
    table[layer, slot] = value


def _shorten(given: Given) -> None:
    given.old, given.new = given.old[:, :-1], given.new[:, :-1]


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
    "no tensors": lambda given: _clear(given.weights),
    "another old": lambda given: given.old[0, :2].copy_(given.old[0, :2].flip(0)),
    "another new": lambda given: given.new[0, :2].copy_(given.new[0, :2].flip(0)),
    "indices of one layer": lambda given: setattr(given, "new", given.new[:1]),
    "indices of no layer": lambda given: setattr(given, "old", given.old[0]),
    "a slot too few": _shorten,
    "a layer too few": lambda given: given.weights.pop(),
    "a layer that is not there": lambda given: setattr(given, "layer", len(given.weights)),
    "another layer": lambda given: setattr(given, "layer", 1),
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
    old, new, weights, options = given.old, given.new, given.weights, given.options
    if function == "rearrange_expert_weights_inplace":
        rearrange.rearrange_expert_weights_inplace(old, new, weights, group, **options)
    elif function == "transfer_layer":
        asyncio.run(rearrange.transfer_layer(old, new, weights, buffers, group, layer=given.layer))
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
