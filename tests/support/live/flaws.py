"""Arguments that no rank should pass, each with the code of its refusal, and what ranks do with them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode

from eplb_cli import live as rearrange
from eplb_cli.errors import EplbError
from tests.support.live.problems import Problem
from tests.support.live.weights import Group, buffers_of, live, tables


@dataclass
class Arguments:
    """What a caller passes; with `raised`, making rows ready raises it."""

    function: str
    num_rows: Any
    old: Any
    new: Any
    weights: Any
    buffers: Any
    options: dict[str, Any] = field(default_factory=dict)
    layer: Any = 0
    stream: Any = None
    mapping: Any = None
    raised: BaseException | None = None


class Wrapped(torch.Tensor):
    """A subclass that keeps its elements elsewhere, as DTensor does."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Wrapped:
        made: Wrapped = torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)  # type: ignore[attr-defined]
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise NotImplementedError(func)


class Unprintable(Exception):  # noqa: N818 - it is one
    def __str__(self) -> str:
        raise ValueError("no words")


class Raises:
    """An iterable that ends in an error after its good elements."""

    def __init__(self, error: BaseException, good: Any = ()) -> None:
        self.error, self.good = error, good

    def __len__(self) -> int:
        return len(self.good)

    def __getitem__(self, number: int) -> Any:
        raise self.error

    def __iter__(self) -> Iterator[Any]:
        yield from self.good
        if isinstance(self.error, StopIteration):
            next(iter(()))
        raise self.error


def _fake(tensor: torch.Tensor) -> torch.Tensor:
    with FakeTensorMode():
        return torch.empty(tensor.shape, dtype=tensor.dtype)


def _with_storage_of(tensor: torch.Tensor, nbytes: int) -> torch.Tensor:
    made = tensor.clone()
    made.untyped_storage().resize_(nbytes)
    return made


_Change = Callable[[torch.Tensor], Any]

BAD_TENSORS: dict[str, tuple[str, _Change]] = {
    "meta": ("EP228", lambda tensor: tensor.to("meta")),
    "fake": ("EP228", _fake),
    "sparse": ("EP228", lambda tensor: tensor.to_sparse()),
    "sparse rows": ("EP228", lambda tensor: tensor.to_sparse_csr()),
    "mkldnn": ("EP228", lambda tensor: tensor.to_mkldnn()),
    "quantised": ("EP228", lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)),
    "nested": ("EP228", lambda tensor: torch.nested.nested_tensor(list(tensor))),
    "a wrapper": ("EP228", Wrapped),
    "negated lazily": ("EP228", lambda tensor: torch._neg_view(tensor)),
    "freed": ("EP228", lambda tensor: _with_storage_of(tensor, 0)),
    "cut off": ("EP228", lambda tensor: _with_storage_of(tensor, tensor.nbytes - 1)),
    "none": ("EP228", lambda tensor: None),
    "an array": ("EP228", lambda tensor: tensor.numpy()),
    "a number": ("EP228", lambda tensor: 3),
    "expanded": ("EP221", lambda tensor: tensor[:1].expand_as(tensor)),
    "transposed": ("EP221", lambda tensor: torch.zeros(tensor.T.shape).T),
    "rows that share elements": ("EP221", lambda tensor: tensor.as_strided(tuple(tensor.shape), (2, 1))),
    "a scalar": ("EP208", lambda tensor: tensor[0, 0]),
    "no rows": ("EP208", lambda tensor: tensor[:0]),
}
"""Of a tensor of float32 in two dimensions."""

BAD_INDICES: dict[str, tuple[str, _Change]] = {
    "float": ("EP104", lambda table: table.float() + 0.5),
    "bf16": ("EP104", lambda table: table.bfloat16()),
    "requires grad": ("EP104", lambda table: table.double().requires_grad_()),
    "bool": ("EP104", lambda table: table > 0),
    "complex": ("EP104", lambda table: table.to(torch.complex64)),
    "float array": ("EP104", lambda table: table.double().numpy()),
    "bool array": ("EP104", lambda table: table.numpy() > 0),
    "objects": ("EP104", lambda table: table.numpy().astype(object)),
    "words": ("EP104", lambda table: table.numpy().astype(str)),
    "ragged": ("EP104", lambda table: [[1], [2, 3]]),
    "none": ("EP104", lambda table: None),
    "meta": ("EP104", lambda table: table.to("meta")),
    "sparse": ("EP104", lambda table: table.to_sparse()),
    "fake": ("EP104", _fake),
    "too large": ("EP105", lambda table: torch.full_like(table, 1 << 62)),
    "too large without sign": (
        "EP105",
        lambda table: np.full(table.shape, (1 << 64) - 1, np.uint64),
    ),
}

BAD_MAPPINGS: dict[str, tuple[str, Callable[[int], Any]]] = {
    "a list": ("EP115", lambda num_ranks: list(range(num_ranks))),
    "a number": ("EP115", lambda num_ranks: 3),
    "words": ("EP115", lambda num_ranks: {rank: str(rank) for rank in range(num_ranks)}),
    "none": ("EP115", lambda num_ranks: dict.fromkeys(range(num_ranks))),
    "halves": ("EP115", lambda num_ranks: {rank: rank + 0.0 for rank in range(num_ranks)}),
    "a set": ("EP115", lambda num_ranks: set(range(num_ranks))),
    "two become one": ("EP115", lambda num_ranks: dict.fromkeys(range(num_ranks), 0)),
    "an old rank that is not there": (
        "EP115",
        lambda num_ranks: {0: 0, **{rank + 7: -1 for rank in range(1, num_ranks)}},
    ),
    "words for ranks": ("EP115", lambda num_ranks: {str(rank): rank for rank in range(num_ranks)}),
}

ERRORS = {
    "ValueError": ("EP401", lambda: ValueError("a deliberate error")),
    "StopIteration": ("EP401", StopIteration),
    "OSError": ("EP401", lambda: OSError(5, "a deliberate error", "\udc80")),
    "AssertionError": ("EP401", AssertionError),
    "MemoryError": ("EP401", MemoryError),
    "long": ("EP401", lambda: ValueError("\N{GRINNING FACE}\0\n" * 100_000)),
    "unprintable": ("EP401", Unprintable),
    "no memory": ("EP406", lambda: torch.OutOfMemoryError("a deliberate error")),
    "EplbError": ("EP220", lambda: EplbError("EP220", "a deliberate error")),
    "EplbError of no code": ("EP401", lambda: EplbError("nothing", "a deliberate error")),
}


def flaws(name: str) -> tuple[str, Callable[[Arguments], object]]:
    """The code of a flaw, named "kind: which", and what puts it in."""
    kind, _, which = name.partition(": ")
    if kind in {"weight", "buffer"}:
        code, change = BAD_TENSORS[which]
        return code, lambda given: _change_tensor(given, kind, change)
    if kind in {"old", "new"}:
        code, change = BAD_INDICES[which]
        return code, lambda given: setattr(given, kind, change(torch.as_tensor(getattr(given, kind))))
    if kind == "mapping":
        code, make = BAD_MAPPINGS[which]
        return code, lambda given: setattr(given, "mapping", make(dist.get_world_size()))
    if kind == "error":
        code, error = ERRORS[which]
        return code, lambda given: _put_error(given, error())
    if kind == "error of planning":
        code, error = ERRORS[which]
        return code, lambda given: setattr(given, "raised", error())
    return OTHERS[name]


def _change_tensor(given: Arguments, kind: str, change: _Change) -> None:
    tensors = given.buffers if kind == "buffer" else given.weights[0]
    tensors[1] = change(tensors[1])


def _put_error(given: Arguments, error: BaseException) -> None:
    given.weights[0] = Raises(error, given.weights[0])


def _same_twice(given: Arguments) -> None:
    given.weights[0][1] = given.weights[0][2]


def _half_shared(given: Arguments) -> None:
    """Two tensors of a layer whose rows overlap in their last and first element."""
    rows, width = given.weights[0][1].shape
    memory = torch.zeros(rows, 2 * width)
    given.weights[0][1], given.weights[0][2] = memory[:, :width], memory[:, width - 1 : 2 * width - 1]


def _buffer_is_weight(given: Arguments) -> None:
    given.buffers[1] = given.weights[0][1]


def _buffer_twice(given: Arguments) -> None:
    given.buffers[1] = given.buffers[2]


OTHERS: dict[str, tuple[str, Callable[[Arguments], object]]] = {
    "a tensor twice in a layer": ("EP221", _same_twice),
    "tensors of a layer that overlap": ("EP221", _half_shared),
    "a tensor in two layers": (
        "EP221",
        lambda given: given.weights[1].__setitem__(1, given.weights[0][1]),
    ),
    "a buffer that is a weight": ("EP221", _buffer_is_weight),
    "a buffer twice": ("EP221", _buffer_twice),
    "no weights": ("EP401", lambda given: setattr(given, "weights", None)),
    "a number for a layer": ("EP401", lambda given: setattr(given, "weights", [3, 4])),
    "weights that raise": (
        "EP401",
        lambda given: setattr(given, "weights", Raises(KeyError("a deliberate error"), [given.weights[0]])),
    ),
    "no buffers": ("EP401", lambda given: setattr(given, "buffers", None)),
    "a word for a layer's number": ("EP401", lambda given: setattr(given, "layer", "first")),
    "half a layer": ("EP401", lambda given: setattr(given, "layer", 0.5)),
    "the layer beside it": ("EP302", lambda given: setattr(given, "layer", 1)),
    "a number for a stream": ("EP401", lambda given: setattr(given, "stream", 3)),
    "unknown senders": ("EP401", lambda given: given.options.update(senders="fast")),
    "a word for a size": ("EP401", lambda given: given.options.update(buffer_size="large")),
    "half a size": ("EP401", lambda given: given.options.update(buffer_size=1e6)),
    "a size beyond all": ("EP401", lambda given: given.options.update(buffer_size=1 << 80)),
    "a row too many in a number": ("EP108", lambda given: setattr(given, "num_rows", given.num_rows + 1)),
    "another function": ("EP302", lambda given: setattr(given, "function", _other(given.function))),
}

IN_PLACE, PLANNED, PROFILE = "rearrange_expert_weights_inplace", "Rearrangement", "profile"
TRANSFER, MOVE = "transfer_layer", "move_to_buffer"
FUNCTIONS = (IN_PLACE, PLANNED, TRANSFER, MOVE, PROFILE)

_BY_LAYER, _TO_PLAN = (TRANSFER, MOVE), (IN_PLACE, PLANNED, TRANSFER, MOVE)
_ONLY = {
    "buffer": _BY_LAYER,
    "old": _TO_PLAN,
    "new": _TO_PLAN,
    "mapping": (IN_PLACE, PLANNED, TRANSFER),
    "error of planning": _TO_PLAN,
    "a tensor twice in a layer": _TO_PLAN,
    "tensors of a layer that overlap": _TO_PLAN,
    "a tensor in two layers": (IN_PLACE, PLANNED),
    "a buffer that is a weight": _BY_LAYER,
    "a buffer twice": _BY_LAYER,
    "no buffers": _BY_LAYER,
    "weights that raise": (IN_PLACE, PLANNED, TRANSFER),
    "a row too many in a number": (MOVE,),
    "a word for a layer's number": (TRANSFER,),
    "half a layer": (TRANSFER,),
    "the layer beside it": (TRANSFER,),
    "a number for a stream": _BY_LAYER,
    "unknown senders": (IN_PLACE, PLANNED),
    "a word for a size": (IN_PLACE, PLANNED),
    "half a size": (IN_PLACE, PLANNED),
    "a size beyond all": (IN_PLACE, PLANNED),
}
_SHAPES = {"expanded", "transposed", "rows that share elements", "a scalar", "no rows"}
"""Not looked at where nothing is moved."""


def sweep() -> list[tuple[str, str]]:
    """All (flaw, function) that make sense."""
    groups = {"weight": BAD_TENSORS, "buffer": BAD_TENSORS, "old": BAD_INDICES, "new": BAD_INDICES}
    names = [f"{kind}: {which}" for kind, known in groups.items() for which in known]
    names += [f"mapping: {which}" for which in BAD_MAPPINGS]
    names += [f"error: {which}" for which in ERRORS]
    names += ["error of planning: MemoryError", "error of planning: no memory", *OTHERS]
    return [
        (name, function)
        for name in names
        for function in FUNCTIONS
        if function in _ONLY.get(name.partition(": ")[0], FUNCTIONS)
        and not (function == PROFILE and name.partition(": ")[2] in _SHAPES)
    ]


def _other(function: str) -> str:
    return FUNCTIONS[FUNCTIONS.index(function) - 1]


def told(
    group: Group, device: torch.device, problem: Problem, cases: list[tuple[str, str, int]], timeout_s: float
) -> list[tuple[str, str, bool]]:
    """What this rank is told in each case of a function, a flaw and the rank that has it.

    Each case has a group of its own, whose waits end after `timeout_s`. A code is that of the error, or
    the name of its type, or "" and no error.

    Returns:
        (code, message, whether all memory is as it was) per case.
    """
    return [
        _told(device, problem, function, flaw, rank == group.rank(), timeout_s)
        for function, flaw, rank in cases
    ]


def _told(
    device: torch.device, problem: Problem, function: str, flaw: str, is_bad: bool, timeout_s: float
) -> tuple[str, str, bool]:
    group: Any = dist.new_group(timeout=timedelta(seconds=timeout_s))
    mine, spare = live(problem, group, device), buffers_of(problem, group, device)
    old, new = tables(problem)
    weights = [list(tensors) for tensors in mine.weights]
    given = Arguments(function, problem.num_rows, old, new, weights, list(spare.weights[0]))
    if is_bad:
        flaws(flaw)[1](given)
    first = mine.contents(), spare.contents()
    code, message = "", ""
    try:
        call(given, group)
    except EplbError as error:
        code, message = error.code, error.message
    except BaseException as error:  # noqa: BLE001 - whatever it is, the test has to see it
        code, message = type(error).__name__, str(error)
    unchanged = (mine.contents(), spare.contents()) == first
    dist.destroy_process_group(group)
    return code, message, unchanged


def call(given: Arguments, group: Any) -> object:
    """Call the function with its arguments."""
    raised = given.raised
    with nullcontext() if raised is None else mock.patch.object(torch, "empty", side_effect=raised):
        return _CALLS[given.function](given, group)


def _in_place(given: Arguments, group: Any) -> object:
    return rearrange.rearrange_expert_weights_inplace(
        given.old, given.new, given.weights, group, rank_mapping=given.mapping, **given.options
    )


def _planned(given: Arguments, group: Any) -> object:
    made = rearrange.Rearrangement(
        given.old, given.new, given.weights, group, rank_mapping=given.mapping, **given.options
    )
    made.run()
    return made


def _transfer(given: Arguments, group: Any) -> object:
    return asyncio.run(
        rearrange.transfer_layer(
            given.old,
            given.new,
            given.weights,
            given.buffers,
            group,
            layer=given.layer,
            cuda_stream=given.stream,
            rank_mapping=given.mapping,
        )
    )


def _move(given: Arguments, group: Any) -> object:
    old, new = (
        table[0] if isinstance(table, torch.Tensor | np.ndarray) else table
        for table in (given.old, given.new)
    )
    weights = given.weights[0] if isinstance(given.weights, list) else given.weights
    return rearrange.move_to_buffer(given.num_rows, old, new, weights, given.buffers, given.stream, group)


def _profile(given: Arguments, group: Any) -> object:
    return rearrange.rearrange_expert_weights_inplace(
        given.old, given.new, given.weights, group, is_profile=True
    )


_CALLS = {IN_PLACE: _in_place, PLANNED: _planned, TRANSFER: _transfer, MOVE: _move, PROFILE: _profile}
