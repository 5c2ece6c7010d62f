"""What the names of `bad_arguments` stand for, and what ranks are told when one of them has a flaw."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NamedTuple, Self
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist

from eplb_cli import live as rearrange
from eplb_cli.errors import EplbError
from tests.support.live.bad_arguments import FUNCTIONS, IN_PLACE, MOVE, PLANNED, PROFILE, TRANSFER
from tests.support.live.problems import Problem
from tests.support.live.weights import Group, Live, buffers_of, live, tables

API: Any = rearrange
"""Called with what its signatures do not allow."""


@dataclass
class Arguments:
    """What a caller passes; where `raised` is given, making buffers raises it."""

    function: str
    num_rows: int
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
    def __new__(cls, inner: torch.Tensor) -> Self:
        made: Self = torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)
        return made

    @classmethod
    def __torch_dispatch__(cls, func, _types, _args=(), _kwargs=None):
        raise NotImplementedError(func)


class Fake(torch.Tensor):
    """A tensor that says it is on the CPU and has no memory, made as torch makes its FakeTensor.

    That itself takes many seconds to import.
    """

    @staticmethod
    def __new__(cls, like: torch.Tensor) -> Self:
        made: Self = torch.Tensor._make_subclass(
            cls, like.to("meta"), dispatch_device=True, device_for_backend_keys=torch.device("cpu")
        )
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cpu")

    @classmethod
    def __torch_dispatch__(cls, func, _types, _args=(), _kwargs=None):
        raise NotImplementedError(func)


class Unprintable(Exception):  # noqa: N818 - it is one
    def __str__(self) -> str:
        raise ValueError("no words")


class Raises:
    """A sequence that raises where it ends, or when one element is asked for."""

    def __init__(self, error: BaseException, good: Sequence[Any]) -> None:
        self.error, self.good = error, good

    def __len__(self) -> int:
        return len(self.good)

    def __getitem__(self, _number: int) -> Any:
        raise self.error

    def __iter__(self) -> Iterator[Any]:
        yield from self.good
        raise self.error


Change = Callable[[torch.Tensor], Any]


def _with_storage_of(tensor: torch.Tensor, nbytes: int) -> torch.Tensor:
    made = tensor.clone()
    made.untyped_storage().resize_(nbytes)
    return made


TENSORS: dict[str, Change] = {
    "meta": lambda tensor: tensor.to("meta"),
    "fake": Fake,
    "sparse": lambda tensor: tensor.to_sparse(),
    "sparse rows": lambda tensor: tensor.to_sparse_csr(),
    "mkldnn": lambda tensor: tensor.to_mkldnn(),
    "quantised": lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
    "nested": lambda tensor: torch.nested.nested_tensor(list(tensor)),
    "a wrapper": Wrapped,
    "negated lazily": torch._neg_view,
    "freed": lambda tensor: _with_storage_of(tensor, 0),
    "cut off": lambda tensor: _with_storage_of(tensor, tensor.nbytes - 1),
    "none": lambda _tensor: None,
    "an array": lambda tensor: tensor.numpy(),
    "a number": lambda _tensor: 3,
    "expanded": lambda tensor: tensor[:1].expand_as(tensor),
    "transposed": lambda tensor: torch.zeros(tensor.T.shape).T,
    "rows that share elements": lambda tensor: tensor.as_strided(tuple(tensor.shape), (2, 1)),
    "a scalar": lambda tensor: tensor[0, 0],
    "no rows": lambda tensor: tensor[:0],
}
"""Of a tensor of float32 in two dimensions."""

INDICES: dict[str, Change] = {
    "float": lambda table: table.float() + 0.5,
    "bf16": lambda table: table.bfloat16(),
    "requires grad": lambda table: table.double().requires_grad_(),
    "bool": lambda table: table > 0,
    "complex": lambda table: table.to(torch.complex64),
    "float array": lambda table: table.double().numpy(),
    "bool array": lambda table: table.numpy() > 0,
    "objects": lambda table: table.numpy().astype(object),
    "words": lambda table: table.numpy().astype(str),
    "ragged": lambda _table: [[1], [2, 3]],
    "none": lambda _table: None,
    "meta": lambda table: table.to("meta"),
    "sparse": lambda table: table.to_sparse(),
    "fake": Fake,
    "too large": lambda table: torch.full_like(table, 1 << 62),
    "too large without sign": lambda table: np.full(table.shape, (1 << 64) - 1, np.uint64),
}

MAPPINGS: dict[str, Callable[[range], Any]] = {
    "a list": list,
    "a number": len,
    "words": lambda ranks: {rank: str(rank) for rank in ranks},
    "none": dict.fromkeys,
    "halves": lambda ranks: {rank: rank + 0.0 for rank in ranks},
    "a set": set,
    "two become one": lambda ranks: dict.fromkeys(ranks, 0),
    "an old rank that is not there": lambda ranks: {0: 0, **{rank + 7: -1 for rank in ranks[1:]}},
    "words for ranks": lambda ranks: {str(rank): rank for rank in ranks},
}

ERRORS: dict[str, Callable[[], BaseException]] = {
    "ValueError": lambda: ValueError("a deliberate error"),
    "StopIteration": StopIteration,
    "OSError": lambda: OSError(5, "a deliberate error", "\udc80"),
    "AssertionError": AssertionError,
    "MemoryError": MemoryError,
    "long": lambda: ValueError("\N{GRINNING FACE}\0\n" * 100_000),
    "unprintable": Unprintable,
    "no memory on a device": lambda: torch.OutOfMemoryError("a deliberate error"),
    "EplbError": lambda: EplbError("EP220", "a deliberate error"),
    "EplbError of no code": lambda: EplbError("nothing", "a deliberate error"),
    "KeyboardInterrupt": KeyboardInterrupt,
}


def put_flaw(name: str, given: Arguments) -> None:
    """Make what a rank is given wrong."""
    kind, _, which = name.partition(": ")
    if kind == "weight":
        given.weights[0][1] = TENSORS[which](given.weights[0][1])
    elif kind == "buffer":
        given.buffers[1] = TENSORS[which](given.buffers[1])
    elif kind in {"old", "new"}:
        setattr(given, kind, INDICES[which](getattr(given, kind)))
    elif kind == "mapping":
        given.mapping = MAPPINGS[which](range(dist.get_world_size()))
    elif kind == "error":
        given.weights[0] = Raises(ERRORS[which](), given.weights[0])
    elif kind == "error of planning":
        given.raised = ERRORS[which]()
    else:
        OTHERS[name](given)


def _let_overlap(given: Arguments) -> None:
    """Two tensors of a layer whose rows overlap in their last and first element."""
    rows, width = given.weights[0][1].shape
    memory = torch.zeros(rows, 2 * width)
    given.weights[0][1:3] = memory[:, :width], memory[:, width - 1 : 2 * width - 1]


def _set(**values: Any) -> Callable[[Arguments], None]:
    return lambda given: vars(given).update(values)


def _set_option(**values: Any) -> Callable[[Arguments], None]:
    return lambda given: given.options.update(values)


OTHERS: dict[str, Callable[[Arguments], object]] = {
    "a tensor twice in a layer": lambda given: given.weights[0].__setitem__(1, given.weights[0][2]),
    "tensors of a layer that overlap": _let_overlap,
    "a tensor in two layers": lambda given: given.weights[1].__setitem__(1, given.weights[0][1]),
    "a buffer that is a weight": lambda given: given.buffers.__setitem__(1, given.weights[0][1]),
    "a buffer twice": lambda given: given.buffers.__setitem__(1, given.buffers[2]),
    "no weights": _set(weights=None),
    "a number for a layer": _set(weights=[3, 4]),
    "weights that raise": _set(weights=Raises(KeyError("a deliberate error"), [[]])),
    "no buffers": _set(buffers=None),
    "a word for a layer's number": _set(layer="first"),
    "half a layer": _set(layer=0.5),
    "the layer beside it": _set(layer=1),
    "a number for a stream": _set(stream=3),
    "unknown senders": _set_option(senders="fast"),
    "a word for a size": _set_option(buffer_size="large"),
    "half a size": _set_option(buffer_size=1e6),
    "a size beyond all": _set_option(buffer_size=1 << 80),
    "a row too many in a number": lambda given: _set(num_rows=given.num_rows + 1)(given),
    "another function": lambda given: _set(function=FUNCTIONS[FUNCTIONS.index(given.function) - 1])(given),
}


class Told(NamedTuple):
    """What a rank was told; `code` is that of the error, or the name of its type, or "" and no error."""

    code: str
    message: str
    hint: str
    is_untouched: bool


def told(
    group: Group,
    device: torch.device,
    problem: Problem,
    flaw: str,
    calls: Sequence[tuple[str, int]],
    timeout_s: float,
) -> list[Told]:
    """What this rank is told in each call of a function in which one rank has a flaw.

    Args:
        calls: (function, rank), made one after the other in a group of their own.
        timeout_s: when waits in that group end.
    """
    dist.barrier()
    alone: Any = dist.new_group(timeout=timedelta(seconds=timeout_s))
    found = [_told(alone, device, problem, flaw, call) for call in calls]
    dist.destroy_process_group(alone)
    return found


def _arguments(problem: Problem, function: str, mine: Live, buffers: list[torch.Tensor]) -> Arguments:
    weights = [list(tensors) for tensors in mine.weights]
    return Arguments(function, problem.num_rows, *tables(problem), weights, buffers)


def _told(group: Group, device: torch.device, problem: Problem, flaw: str, call: tuple[str, int]) -> Told:
    function, rank = call
    mine, spare = live(problem, group, device), buffers_of(problem, group, device)
    given = _arguments(problem, function, mine, list(spare.weights[0]))
    if group.rank() == rank:
        put_flaw(flaw, given)
    first = mine.contents(), spare.contents()
    error = _error_of(lambda: call_with(given, group))
    return Told(*error, (mine.contents(), spare.contents()) == first)


def _error_of(call: Callable[[], object]) -> tuple[str, str, str]:
    try:
        call()
    except EplbError as error:
        return error.code, error.message, error.hint
    except BaseException as error:  # noqa: BLE001 - whatever it is, the test has to see it
        return type(error).__name__, str(error), ""
    return "", "", ""


def call_with(given: Arguments, group: Any) -> object:
    """Call the function with its arguments."""
    raised = given.raised
    with nullcontext() if raised is None else mock.patch.object(torch, "empty", side_effect=raised):
        return _CALLS[given.function](given, group)


def _in_place(given: Arguments, group: Any) -> object:
    return API.rearrange_expert_weights_inplace(
        given.old, given.new, given.weights, group, rank_mapping=given.mapping, **given.options
    )


def _planned(given: Arguments, group: Any) -> object:
    return API.Rearrangement(
        given.old, given.new, given.weights, group, rank_mapping=given.mapping, **given.options
    ).run()


def _transfer(given: Arguments, group: Any) -> object:
    return asyncio.run(
        API.transfer_layer(
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
        table[0] if isinstance(table, torch.Tensor | np.ndarray) and not isinstance(table, Fake) else table
        for table in (given.old, given.new)
    )
    weights = given.weights[0] if isinstance(given.weights, list) else given.weights
    return API.move_to_buffer(given.num_rows, old, new, weights, given.buffers, given.stream, group)


def _profile(given: Arguments, group: Any) -> object:
    return API.rearrange_expert_weights_inplace(given.old, given.new, given.weights, group, is_profile=True)


_CALLS = {IN_PLACE: _in_place, PLANNED: _planned, TRANSFER: _transfer, MOVE: _move, PROFILE: _profile}


# what is right, if unusual


class Marked(torch.nn.Parameter):
    """A subclass with memory of its own, as an engine's parameters are."""


def accepted(group: Group, device: torch.device, problem: Problem, form: str) -> Any:
    """All memory after a rearrangement, in place and layer by layer, of weights or indices of a form."""
    found = []
    for function in (IN_PLACE, TRANSFER):
        mine, spare = live(problem, group, device), buffers_of(problem, group, device)
        given = Arguments(function, problem.num_rows, *tables(problem), mine.weights, spare.weights[0])
        _put_form(form, given)
        result: Any = call_with(given, group)
        if function == TRANSFER:
            API.move_from_buffer(given.weights[0], given.buffers, *result, given.new[0], group)
        for tensors, kept in zip(given.weights, mine.weights, strict=True):
            for tensor, place in zip(tensors, kept, strict=True):
                place.copy_(tensor.detach())
        found.append(mine.contents())
    return found


def _put_form(form: str, given: Arguments) -> None:
    if form.startswith(("int", "uint")):
        given.old, given.new = (table.to(getattr(torch, form)) for table in (given.old, given.new))
    elif form == "arrays":
        given.old, given.new = given.old.numpy().astype(np.int16), given.new.numpy().astype(np.uint64)
    elif form == "lists":
        given.old, given.new = given.old.tolist(), given.new.tolist()
    elif form == "more buffers":
        given.buffers = [*given.buffers, torch.empty_like(given.buffers[0])]
    else:
        given.weights = [_FORMS[form](tensors) for tensors in given.weights]


def _inference(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    with torch.inference_mode():
        return [tensor.clone() for tensor in tensors]


def _interleaved(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    return list(torch.cat(tensors, dim=1).split([tensor.shape[1] for tensor in tensors], dim=1))


_FORMS: dict[str, Callable[[list[torch.Tensor]], list[torch.Tensor]]] = {
    "parameters": lambda tensors: [torch.nn.Parameter(tensor) for tensor in tensors],
    "parameters of an engine": lambda tensors: [Marked(tensor) for tensor in tensors],
    "views of parameters": lambda tensors: [
        torch.nn.Parameter(tensor).view(len(tensor), -1) for tensor in tensors
    ],
    "inference tensors": _inference,
    "rows between rows": _interleaved,
}


# what one rank alone is told


@dataclass
class Received:
    """What a caller passes to `move_from_buffer`."""

    weights: list[Any]
    buffers: list[Any]
    is_unchanged: Any
    is_local: Any
    received: Any
    indices: Any


_ALONE: dict[str, Callable[[Received], object]] = {
    "a buffer too few": lambda given: given.buffers.pop(),
    "a buffer that is a weight": lambda given: given.buffers.__setitem__(1, given.weights[1]),
    "indices: float": lambda given: vars(given).update(indices=given.indices + 0.5),
    "indices: too few": lambda given: vars(given).update(indices=given.indices[:-1]),
    "a mask too short": lambda given: vars(given).update(is_local=given.is_local[:-1]),
    "a mask of numbers": lambda given: vars(given).update(is_local=given.is_local.astype(np.int64)),
    "a row that is not there": lambda given: given.received.recv_dst_rows.__setitem__(0, 99),
    "more received than there are rows": lambda given: vars(given.received).update(recv_count=99),
}


def from_buffer(group: Group, device: torch.device, problem: Problem, flaw: str) -> Told:
    """What `move_from_buffer` says to a flaw of this rank, after a good transfer."""
    mine, spare = live(problem, group, device), buffers_of(problem, group, device)
    weights, buffers = mine.weights[0], list(spare.weights[0])
    old, new = (table[0].numpy() for table in tables(problem))
    is_unchanged, is_local, received = API.move_to_buffer(
        problem.num_rows, old, new, weights, buffers, None, group
    )
    given = Received(list(weights), buffers, is_unchanged, is_local, received, new)
    kind, _, which = flaw.partition(": ")
    if kind in {"weight", "buffer"}:
        tensors = given.weights if kind == "weight" else given.buffers
        tensors[1] = TENSORS[which](tensors[1])
    else:
        _ALONE[flaw](given)
    first = mine.contents(), spare.contents()
    error = _error_of(lambda: API.move_from_buffer(*vars(given).values(), group))
    return Told(*error, (mine.contents(), spare.contents()) == first)
